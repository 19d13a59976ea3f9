from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource, numpy
from hdmnet.runtime.malloc import keep_freed_memory
def faults():
    for _ in range(20):
        numpy.full(2**24, 1, numpy.float32)  # 64 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        numpy.full(2**24, 1, numpy.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
default = faults()
assert keep_freed_memory()
print(default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again_without_new_pages():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    default, kept = map(int, done.stdout.split())
    assert kept < 0.9 * default
