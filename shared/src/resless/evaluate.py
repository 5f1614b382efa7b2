"""Exact accuracy of any `forward(x) -> logits` over any number of processes; and `resless-eval`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from resless.config import EvalConfig
from resless.errors import InputError

MACS_IMAGES = 64
Key = TypeVar("Key")


class Shares(Protocol):
    """This process's share of the images of a data set, of which there are `num_images` over all processes."""

    num_images: int

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on `images` images. `top1` and `top5` are fractions; `loss` is the mean cross-entropy in nats."""

    top1: float
    top5: float
    loss: float
    images: int


def evaluate(model: nn.Module, batches: Shares, accelerator: Accelerator) -> Evaluation:
    """Evaluate in eval mode, every image exactly once; the mode of the model is put back afterwards.

    Args:
        model: images [n, C, H, W] -> logits [n, classes], on the accelerator's device.
        batches: this process's share of the images; over all processes each image occurs once.
        accelerator: sums over the processes.

    Raises:
        InputError: the loss is not finite.
        RuntimeError: the processes together did not see each image once.
    """
    return evaluate_each(model, {"": model}, batches, accelerator)[""]


@torch.inference_mode()
def evaluate_each(
    model: nn.Module,
    forwards: Mapping[Key, Callable[[torch.Tensor], torch.Tensor]],
    batches: Shares,
    accelerator: Accelerator,
) -> dict[Key, Evaluation]:
    """`evaluate` of several ways to run one model, in one pass over the images.

    Args:
        model: what is in eval mode meanwhile.
        forwards: functions of images [n, C, H, W] that give logits [n, classes].
        batches, accelerator: as of `evaluate`, which says what is raised, too.
    """
    average_buffers(model, accelerator)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    # Columns: correct among the first, correct among the first five, sum of losses, images. In float64, so that
    # counts stay exact and sums hardly depend on how the images were shared out.
    sums = torch.zeros(len(forwards), 4, dtype=torch.float64, device=accelerator.device)
    for images, labels in batches:
        for row, forward in zip(sums, forwards.values(), strict=True):
            with accelerator.autocast():
                logits = forward(images)
            row += _row_sums(logits.float(), labels).sum(dim=0)
    for module, training in modes.items():
        module.training = training
    rows = accelerator.reduce(sums, reduction="sum").tolist()
    return {name: _evaluation(row, batches.num_images) for name, row in zip(forwards, rows, strict=True)}


def _evaluation(sums: Sequence[float], num_images: int) -> Evaluation:
    top1, top5, loss, seen = sums
    if int(seen) != num_images:
        raise RuntimeError(f"evaluated {int(seen)} images, but the data set has {num_images}")
    if not math.isfinite(loss):
        raise InputError(f"the loss on {int(seen)} images is not finite: the network's outputs overflow")
    return Evaluation(top1 / seen, top5 / seen, loss / seen, int(seen))


def _row_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[n, 4] float64, a row an image: right at first, right among the first five, loss, 1."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    losses = F.cross_entropy(logits, labels, reduction="none")
    columns = (hits[:, 0], hits.any(dim=1), losses, torch.ones_like(losses))
    return torch.stack([column.double() for column in columns], dim=1)


@torch.no_grad()
def average_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their floating-point buffers (BatchNorm's running statistics).

    Each process tracks the statistics of its own images; without this, each would evaluate another network.
    """
    if accelerator.num_processes == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(accelerator.reduce(buffer, reduction="mean"))


def main(config: EvalConfig) -> Evaluation:
    """What `resless-eval` does: print and optionally write accuracy, parameters and MACs of one network."""
    from resless import costs, models, weights  # the loops need only the functions above
    from resless.data.pipeline import Pipeline, Shards, check_fit
    from resless.report import table
    from resless.run import accelerator as new_accelerator

    accelerator = new_accelerator(config.mixed_precision)
    shards = Shards.of(accelerator, config.channels_last)
    preprocessing = {} if config.weights else weights.read_config(config.model)["preprocessing"]
    if config.mean is not None:
        preprocessing = preprocessing | {"mean": config.mean, "std": config.std}
    data = Pipeline(config.data, seed=0, shards=shards, preprocessing=preprocessing)
    images = data.train if config.split == "train" else data.test
    if config.weights is None:
        model = weights.from_pretrained(config.model)
        check_fit(model, images)
    else:
        model = models.create_for(config.model, images, shortcut=config.shortcut)
        weights.load(model, config.weights)
    batches = data.evaluation(images, config.batch_size)
    # Of real images, on average: what a network executes may depend on them.
    blank = torch.zeros(1, *images.image_shape)  # for a process without any image
    some = next(iter(batches), (blank,))[0][:MACS_IMAGES].cpu()
    cost = {"parameters": costs.count_parameters(model), "macs": round(costs.macs(model, some) / len(some))}
    model = accelerator.prepare(model.to(memory_format=torch.channels_last) if config.channels_last else model)
    result = evaluate(model, batches, accelerator)
    if accelerator.is_main_process:
        row = [f"{result.images:,}", f"{100 * result.top1:.2f}", f"{100 * result.top5:.2f}", f"{result.loss:.4f}"]
        costs_row = [f"{cost['parameters']:,}", f"{cost['macs']:,}"]
        columns = [f"{config.split} images", "top-1 %", "top-5 %", "loss", "parameters", "MACs"]
        table(config.weights or config.model, columns, [row + costs_row])
        if config.output is not None:
            Path(config.output).write_text(json.dumps(asdict(result) | cost, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    from resless.cli import evaluate as script

    script()
