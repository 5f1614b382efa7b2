"""Where a number was measured: commit, versions, device, precision of the machine's arithmetic."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from resless.precision import computes_in_bf16

DISTRIBUTIONS = ("resless", "torch", "torchvision", "accelerate", "datasets", "numpy")


def environment(source: Path | None = None, device: str = "cuda") -> dict[str, Any]:
    """Facts that belong beside every measured number, as JSON values.

    Args:
        source: a folder of the git checkout whose commit is meant; None takes that of this module, if one tracks it.
            $RESLESS_COMMIT goes before it: where a cluster gets a copy of the code, that may come without its history.
        device: type of the device that computed; `cuda` means the GPU if there is one, else the processor.
    """
    return {
        "commit": _commit(source or Path(__file__)),
        "versions": {name: importlib.metadata.version(name) for name in DISTRIBUTIONS},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "device": device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "computes_in_bf16": computes_in_bf16(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def device_name(device: str = "cuda") -> str:
    """The GPU's name for `cuda`, if there is one; else the processor's."""
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit(source: Path) -> str | None:
    """$RESLESS_COMMIT; else that of the checkout that holds `source`, with "+" if files differ from it; else None.

    A file must be tracked: a virtual environment can lie in anybody's checkout.
    """
    if given := os.environ.get("RESLESS_COMMIT"):
        return given
    git = ["git", "-C", str(source if source.is_dir() else source.parent)]
    try:
        if source.is_file():
            subprocess.run([*git, "ls-files", "--error-unmatch", source.name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
