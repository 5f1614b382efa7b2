"""Trained networks: the model folder of a finished run, or a checkpoint of any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resless import checkpoint, models, weights
from resless.errors import InputError
from torch import nn

BLOCKS = "blocks.json"
"""What a run folder tells of its blocks."""


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
    """A network in eval mode, with `preprocessing`, `metrics` and `image_shape` of what it was trained on.

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
    kept = {key: config[key] for key in ("preprocessing", "metrics")}
    return model, {**kept, "image_shape": config["costs"].get("image_shape")}


def _from_checkpoint(run: Path, step: int) -> tuple[nn.Module, dict[str, Any]]:
    found = _checkpoints(run)
    if step not in found:
        raise InputError(f"--step is {step}, but {run} has checkpoints of {_listed(found)}")
    description = json.loads((run / BLOCKS).read_text(encoding="utf-8"))["network"]
    shared, _ = checkpoint.load(found[step], rank=0)
    model = models.build(models.Spec(**description["model"]))
    try:
        model.load_state_dict(shared["model"])
    except RuntimeError as error:
        raise InputError(f"checkpoint {found[step]} is of another network: {' '.join(str(error).split())}") from error
    kept = {key: description[key] for key in ("preprocessing", "image_shape")}
    return model.eval(), {**kept, "metrics": {}}


def _checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by their step."""
    found = {}
    for folder in sorted((run / "checkpoints").glob("epoch_*")):
        _, own = checkpoint.load(folder, rank=0)
        found[own["extra"]["blocks"]["steps"]] = folder
    return found


def _listed(found: dict[int, Path]) -> str:
    return f"step {' and '.join(map(str, sorted(found)))}" if found else "no step"
