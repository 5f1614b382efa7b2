"""The plain network of the blocks that are left; and `epsilon-resnet-compress`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from resless import costs, latency, models, weights
from resless.data.pipeline import Pipeline, check_fit
from resless.data.shards import Shards
from resless.errors import InputError
from resless.evaluate import evaluate
from resless.models.blocks import ResidualBlock
from resless.models.folded import check_unfolded
from resless.report import table
from resless.run import accelerator as new_accelerator
from torch import Tensor, nn

from epsilon_resnet import loading, method
from epsilon_resnet.config import CompressConfig
from epsilon_resnet.model import EpsilonResNet

WEIGHT_BOUND = CompressConfig.weight_bound


@dataclass(frozen=True)
class Block:
    """Why a block is dropped, or not."""

    block: int
    """Counted from 0 in order of execution."""
    stage: int
    """Counted from 1."""
    discarded: float
    """Moving average of the indicator that it was discarded, 0..1."""
    size: float
    """Of its weights, as a part of that at initialisation, see `method.relative_size`."""
    retired: bool
    """Whether training called it gone, by its own bound, and stopped computing it."""

    @property
    def is_discarded(self) -> bool:
        """Whether the network in eval mode leaves it out."""
        return method.mostly(self.discarded)

    def is_gone(self, weight_bound: float) -> bool:
        """Whether training says so, or it was discarded in all of the last steps, and its weights have decayed."""
        return self.retired or (self.discarded >= method.DISCARDED and self.size < weight_bound)


def blocks_of(model: EpsilonResNet) -> list[Block]:
    """What is known of each block."""
    stages = (stage for stage, layer in enumerate(model.resnet.stages(), 1) for _ in layer)
    sizes = method.relative_sizes(model.resnet.blocks())
    columns = (stages, model.discarded.tolist(), sizes, model.retired.tolist())
    return [Block(index, *row) for index, row in enumerate(zip(*columns, strict=True))]


def undecayed(blocks: Sequence[Block], weight_bound: float = WEIGHT_BOUND) -> list[Block]:
    """The blocks that are discarded, but not gone: those that only `force` drops."""
    return [block for block in blocks if block.is_discarded and not block.is_gone(weight_bound)]


def compress(model: nn.Module, *, weight_bound: float = WEIGHT_BOUND, force: bool = False) -> nn.Module:
    """The plain pre-activation ResNet of the blocks that are not gone: no gates, no side head; in eval mode.

    Its outputs are those of `model` in eval mode. Of a stage's first block its shortcut stays.

    Args:
        model: an `EpsilonResNet`; it is not changed.
        weight_bound: see `Block.is_gone`.
        force: drop blocks, too, that are discarded but have not decayed.

    Raises:
        InputError: another kind of network; or blocks that are discarded, but have not decayed (without `force`).
    """
    model = gated(model)
    blocks = blocks_of(model)
    if (left := undecayed(blocks, weight_bound)) and not force:
        raise InputError(_refusal(left, weight_bound))
    return without(model, [block.block for block in blocks if block.is_discarded])


def gated(model: nn.Module) -> EpsilonResNet:
    """The network, if it is one of epsilon-resnet-train; InputError otherwise."""
    check_unfolded(model, "compressed")
    if not isinstance(model, EpsilonResNet):
        raise InputError(f"a network of epsilon-resnet-train is needed, but this is a {type(model).__name__}")
    return model


def without(model: EpsilonResNet, dropped: list[int]) -> nn.Module:
    """The plain network without these blocks, in eval mode."""
    kept = tuple(index for index in range(model.num_blocks) if index not in dropped)
    spec = models.spec_of(model.resnet)
    plain = models.build(replace(spec, options=spec.options | {"kept_blocks": kept}))
    state = model.resnet.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain.to(model.discarded.device).eval()


def _refusal(left: list[Block], weight_bound: float) -> str:
    listed = ", ".join(
        f"{block.block} (in {100 * block.discarded:.3g} % of its last steps, weights at {100 * block.size:.3g} %)"
        for block in left
    )
    return (
        f"discarded, but not gone for good: block{'s' if len(left) > 1 else ''} {listed}, where all steps and "
        f"weights under {100 * weight_bound:g} % of their size at initialisation are asked for: train on, raise "
        "--weight-bound, or drop all that is discarded with --force"
    )


def main(config: CompressConfig) -> None:
    """What `epsilon-resnet-compress` does: write the smaller network, compare sizes, and time both.

    Raises:
        InputError: no such network; blocks that have not decayed, without --force; no discarded block, without
            --allow-none.
    """
    output = Path(config.output) if config.output is not None else loading.compressed_folder(config.model)
    weights.check_target(output, config.overwrite)
    network, known = loading.trained(config.model, config.step)
    model = gated(network)
    dropped = [block for block in blocks_of(model) if block.is_discarded]
    if not dropped:
        sentence = f"no block of {config.model} is discarded: there is nothing to drop, and nothing was written"
        if not config.allow_none:
            raise InputError(f"{sentence}; train longer, or with a larger --epsilon (--allow-none: exit code 0)")
        print(sentence)
        return
    if known["image_shape"] is None:
        raise InputError(f"{config.model} does not tell the size of its images: save it again with an `example`")
    small = compress(model, weight_bound=config.weight_bound, force=config.force)
    metrics = {name: value for name, value in known["metrics"].items() if name in ("images", "top1", "top5", "loss")}
    if forced := [block.block for block in undecayed(dropped, config.weight_bound)]:
        running = without(model, [block.block for block in dropped if block.block not in forced])
        metrics |= _accuracies({"before": running, "after": small}, known, config)
    example = torch.zeros(1, *known["image_shape"])
    weights.save_pretrained(
        small,
        output,
        preprocessing=known["preprocessing"],
        metrics=metrics | {"dropped": [asdict(block) | {"why": why(block, config.weight_bound)} for block in dropped]},
        description=f"The plain network of the {model.num_blocks - len(dropped)} blocks that ε-ResNet (ε = "
        f"{model.epsilon:g}) left of {model.num_blocks}; `dropped` says which are gone, and why.",
        example=example,
        class_names=known["class_names"],
        overwrite=config.overwrite,
    )
    networks = {"all blocks": without(model, []), "compressed": small}
    _print_sizes(networks, output, example)
    if config.repeats:
        latency.show(networks, known["image_shape"], (1, config.batch_size), config.repeats)


def why(block: Block, weight_bound: float) -> str:
    """Why a block was dropped."""
    if block.retired:
        return "discarded: training stopped computing it"
    if block.is_gone(weight_bound):
        return f"discarded in all of the last steps, weights under {100 * weight_bound:g} % of their initial size"
    return "discarded, but not decayed: dropped with --force"


def _accuracies(networks: dict[str, nn.Module], known: dict[str, Any], config: CompressConfig) -> dict[str, Any]:
    """Accuracy on the test images with the undecayed blocks running, and without them."""
    accelerator = new_accelerator("no")
    data = Pipeline(config.data, 0, Shards.of(accelerator, False), known["preprocessing"], known["class_names"])
    found = {}
    for name, network in networks.items():
        check_fit(network, data.test)
        batches = data.evaluation(data.test, config.batch_size)
        found[name] = evaluate(network.to(accelerator.device), batches, accelerator)
    before, after = found["before"], found["after"]
    print(
        f"error on {after.images:,} test images: {100 * (1 - before.top1):.2f} % with the blocks that have not decayed "
        f"running, {100 * (1 - after.top1):.2f} % without them"
    )
    networks["after"].cpu()
    return asdict(after) | {"top1_before_forcing": before.top1}


def _print_sizes(networks: dict[str, nn.Module], output: Path, example: Tensor) -> None:
    rows = [
        [name, f"{_residuals(network)}", f"{costs.count_parameters(network):,}", f"{costs.macs(network, example):,}"]
        for name, network in networks.items()
    ]
    table(f"wrote {output}", ["network", "blocks", "parameters", "MACs"], rows)


def _residuals(network: nn.Module) -> int:
    return sum(isinstance(block, ResidualBlock) for block in network.blocks())  # type: ignore[operator]


if __name__ == "__main__":
    from epsilon_resnet.cli import compress as script

    script()
