"""Trained networks: the model folder of a finished run, or a checkpoint of any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from resless import checkpoint, models, weights
from resless.errors import InputError
from resless.files import read_json
from torch import nn

BLOCKS, NETWORK = "blocks.json", "network.json"
"""What a run folder tells of its blocks, epoch by epoch; and of its network, to read checkpoints with."""


def model_folder(path: str) -> Path:
    """The model folder that a path stands for: itself, one in a run folder, or the folder of a config.json.

    Raises:
        InputError: a run folder without a model, since the run has not ended.
    """
    folder = Path(path)
    if folder.name == weights.CONFIG_NAME:
        return folder.parent
    if (folder / "model").is_dir():
        return folder / "model"
    if (folder / "checkpoints").is_dir():
        raise InputError(
            f"{folder} is the folder of a run that has not ended: go on with it (--resume auto), or give the --step of "
            f"a checkpoint: there is {_listed(_checkpoints(folder))}"
        )
    return folder


def trained(path: str, step: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A network in eval mode; `preprocessing`, `metrics`, `image_shape` and `class_names` of what it was trained on.

    Args:
        path: see `model_folder`.
        step: the step whose checkpoint to take from a run folder; None takes the model folder.

    Raises:
        InputError: there is no such network, or it is damaged.
    """
    if step is not None:
        return _from_checkpoint(Path(path), step)
    folder = model_folder(path)
    model, config = weights.from_pretrained(folder), weights.read_config(folder)
    kept = {"preprocessing": config["preprocessing"], "metrics": config["metrics"]}
    return model, {**kept, "image_shape": config["costs"].get("image_shape"), "class_names": config.get("class_names")}


def compressed_folder(path: str) -> Path:
    """Where a network's compression goes if nothing else is said: into the run folder, or beside the model folder."""
    folder = Path(path)
    is_run = (folder / "model").is_dir() or (folder / "checkpoints").is_dir()
    return (folder if is_run else model_folder(path).parent) / "compressed"


def _from_checkpoint(run: Path, step: int) -> tuple[nn.Module, dict[str, Any]]:
    found = _checkpoints(run)
    if not found:
        raise InputError(
            f"--step is {step}, but {run} has no checkpoints: give the folder of a run, or leave --step out"
        )
    if step not in found:
        raise InputError(f"--step is {step}, but {run} has checkpoints of {_listed(found)}")
    described = read_json(run / NETWORK, dict)
    try:
        spec = models.Spec(**described["model"])
        kept = {name: described[name] for name in ("preprocessing", "image_shape")}
    except (KeyError, TypeError) as error:
        raise InputError(f"{run / NETWORK} is damaged: {error}") from error
    shared, _ = checkpoint.load(found[step], rank=0)
    model = models.build(spec)
    try:
        model.load_state_dict(shared["model"])
    except RuntimeError as error:
        raise InputError(f"checkpoint {found[step]} is of another network: {' '.join(str(error).split())}") from error
    _average_buffers(model, found[step])
    return model.eval(), {**kept, "class_names": described.get("class_names"), "metrics": {}}


def _average_buffers(model: nn.Module, folder: Path) -> None:
    """Batch norms' statistics are those of each process's images: take their mean, as evaluation does."""
    ranks = [checkpoint.load(folder, rank=rank)[1] for rank in range(len(list(folder.glob("rank_*.pt"))))]
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.stack([own["buffers"][name] for own in ranks]).mean(dim=0))


def _checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by their step."""
    found = {}
    for folder in reversed(checkpoint.find(run / "checkpoints")):
        if wrong := checkpoint.damage(folder):
            raise InputError(f"checkpoint {folder} is damaged: {wrong}; remove it to take another one")
        _, own = checkpoint.load(folder, rank=0)
        if "blocks" not in own["extra"]:
            raise InputError(f"{run} is no run of epsilon-resnet-train")
        found[own["extra"]["blocks"]["steps"]] = folder
    return found


def _listed(found: dict[int, Path]) -> str:
    """The steps; of more than eight, the first four and the last four."""
    steps = [str(step) for step in sorted(found)]
    if len(steps) > 8:
        steps = [*steps[:4], f"{len(steps) - 8} more", *steps[-4:]]
    return f"step {', '.join(steps[:-1])}{' and ' if len(steps) > 1 else ''}{steps[-1]}"
