"""Precision of forward passes: what `auto` stands for on this machine, and where bf16 would cost time."""

from __future__ import annotations

import platform

import torch
from accelerate.utils import parse_flag_from_env

from resless.errors import check


def resolve(precision: str) -> str:
    """The precision that autocast is asked for.

    `auto` is bf16 where the device computes in it, else float32: a processor without bf16 units emulates it, and a
    training step of ResNet-20 then takes ten times as long as in float32.

    Args:
        precision: no, bf16, fp16 or auto.

    Returns:
        no, bf16 or fp16.

    Raises:
        InputError: fp16 on a CPU, which Accelerate would pass over in silence.
    """
    check(precision != "fp16" or _device() != "cpu", "--mixed-precision", precision, "auto, bf16 or no on a CPU")
    if precision != "auto":
        return precision
    return "bf16" if computes_in_bf16() else "no"


def computes_in_bf16() -> bool:
    """Whether the device that runs use by default has units for bf16, instead of emulating it; of devices that are
    neither processors nor CUDA's that is not known, and taken for no."""
    device = _device()
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    if platform.machine() in ("x86_64", "AMD64"):  # where oneDNN calls bf16 supported with AVX-512 alone, emulated
        return torch.cpu._is_avx512_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _device() -> str:
    """Type of the device that an Accelerator takes."""
    # A build of torch names its accelerator, whether the machine has one or not.
    there = torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    device = torch.accelerator.current_accelerator() if there else None
    return "cpu" if device is None else device.type
