"""Training state on disk: written whole or not at all, verified before it is used, thinned out only afterwards.

A checkpoint is a folder `checkpoints/epoch_0012` (12 epochs done) or `checkpoints/epoch_0012_step_000340` (340 steps
into the 13th), with

    manifest.json   format, world size, configuration, the SHA-256 of each file, and its own
    state.pt        what all processes share: weights, optimiser, progress, metrics
    rank_0.pt ...   what each process has for itself: random number generators, buffers, whatever the loop registered

It is written to a temporary folder, synchronised to disk and renamed; then the file `last` names it; then the others
go, but for the newest. A kill at any moment therefore leaves the previous checkpoint or the new one. Files are loaded
with torch's weights-only reader: a checkpoint cannot run code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resless.config import changed_fields, option_name
from resless.errors import InputError
from resless.files import sha256, write_text

FORMAT = 1
LAST = "last"


def save(
    root: Path,
    name: str,
    *,
    shared: dict[str, Any],
    own: dict[str, Any],
    config: dict[str, Any],
    rank: int,
    world_size: int,
    barrier: Callable[[], None],
    keep: int,
) -> Path:
    """Write the checkpoint `root/name`; every process calls this. `shared` is written by process 0 alone.

    Args:
        root: the run's checkpoint folder, on a file system that all processes see.
        name: folder name, sorting by progress.
        shared: state that is the same on all processes; tensors, containers and plain values.
        own: state of this process.
        config: configuration as by `resless.config.as_dict`, compared on resume.
        rank, world_size, barrier: this process, their number, and how they wait for each other.
        keep: number of newest checkpoints that stay.

    Raises:
        OSError: the disk is full, or cannot be written; the checkpoints that were there stay.
    """
    target, temporary = root / name, root / f".writing-{name}"
    try:
        if rank == 0:
            for leftover in (*root.glob(".writing-*"), *root.glob(".removing-*")):  # of killed writers; it makes room
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            temporary.mkdir(parents=True)
        barrier()
        _write(temporary / f"rank_{rank}.pt", own)
        if rank == 0:
            _write(temporary / "state.pt", shared)
        barrier()
        if rank == 0:
            files = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            manifest = {"format": FORMAT, "world_size": world_size, "config": config, "sha256": files}
            manifest["own_sha256"] = _own_sha256(manifest)
            write_text(temporary / "manifest.json", json.dumps(manifest, indent=1))
            if target.exists():
                _remove(target)
            temporary.rename(target)
            write_text(root / LAST, name)
            _retain(root, target, keep)
        barrier()
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def find(root: Path) -> list[Path]:
    """All finished checkpoints below `root`, newest first, damaged ones included."""
    return sorted((path for path in root.glob("epoch_*") if path.is_dir()), key=_progress, reverse=True)


def newest_good(root: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; each damaged one is named through `report` and skipped."""
    for folder in find(root):
        fault = damage(folder)
        if fault is None:
            return folder
        report(f"checkpoint {folder} is damaged ({fault}): skipped")
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None if every hash of its manifest agrees."""
    try:
        manifest = _manifest(folder)
        intact = manifest["own_sha256"] == _own_sha256(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json cannot be read"
    if not intact:
        return "manifest.json does not match its checksum"
    if manifest["format"] != FORMAT:
        return f"its format is {manifest['format']}, but this version reads {FORMAT}"
    hashes, ranks = manifest["sha256"], range(manifest["world_size"])
    # Each process has a file of its own: were one missing, its random numbers would silently start anew.
    for name in ["state.pt", *(f"rank_{rank}.pt" for rank in ranks)]:
        if name not in hashes:
            return f"manifest.json does not list {name}"
    for name, digest in hashes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        try:
            if sha256(file) != digest:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def check(folder: Path, *, world_size: int, config: dict[str, Any]) -> None:
    """Refuse a checkpoint that this run cannot go on from.

    Raises:
        InputError: it is damaged, was written by another number of processes, or with another configuration.
    """
    fault = damage(folder)
    if fault is not None:
        raise InputError(f"checkpoint {folder} is damaged ({fault}): resume from another one, or with --resume auto")
    manifest = _manifest(folder)
    if manifest["world_size"] != world_size:
        raise InputError(
            f"checkpoint {folder} was written by {manifest['world_size']} processes (world size), but this run has "
            f"{world_size}: start as many"
        )
    changes = changed_fields(manifest["config"], config)
    if changes:
        what = ", ".join(f"{option_name(name)} = {old!r} (now {new!r})" for name, (old, new) in changes.items())
        raise InputError(f"checkpoint {folder} was trained with {what}: give the same, or start anew")


def load(folder: Path, *, rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(shared state, state of the process `rank`) of a checkpoint that `check` accepted; tensors are on the CPU."""
    return _read(folder / "state.pt"), _read(folder / f"rank_{rank}.pt")


def rng_state() -> dict[str, Any]:
    """The random number generators of this process: Python's, NumPy's, torch's on the CPU and on the GPU in use."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - what libraries draw from
    numpy["state"]["key"] = numpy["state"]["key"].tolist()  # the weights-only reader takes no arrays
    state: dict[str, Any] = {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _retain(root: Path, newest: Path, keep: int) -> None:
    """Delete all but `newest` and the `keep` - 1 before it.

    What claims to be newer was damaged, or was left behind when the run went back to an earlier checkpoint.
    """
    folders = find(root)
    position = folders.index(newest)
    for folder in folders[:position] + folders[position + keep :]:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Delete a checkpoint, of which a kill in the middle leaves nothing that looks like one."""
    hidden = folder.with_name(f".removing-{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _progress(folder: Path) -> tuple[int, ...]:
    """(epochs done, steps done) from a checkpoint's name; as numbers, since names have no fixed width."""
    return tuple(int(number) for number in re.findall(r"\d+", folder.name))


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def _own_sha256(manifest: dict[str, Any]) -> str:
    """Checksum of all that a manifest says, but for its checksum."""
    content = {key: value for key, value in manifest.items() if key != "own_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(path: Path, state: dict[str, Any]) -> None:
    content = io.BytesIO()  # torch.save to a file turns a full disk into an error about positions
    torch.save(state, content)
    with path.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is not a training state: {str(error).splitlines()[0]}") from error
