"""Where results are written: `benchmarks/results/NAME_DEVICE-INSTRUCTIONS_torchVERSION.json`, with the environment.

What was timed on a GPU is called NAME-cuda, by the GPU's name alone, which tells what it can. INSTRUCTIONS end in
`-bf16` where bf16 is computed: with the same AVX-512, some processors do and some emulate it.

A trial, of fewer networks or turns, would replace what was measured in full: $RESLESS_RESULTS names another folder.
"""

from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from resless.environment import device_name, environment
from resless.precision import computes_in_bf16

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("RESLESS_RESULTS") or HERE / "results")


def write(name: str, content: dict[str, Any], device: str = "cpu") -> Path:
    """Write one result file, named by the device that things were timed on and by torch's version, and say where."""
    measured_on = device_name(device)
    if device == "cpu":
        # Clouds give processors names without a generation: what it can, and how fast, is in its instructions.
        measured_on += f" {torch.backends.cpu.get_cpu_capability()}{' bf16' if computes_in_bf16() else ''}"
    else:
        name = f"{name}-{device}"
    measured_on = re.sub(r"[^a-z0-9]+", "-", measured_on.lower())
    path = FOLDER / f"{name}_{measured_on}_torch{torch.__version__.split('+')[0]}.json"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts = {"benchmark": name, "date": now, "peak_rss_mib": peak_rss_mib()}
    record = without_folders({**facts, "environment": environment(HERE, device), **content})
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return path


def without_folders(value: Any) -> Any:
    """The same JSON values, of paths only the last part: where a machine keeps its files tells nobody anything."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def peak_rss_mib() -> int:
    """Peak resident memory, in MiB, of this process or of the largest that it has started and waited for."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(process).ru_maxrss for process in who) / 1024)


def read(name: str, which: Callable[[dict[str, Any]], bool] = lambda result: True) -> dict[str, Any] | None:
    """The newest result of a benchmark, of those of `which` that holds, or None if there is none."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob(f"{name}_*.json"))]
    return max(filter(which, found), key=lambda result: result["date"], default=None)
