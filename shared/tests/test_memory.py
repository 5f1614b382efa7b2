from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes
import resource

import torch
from resless.memory import keep_freed_memory


def faults():
    found = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        layers = [torch.ones(4 * 2**20) for _ in range(4)]  # 16 MiB each
        del layers
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return sum(found[5:])


ctypes.CDLL(None).mallopt(-3, 2**20)  # from 1 MiB on, memory is the system's again as soon as it is freed
as_it_is = faults()
assert keep_freed_memory()
print(as_it_is, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly")
def test_memory_that_was_freed_is_used_again_without_new_pages():
    # A fresh process: what a fork inherits of free memory would be used first.
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    as_it_is, asked = map(int, found.split())
    assert as_it_is > 15 * 4 * 16 * 2**20 // 4096 // 2  # pages of the 15 rounds that count; half, if some were larger
    assert asked < as_it_is / 20
