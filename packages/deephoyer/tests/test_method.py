"""The regularisers against their formulas and finite differences, their zeros, and the pruning rules."""

from __future__ import annotations

import math

import pytest
import torch
from deephoyer import method

ELEMENT_WISE = ["l1", "hoyer", "hoyer_square", "transformed_l1"]
STRUCTURAL = ["group_lasso", "group_hoyer", "group_hoyer_square"]
SCALE_INVARIANT = ["hoyer", "hoyer_square", "group_hoyer", "group_hoyer_square"]


def weight(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def expected(name: str, w: torch.Tensor) -> float:
    """The formula of the paper, number by number, without tensors."""
    values = w.flatten().tolist()
    absolute = sum(abs(v) for v in values)
    square = sum(v * v for v in values)
    if name == "l1":
        return absolute
    if name == "hoyer":
        return absolute / math.sqrt(square)
    if name == "hoyer_square":
        return absolute**2 / square
    if name == "transformed_l1":
        return sum(2 * abs(v) / (1 + abs(v)) for v in values)
    filters = sum(math.sqrt(sum(v * v for v in w[j].flatten().tolist())) for j in range(w.shape[0]))
    channels = sum(math.sqrt(sum(v * v for v in w[:, i].flatten().tolist())) for i in range(w.shape[1]))
    if name == "group_lasso":
        return channels + filters
    if name == "group_hoyer":
        return (channels + filters) / math.sqrt(square)
    return (channels**2 + filters**2) / square


def gradient(name: str, w: torch.Tensor) -> torch.Tensor:
    w = w.clone().requires_grad_()
    method.REGULARISERS[name](w).backward()
    assert w.grad is not None
    return w.grad


def test_there_are_seven_regularisers() -> None:
    assert list(method.ELEMENT_WISE) == ELEMENT_WISE
    assert list(method.STRUCTURAL) == STRUCTURAL
    assert list(method.REGULARISERS) == ELEMENT_WISE + STRUCTURAL


@pytest.mark.parametrize("shape", [(4, 3), (5, 1), (4, 3, 2, 2), (1, 3, 3, 1)])
@pytest.mark.parametrize("name", ELEMENT_WISE + STRUCTURAL)
def test_value_is_the_papers_formula(name: str, shape: tuple[int, ...]) -> None:
    w = weight(*shape)
    value = method.REGULARISERS[name](w)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected(name, w), rel=1e-12)


def test_values_of_a_small_matrix_worked_out_by_hand() -> None:
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)  # one row of norm 5, columns of norms 3 and 4
    values = {name: function(w).item() for name, function in method.REGULARISERS.items()}
    assert values == pytest.approx(
        {
            "l1": 7.0,
            "hoyer": 7 / 5,
            "hoyer_square": 49 / 25,
            "transformed_l1": 6 / 4 + 8 / 5,
            "group_lasso": 7 + 5,
            "group_hoyer": (7 + 5) / 5,
            "group_hoyer_square": (49 + 25) / 25,
        }
    )


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 2)])
@pytest.mark.parametrize("name", ELEMENT_WISE + STRUCTURAL)
def test_gradient_equals_finite_differences(name: str, shape: tuple[int, ...]) -> None:
    w = weight(*shape, seed=1)
    step, found = 1e-6, torch.empty_like(w)
    for position in range(w.numel()):
        shift = torch.zeros(w.numel(), dtype=w.dtype)
        shift[position] = step
        up, down = w + shift.view_as(w), w - shift.view_as(w)
        found.view(-1)[position] = (expected(name, up) - expected(name, down)) / (2 * step)
    torch.testing.assert_close(gradient(name, w), found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ELEMENT_WISE)
@pytest.mark.parametrize("shape", [(7,), ()])
def test_element_wise_regularisers_take_biases_and_scalars(name: str, shape: tuple[int, ...]) -> None:
    w = weight(*shape)
    assert method.REGULARISERS[name](w).item() == pytest.approx(expected(name, w))
    assert gradient(name, w).shape == w.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e-20])
@pytest.mark.parametrize("name", ELEMENT_WISE + STRUCTURAL)
def test_zeros_and_almost_zeros_give_finite_values_and_gradients(name: str, size: float, dtype: torch.dtype) -> None:
    w = weight(6, 5, 2, 2, dtype=dtype) * size
    value, slope = method.REGULARISERS[name](w), gradient(name, w)
    assert torch.isfinite(value)
    assert torch.isfinite(slope).all()
    if size == 0:
        assert value == 0
        assert (slope == 0).all()


@pytest.mark.parametrize("name", ELEMENT_WISE + STRUCTURAL)
def test_a_group_of_zeros_gets_no_gradient_and_the_others_get_theirs(name: str) -> None:
    w = weight(4, 3, 2, 2)
    w[1], w[:, 2] = 0, 0
    slope = gradient(name, w)
    assert (slope[1] == 0).all()
    assert (slope[:, 2] == 0).all()
    without = w[[0, 2, 3]][:, :2]
    torch.testing.assert_close(slope[[0, 2, 3]][:, :2], gradient(name, without))


@pytest.mark.parametrize("name", SCALE_INVARIANT)
def test_hoyer_forms_do_not_depend_on_scale(name: str) -> None:
    w = weight(5, 4)
    assert method.REGULARISERS[name](7.5 * w).item() == pytest.approx(method.REGULARISERS[name](w).item())
    assert (gradient(name, w) * w).sum().item() == pytest.approx(0, abs=1e-12)  # no pull along w itself


def test_hoyer_square_counts_the_nonzero_weights_of_equal_size() -> None:
    w = torch.zeros(10, 10, dtype=torch.float64)
    w[:3, :5] = torch.tensor([0.2, -0.2, 0.2, -0.2, 0.2])
    assert method.hoyer_square(w).item() == pytest.approx(15)
    assert method.group_hoyer_square(w).item() == pytest.approx(5**2 * 3 / 15 + 3**2 * 5 / 15)


def test_hoyer_square_shrinks_exactly_the_weights_below_the_trimming_threshold() -> None:
    w = weight(20, 30, seed=2)
    threshold = method.trimming_threshold(w)
    assert threshold == pytest.approx((w**2).sum().item() / w.abs().sum().item())
    shrinks = gradient("hoyer_square", w) * w.sign() > 0  # a descent step moves w towards zero
    assert torch.equal(shrinks, w.abs() < threshold)
    assert 0 < shrinks.sum() < w.numel()
    assert method.trimming_threshold(torch.zeros(3)) == 0


@pytest.mark.parametrize("name", ELEMENT_WISE + STRUCTURAL)
def test_penalty_of_a_network_equals_the_sum_over_its_tensors(name: str) -> None:
    shapes = [(4, 3, 2, 2), (5, 4), (4, 3, 2, 2), (4, 3), (5, 4), (4, 3, 2, 2), (6, 5, 1)]
    together = [weight(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    with torch.no_grad():
        together[2].zero_()
    apart = [w.detach().clone().requires_grad_() for w in together]
    strengths = torch.tensor(0.3, dtype=torch.float64)
    value = method.penalty(together, name)
    loop = sum(method.REGULARISERS[name](w) for w in apart)
    (strengths * value).backward()
    (strengths * loop).backward()
    torch.testing.assert_close(value, loop)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("name", ELEMENT_WISE + STRUCTURAL)
def test_penalty_follows_memory_layout_and_leaves_frozen_tensors_alone(name: str) -> None:
    w = weight(4, 3, 2, 2)
    layout = w.to(memory_format=torch.channels_last).requires_grad_()
    frozen = weight(4, 3, 2, 2, seed=1)
    method.penalty([layout, frozen], name).backward()
    torch.testing.assert_close(layout.grad, gradient(name, w))
    assert frozen.grad is None


def test_penalty_refuses_what_it_cannot_sum() -> None:
    with pytest.raises(ValueError, match="no tensors"):
        method.penalty([], "hoyer_square")
    with pytest.raises(ValueError, match=r"\(3,\) has no filters"):
        method.penalty([weight(2, 2), weight(3)], "group_lasso")
    with pytest.raises(KeyError):
        method.penalty([weight(2, 2)], "hoyer_cube")


def test_std_threshold_is_a_factor_of_the_population_deviation() -> None:
    w = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    assert method.std_threshold(w, 0.5) == pytest.approx(0.5 * math.sqrt((1 + 1 + 9 + 9) / 4))
    assert method.std_threshold(torch.tensor([2.0]), 0.5) == 0  # a tensor of one value has no spread and loses nothing


def test_element_mask_keeps_what_is_above_the_threshold() -> None:
    w = torch.tensor([[0.5, -0.5, 0.1], [-0.7, 0.0, 0.49]])
    assert method.element_mask(w, 0.49).tolist() == [[True, True, False], [True, False, False]]
    assert method.element_mask(w, 0.0).tolist() == [[True, True, True], [True, False, True]]


def test_group_norms_are_those_of_filters_and_input_channels() -> None:
    w = weight(4, 3, 2, 2)
    filters, channels = method.filter_norms(w), method.channel_norms(w)
    assert filters.tolist() == pytest.approx([w[j].norm().item() for j in range(4)])
    assert channels.tolist() == pytest.approx([w[:, i].norm().item() for i in range(3)])
    with pytest.raises(ValueError, match="has no filters"):
        method.filter_norms(weight(3))


@pytest.mark.parametrize("kernel", [(), (2, 2)])
def test_group_mask_keeps_a_weight_if_both_its_filter_and_its_channel_are_kept(kernel: tuple[int, ...]) -> None:
    w = torch.ones(4, 3, *kernel)
    w[1], w[:, 2] = 0.01, 0.01
    mask = method.group_mask(w, 0.1)
    assert mask.shape == w.shape
    kept = [[True, True, False], [False, False, False], [True, True, False], [True, True, False]]
    assert mask.reshape(4, 3, -1).all(2).tolist() == kept
    assert mask.sum() == 3 * 2 * math.prod(kernel)
