"""DeepHoyer: sparsity-inducing regularisers that do not depend on scale, and the pruning rules that follow them.

Yang, Wen, Li: "DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant Sparsity Measures",
ICLR 2020, arXiv 1908.09979. A regulariser R is summed over the weight tensors w of a network and added to the loss:

    loss = cross-entropy + strength · Σ_w R(w)

    element-wise (every parameter, biases included)       structural (weights of convolutions and linear layers)
    l1               Σ|w|                                 group_lasso         Σc + Σf
    hoyer            Σ|w| / ‖w‖              (eq. 1)      group_hoyer         (Σc + Σf) / ‖w‖
    hoyer_square     (Σ|w|)² / Σw²           (eq. 3)      group_hoyer_square  ((Σc)² + (Σf)²) / Σw²   (eqs. 5, 6)
    transformed_l1   Σ 2|w| / (1 + |w|)

    Symbols
    w      one weight tensor: convolution [O, I, kh, kw] or linear [O, I]; any shape for the element-wise ones
    f_j    L2 norm of filter j, i.e. of w[j] (a row of a linear weight), j = 1..O
    c_i    L2 norm of input channel i, i.e. of w[:, i] (a column of a linear weight), i = 1..I
    ‖w‖    L2 norm of the whole tensor
    T      number of tensors

Every Hoyer form is a ratio of a few sums, so the network needs one pass over the weights for the sums (`_Sums`,
`_GroupSums`) and one for their gradients, in closed form; the ratios themselves are formed on vectors of length T.
The gradient of hoyer_square, 2 (Σ|w| / Σw²) (sign w - w Σ|w| / Σw²), pulls exactly the weights below the trimming
value Σw² / Σ|w| towards zero and lets the others grow (section 3.2). A tensor of zeros gives 0 and a zero gradient,
and so does a group of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Below this Σw² the gradient of a ratio, up to (number of weights) / Σw², could leave the range of float32.
_SQUARE_SUM_OF_ZERO = 1e-30


# --- sums over the weights ------------------------------------------------------------------------------------------


def _buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Positions of the tensors, those of one shape together: a bucket is treated as one stacked tensor."""
    by_shape: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for position, tensor in enumerate(tensors):
        by_shape.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(position)
    return list(by_shape.values())


def _stack(tensors: Sequence[Tensor], bucket: list[int]) -> Tensor:
    """The tensors of a bucket as [B, ...]; a tensor that is alone in its shape is not copied."""
    if len(bucket) == 1:
        return tensors[bucket[0]].detach().unsqueeze(0)
    return torch.stack([tensors[position].detach() for position in bucket])


def _column(vector: Tensor, like: Tensor) -> Tensor:
    """vector [B] shaped so that it broadcasts over like [B, ...]."""
    return vector.view(-1, *[1] * (like.dim() - 1))


class _Sums(torch.autograd.Function):
    """Tensors -> Σ|w| [T] and Σw² [T], in the order of the buckets."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.buckets = _buckets(tensors)
        stacks = [_stack(tensors, bucket) for bucket in ctx.buckets]
        ctx.save_for_backward(*stacks)
        flat = [stack.reshape(len(stack), -1) for stack in stacks]
        absolute = torch.cat([rows.abs().sum(1) for rows in flat])  # a 1-norm costs four times as much on a CPU
        norm = torch.cat([torch.linalg.vector_norm(rows, 2, dim=1) for rows in flat])
        return absolute, norm.square_()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_absolute: Tensor, grad_square: Tensor) -> tuple[Tensor, ...]:
        sizes = [len(bucket) for bucket in ctx.buckets]
        gradients: list[Tensor] = [grad_absolute] * sum(sizes)
        slopes = zip(grad_absolute.split(sizes), (2 * grad_square).split(sizes), strict=True)
        for bucket, stack, (slope, linear) in zip(ctx.buckets, ctx.saved_tensors, slopes, strict=True):
            gradient = stack.sign().mul_(_column(slope, stack)).addcmul_(stack, _column(linear, stack))
            for position, row in zip(bucket, gradient, strict=True):
                gradients[position] = row
        return tuple(gradients)


class _GroupSums(torch.autograd.Function):
    """Weights [O, I, ...] -> Σc [T], Σf [T] and Σw² [T], in the order of the buckets."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.buckets = _buckets(tensors)
        saved, channel_sums, filter_sums, squares = [], [], [], []
        for bucket in ctx.buckets:
            stack = _stack(tensors, bucket)  # [B, O, I, ...]
            square = stack.square().flatten(3).sum(3) if stack.dim() > 3 else stack.square()  # [B, O, I]
            filters = square.sum(2)  # [B, O]
            channels = square.sum(1).sqrt_()  # [B, I]
            squares.append(filters.sum(1))
            filters.sqrt_()
            channel_sums.append(channels.sum(1))
            filter_sums.append(filters.sum(1))
            saved += [stack, channels, filters]
        ctx.save_for_backward(*saved)
        return torch.cat(channel_sums), torch.cat(filter_sums), torch.cat(squares)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_channels: Tensor, grad_filters: Tensor, grad_square: Tensor) -> tuple[Tensor, ...]:
        gradients: list[Tensor] = [grad_square] * sum(len(bucket) for bucket in ctx.buckets)
        start = 0
        for number, bucket in enumerate(ctx.buckets):
            stack, channels, filters = ctx.saved_tensors[3 * number : 3 * number + 3]
            here = slice(start, start + len(bucket))
            start += len(bucket)
            # d c_i / dw = w / c_i within the group: all three sums scale each w by one number for its row and column.
            columns = grad_channels[here, None] * _inverse(channels)  # [B, I]
            rows = grad_filters[here, None] * _inverse(filters) + 2 * grad_square[here, None]  # [B, O]
            scale = rows[:, :, None] + columns[:, None, :]  # [B, O, I]
            gradient = scale.mul_(stack) if stack.dim() == 3 else stack * _trailing(scale, stack)
            for position, row in zip(bucket, gradient, strict=True):
                gradients[position] = row
        return tuple(gradients)


def _trailing(scale: Tensor, stack: Tensor) -> Tensor:
    """scale [B, O, I] with the kernel dimensions of stack [B, O, I, ...] added, each of size 1."""
    return scale.view(*scale.shape, *[1] * (stack.dim() - 3))


def _inverse(norms: Tensor) -> Tensor:
    """1 / norm, and 0 for a group of zeros, whose gradient is 0."""
    return torch.where(norms > 0, norms.reciprocal(), 0.0)


def _ratio(numerator: Tensor, denominator: Tensor, square_sum: Tensor) -> Tensor:
    """numerator / denominator, and 0 with a zero gradient for tensors of zeros."""
    alive = square_sum > _SQUARE_SUM_OF_ZERO
    return torch.where(alive, numerator / torch.where(alive, denominator, 1.0), 0.0)


def _norm(square_sum: Tensor) -> Tensor:
    """‖w‖ [T]; the root is taken away from 0, where its slope is infinite."""
    return square_sum.clamp_min(_SQUARE_SUM_OF_ZERO).sqrt()


# --- the regularisers, summed over tensors --------------------------------------------------------------------------


def _l1(tensors: Sequence[Tensor]) -> Tensor:
    absolute, _ = _Sums.apply(*tensors)
    return absolute.sum()


def _hoyer(tensors: Sequence[Tensor]) -> Tensor:
    absolute, square = _Sums.apply(*tensors)
    return _ratio(absolute, _norm(square), square).sum()


def _hoyer_square(tensors: Sequence[Tensor]) -> Tensor:
    absolute, square = _Sums.apply(*tensors)
    return _ratio(absolute.square(), square, square).sum()


def _transformed_l1(tensors: Sequence[Tensor]) -> Tensor:
    flat = torch.cat([tensor.flatten() for tensor in tensors]).abs()
    return (2 * flat / (1 + flat)).sum()


def _group_lasso(tensors: Sequence[Tensor]) -> Tensor:
    channels, filters, _ = _GroupSums.apply(*tensors)
    return (channels + filters).sum()


def _group_hoyer(tensors: Sequence[Tensor]) -> Tensor:
    channels, filters, square = _GroupSums.apply(*tensors)
    return _ratio(channels + filters, _norm(square), square).sum()


def _group_hoyer_square(tensors: Sequence[Tensor]) -> Tensor:
    channels, filters, square = _GroupSums.apply(*tensors)
    return _ratio(channels.square() + filters.square(), square, square).sum()


_OVER_TENSORS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "l1": _l1,
    "hoyer": _hoyer,
    "hoyer_square": _hoyer_square,
    "transformed_l1": _transformed_l1,
    "group_lasso": _group_lasso,
    "group_hoyer": _group_hoyer,
    "group_hoyer_square": _group_hoyer_square,
}


def penalty(tensors: Sequence[Tensor], regulariser: str) -> Tensor:
    """The sum of one of the REGULARISERS over the weight tensors of a network, a scalar.

    Equal to `sum(REGULARISERS[regulariser](w) for w in tensors)`, but tensors of one shape are worked on together, and
    the gradients are closed forms. The group regularisers take weights of two or more dimensions, [O, I, ...]. The
    result can be differentiated once. Raises KeyError for an unknown name, ValueError for no tensors, or for a group
    regulariser on a tensor without two dimensions.
    """
    if not tensors:
        raise ValueError(f"{regulariser} was asked for the sum over no tensors")
    if regulariser.startswith("group_"):
        for tensor in tensors:
            _check_groups(tensor)
    return _OVER_TENSORS[regulariser](tensors)


# --- over channels that are tied ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ties:
    """Which filters and input channels of the weights [O, I, ...] of a network can only go together.

    A side of a weight is its filters, or its input channels.
    """

    channels: Tensor
    """The channel of every filter, weight by weight, then of every input channel, likewise, int [n]."""
    reads: tuple[bool, ...]
    """Of each weight, whether its input channels are among them: not those of grouped convolutions."""
    members: Tensor
    """Of each channel, in how many sides it is, [channels]; at least 1."""
    free: Tensor
    """Channels that can go, once for each side that has them, int [n]."""
    side: Tensor
    """Which side that is, int [n]."""

    @classmethod
    def of(cls, rows: Sequence[Tensor], columns: Sequence[Tensor | None], can_go: Tensor) -> Ties:
        """`can_go` [channels] bool: not those of images and logits, for example."""
        sides = [*rows, *(column for column in columns if column is not None)]
        members = torch.bincount(torch.cat(sides), minlength=len(can_go)).clamp_min(1)
        free = [side[can_go[side]] for side in sides]
        sizes = torch.tensor([len(side) for side in free])
        numbers = torch.arange(len(sides)).repeat_interleave(sizes)
        return cls(torch.cat(sides), tuple(column is not None for column in columns), members, torch.cat(free), numbers)

    def to(self, device: torch.device) -> Ties:
        """The same, on a device."""
        moved = (part.to(device) for part in (self.members, self.free, self.side))
        return Ties(self.channels.to(device), self.reads, *moved)


def tied_penalty(tensors: Sequence[Tensor], ties: Ties, regulariser: str) -> Tensor:
    """A group regulariser over channels with all that writes and reads them, a scalar; g is the norm of a channel:

        group_lasso         Σ_sides Σg
        group_hoyer         Σ_sides Σg / √Σg²
        group_hoyer_square  Σ_sides (Σg)² / Σg²

    The paper takes f_j and c_i of each tensor by itself; g is the root of the mean square of those of all tensors that
    have the channel, each relative to its tensor's, √max(O, I) / ‖w‖ (for group_lasso as they are). So a channel gets
    small in all of them, and can go. Channels that cannot go have no part in the sums.

    Args:
        tensors: weights [O, I, ...].
        ties: of these tensors, on their device.
        regulariser: one of the above.
    """
    # Deviation: with the paper's, a channel of a residual stage is emptied in some layers, and stays as long as one
    # layer writes it.
    rows: dict[int, Tensor] = {}
    columns: dict[int, Tensor] = {}
    for bucket in _buckets(tensors):
        stack = torch.stack([tensors[position] for position in bucket])  # [B, O, I, ...]
        square = stack.square().flatten(3).sum(3) if stack.dim() > 3 else stack.square()  # [B, O, I]
        if regulariser != "group_lasso":
            whole = square.sum((1, 2), keepdim=True).clamp_min(_SQUARE_SUM_OF_ZERO)
            square = square * (max(square.shape[1:]) / whole)
        rows |= zip(bucket, square.sum(2).unbind(), strict=True)
        columns |= zip(bucket, square.sum(1).unbind(), strict=True)
    places = range(len(tensors))
    sides = [*(rows[place] for place in places), *(columns[place] for place in places if ties.reads[place])]
    mean = sides[0].new_zeros(len(ties.members)).index_add(0, ties.channels, torch.cat(sides)) / ties.members
    alive = mean > 0
    norms = torch.where(alive, torch.where(alive, mean, 1.0).sqrt(), 0.0)[ties.free]
    zeros = norms.new_zeros(len(sides))
    absolute, square = zeros.index_add(0, ties.side, norms), zeros.index_add(0, ties.side, norms.square())
    if regulariser == "group_lasso":
        return absolute.sum()
    if regulariser == "group_hoyer":
        return _ratio(absolute, _norm(square), square).sum()
    return _ratio(absolute.square(), square, square).sum()


# --- the regularisers of one tensor ---------------------------------------------------------------------------------


def l1(w: Tensor) -> Tensor:
    """Σ|w| of a tensor of any shape, a scalar."""
    return penalty([w], "l1")


def hoyer(w: Tensor) -> Tensor:
    """Σ|w| / ‖w‖ of a tensor of any shape, a scalar in [1, √n]; 0 for zeros. Equation 1."""
    return penalty([w], "hoyer")


def hoyer_square(w: Tensor) -> Tensor:
    """(Σ|w|)² / Σw² of a tensor of any shape, a scalar in [1, n]; 0 for zeros. Equation 3."""
    return penalty([w], "hoyer_square")


def transformed_l1(w: Tensor) -> Tensor:
    """Σ 2|w| / (1 + |w|) of a tensor of any shape, a scalar: the transformed L1 of the paper's comparison, a = 1."""
    return penalty([w], "transformed_l1")


def group_lasso(w: Tensor) -> Tensor:
    """Σc + Σf of a weight [O, I, ...], a scalar."""
    return penalty([w], "group_lasso")


def group_hoyer(w: Tensor) -> Tensor:
    """(Σc + Σf) / ‖w‖ of a weight [O, I, ...], a scalar; 0 for zeros."""
    return penalty([w], "group_hoyer")


def group_hoyer_square(w: Tensor) -> Tensor:
    """((Σc)² + (Σf)²) / Σw² of a weight [O, I, ...], a scalar; 0 for zeros. Equations 5 and 6."""
    return penalty([w], "group_hoyer_square")


ELEMENT_WISE: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": l1,
    "hoyer": hoyer,
    "hoyer_square": hoyer_square,
    "transformed_l1": transformed_l1,
}
STRUCTURAL: dict[str, Callable[[Tensor], Tensor]] = {
    "group_lasso": group_lasso,
    "group_hoyer": group_hoyer,
    "group_hoyer_square": group_hoyer_square,
}
REGULARISERS: dict[str, Callable[[Tensor], Tensor]] = ELEMENT_WISE | STRUCTURAL


def trimming_threshold(w: Tensor) -> float:
    """Σw² / Σ|w|: gradient descent on hoyer_square shrinks exactly the weights below it. 0 for zeros. Section 3.2."""
    absolute = w.detach().abs().sum()
    return float(w.detach().square().sum() / absolute) if absolute > 0 else 0.0


# --- pruning rules --------------------------------------------------------------------------------------------------


def std_threshold(w: Tensor, factor: float) -> float:
    """factor · std(w), over all elements of the tensor (the authors' rule for the LeNets; population std)."""
    return factor * float(w.detach().std(correction=0))


def rms_threshold(w: Tensor, factor: float) -> float:
    """factor · ‖w‖ / √max(O, I) for w [O, I, ...]: the root mean square of the norms of filters or of input channels,
    whichever are more, hence smaller. For a factor below 1, some filter and some channel are above it."""
    _check_groups(w)
    return factor * float(torch.linalg.vector_norm(w.detach())) / max(w.shape[:2]) ** 0.5


def element_mask(w: Tensor, threshold: float) -> Tensor:
    """True, in the shape of w, where |w| is above the threshold: what is kept."""
    return w.detach().abs() > threshold


def filter_norms(w: Tensor) -> Tensor:
    """f [O]: L2 norm of every filter w[j] of a convolution, or row of a linear weight. w is [O, I, ...]."""
    _check_groups(w)
    return torch.linalg.vector_norm(w.detach().flatten(1), dim=1)


def channel_norms(w: Tensor) -> Tensor:
    """c [I]: L2 norm of every input channel w[:, i] of a convolution, or column of a linear weight."""
    _check_groups(w)
    return torch.linalg.vector_norm(w.detach().transpose(0, 1).flatten(1), dim=1)


def group_mask(w: Tensor, threshold: float, round_to: int = 1) -> Tensor:
    """True, in the shape of w [O, I, ...], where filter and input channel both have a norm above the threshold.

    The norms are those of the tensor as it was trained: cutting a filter does not change which channels are kept. Of
    the others so many are kept, the largest first, that filters and channels are multiples of `round_to`, or all.
    """
    # Deviation: the authors cut element by element after training with a group regulariser. Here a group is kept or
    # cut as a whole, which is what a smaller dense network can use.
    filters, channels = (_kept_groups(norms, threshold, round_to) for norms in (filter_norms(w), channel_norms(w)))
    kept = filters[:, None] & channels[None, :]  # [O, I]
    return kept.view(*kept.shape, *[1] * (w.dim() - 2)).expand_as(w)


def _kept_groups(norms: Tensor, threshold: float, round_to: int) -> Tensor:
    """True where a norm is above the threshold, or among the next largest up to a multiple of `round_to`."""
    kept = norms > threshold
    count = int(kept.sum())
    rounded = min(count + -count % round_to, len(norms))
    return kept.index_fill(0, norms.topk(rounded).indices, True)


def _check_groups(w: Tensor) -> None:
    if w.dim() < 2:
        raise ValueError(f"a weight of shape {tuple(w.shape)} has no filters and input channels: [O, I, ...] is needed")
