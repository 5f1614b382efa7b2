"""Exact accuracy of any `forward(x) -> logits` over any number of processes; and `resless-eval`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from resless.config import EvalConfig, check_choices
from resless.errors import InputError
from resless.files import write_text
from resless.modes import in_eval_mode

if TYPE_CHECKING:
    from resless.data import Images, Stream

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


class Confusion:
    """How often images of each class are taken for each: `counts` [class, predicted class], int64.

    The counts are those of one process until `evaluate` has summed them. Images on the diagonal are right at first.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count images of logits [n, classes] and labels [n]."""
        cells = labels * len(self.counts) + _ranked(logits)[:, 0]
        self.counts += torch.bincount(cells, minlength=self.counts.numel()).view_as(self.counts)


def evaluate(
    model: nn.Module, batches: Shares, accelerator: Accelerator, confusion: Confusion | None = None
) -> Evaluation:
    """Evaluate in eval mode, every image exactly once; the mode of the model is put back afterwards.

    Args:
        model: images [n, C, H, W] -> logits [n, classes], on the accelerator's device.
        batches: this process's share of the images; over all processes each image occurs once.
        accelerator: sums over the processes.
        confusion: empty; holds the counts of all images afterwards, on every process.

    Raises:
        InputError: the loss is not finite.
        RuntimeError: the processes together did not see each image once.
    """
    found = evaluate_each(model, {"": model}, batches, accelerator, {} if confusion is None else {"": confusion})
    return found[""]


@torch.inference_mode()
def evaluate_each(
    model: nn.Module,
    forwards: Mapping[Key, Callable[[torch.Tensor], torch.Tensor]],
    batches: Shares,
    accelerator: Accelerator,
    confusions: Mapping[Key, Confusion] | None = None,
) -> dict[Key, Evaluation]:
    """`evaluate` of several ways to run one model, in one pass over the images.

    Args:
        model: what is in eval mode meanwhile.
        forwards: functions of images [n, C, H, W] that give logits [n, classes].
        batches, accelerator: as of `evaluate`, which says what is raised, too.
        confusions: of those ways of which they are wanted, as of `evaluate`.
    """
    confusions = confusions or {}
    average_buffers(model, accelerator)
    # Columns: correct among the first, correct among the first five, sum of losses, images. In float64, so that
    # counts stay exact and sums hardly depend on how the images were shared out.
    sums = torch.zeros(len(forwards), 4, dtype=torch.float64, device=accelerator.device)
    with in_eval_mode(model):
        for images, labels in batches:
            for row, (name, forward) in zip(sums, forwards.items(), strict=True):
                with accelerator.autocast():
                    logits = forward(images)
                row += _row_sums(logits.float(), labels).sum(dim=0)
                if name in confusions:
                    confusions[name].add(logits.float(), labels)
    for confusion in confusions.values():
        confusion.counts = accelerator.reduce(confusion.counts, reduction="sum")
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
    hits = _ranked(logits) == labels[:, None]
    losses = F.cross_entropy(logits, labels, reduction="none")
    columns = (hits[:, 0], hits.any(dim=1), losses, torch.ones_like(losses))
    return torch.stack([column.double() for column in columns], dim=1)


def _ranked(logits: torch.Tensor) -> torch.Tensor:
    """The classes of the five largest logits of each image, int64 [n, 5], fewer if there are fewer."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


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
    from resless import costs, report  # the loops need only the functions above
    from resless.calibrate import calibration_batches, recalibrate
    from resless.data.pipeline import Pipeline
    from resless.data.shards import Shards
    from resless.run import accelerator as new_accelerator

    check_choices(config)
    accelerator = new_accelerator(config.mixed_precision)
    shards = Shards.of(accelerator, config.channels_last)
    data = Pipeline(config.data, 0, shards, *_expected(config))
    images = data.train if config.split == "train" else data.test
    model = _network(config, images)
    batches = data.evaluation(images, config.batch_size)
    # Of real images, on average: what a network executes may depend on them.
    blank = torch.zeros(1, *images.image_shape)  # for a process without any image
    some = next(iter(batches), (blank,))[0][:MACS_IMAGES].cpu()
    cost = {"parameters": costs.count_parameters(model), "macs": round(costs.macs(model, some) / len(some))}
    model = accelerator.prepare(model.to(memory_format=torch.channels_last) if config.channels_last else model)
    if config.recalibrate_bn:
        drawn = calibration_batches(data, config.recalibrate_bn, config.batch_size)
        recalibrate(accelerator.unwrap_model(model), drawn, accelerator)
    confusion = None if config.confusion_matrix is None else Confusion(images.num_classes, accelerator.device)
    result = evaluate(model, batches, accelerator, confusion)
    if accelerator.is_main_process:
        row = [f"{result.images:,}", f"{100 * result.top1:.2f}", f"{100 * result.top5:.2f}", f"{result.loss:.4f}"]
        costs_row = [f"{cost['parameters']:,}", f"{cost['macs']:,}"]
        columns = [f"{config.split} images", "top-1 %", "top-5 %", "loss", "parameters", "MACs"]
        report.table(config.weights or config.model, columns, [row + costs_row])
        written = asdict(result) | cost
        if confusion is not None:
            counts = confusion.counts.cpu()
            report.confusion_matrix(counts.numpy(), images.class_names, Path(str(config.confusion_matrix)))
            written["confusion"] = counts.tolist()
        if config.output is not None:
            write_text(Path(config.output), json.dumps(written, indent=1) + "\n")
            print(f"wrote {config.output}")
    return result


def _expected(config: EvalConfig) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """What the network expects of its images, as its folder has it but for what is given, and calls their classes."""
    from resless import weights

    given = {} if config.mean is None else {"mean": config.mean, "std": config.std}
    if config.weights is not None:
        return given, None
    config.network.check_left_out("--model", config.model)
    recorded = weights.read_config(config.model)["preprocessing"]  # refuses what is no model folder
    return recorded | given, weights.class_names_of(config.model)


def _network(config: EvalConfig, images: Images | Stream) -> nn.Module:
    """The network of the model folder; or that which `--model` names, for these images, with the weights of a file.

    Raises:
        InputError: there is none, or it does not fit the images or the weights.
    """
    from resless import models, weights
    from resless.calibrate import check_recalibration
    from resless.data.pipeline import check_fit

    if config.weights is None:
        model = weights.from_pretrained(config.model)
        check_fit(model, images)
    else:
        model = models.create_for(config.model, images, **config.network.given())
        weights.load(model, config.weights)
    check_recalibration(model, config.recalibrate_bn, config.model)
    return model


if __name__ == "__main__":
    from resless.cli import evaluate as script

    script()
