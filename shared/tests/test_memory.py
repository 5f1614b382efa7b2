from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes
import resource
import sys

import torch
from resless.memory import keep_freed_memory

ctypes.CDLL(None).mallopt(-3, 2**20)  # from 1 MiB on, memory is the system's again as soon as it is freed
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers = [torch.ones(4 * 2**20) for _ in range(4)]  # 16 MiB each
    del layers
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[5:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly")
def test_memory_that_was_freed_is_used_again_without_new_pages():
    asked, as_it_is = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "leave")
    )
    assert as_it_is > 15 * 4 * 16 * 2**20 // 4096 // 2  # pages of the 15 rounds that count; half, if some were larger
    assert asked < as_it_is / 20
