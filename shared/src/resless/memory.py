"""Memory on the CPU: what the C library keeps, instead of giving it back and asking for it again at every layer."""

from __future__ import annotations

import ctypes
import platform

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_TRIM_THRESHOLD = 2**31 - 1
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep freed memory of up to 2 GiB, in pieces of up to 32 MiB, for its next tensors.

    By default glibc returns what a layer's output took to the system as soon as it is freed, and the next layer's
    output is made of fresh pages, each of which the system fills with zeros first. On 2 cores of an AMD EPYC that took
    a fifth of ResNet-32's inference in bf16, and a tenth of ResNet-20's training. The peak of memory stays as it is.

    Returns:
        Whether the C library was asked: it is glibc, and the largest values are allowed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD, _M_TRIM_THRESHOLD: _LARGEST_TRIM_THRESHOLD}
    return all(mallopt(setting, value) == 1 for setting, value in settings.items())
