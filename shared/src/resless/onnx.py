"""A network as an ONNX file, checked against the network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resless.errors import InputError
from resless.outputs import error

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4


def check_installed(option: str) -> None:
    """Raise InputError, naming the option that asks for them, unless the packages that `export` needs are installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f"{option} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def beside(folder: Path, overwrite: bool) -> Path:
    """The file beside a model folder that `--export onnx` writes.

    Raises:
        InputError: it is there already and is not to be replaced; and as `check_installed`.
    """
    check_installed("--export onnx")
    path = folder.with_name(f"{folder.name}.onnx")
    if path.exists() and not overwrite:
        raise InputError(f"{path}, which --export onnx writes, exists: choose another --output, or add --overwrite")
    return path


def export(net: nn.Module, images: Tensor, path: Path) -> None:
    """Write an ONNX file, for batches of any size, and run it.

    Args:
        net: a network in eval mode.
        images: two or more, [N, C, H, W].
        path: of the file.

    Raises:
        RuntimeError: onnxruntime finds other logits than the network, by more than 1e-4 of the largest.
    """
    import onnxruntime

    batch: Any = torch.export.Dim("batch")
    torch.onnx.export(
        net, (images,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False, external_data=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for part in (images, images[:1]):
            expected = net(part)
            (found,) = session.run(None, {session.get_inputs()[0].name: part.numpy()})
            difference = error(expected, torch.from_numpy(found))
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"{path} differs from the network by {difference:.2e} of the largest logit: a defect"
                )
