"""The learner's memory: its peak, and what is given back to the system."""

import contextlib
import ctypes
import resource

import torch


def peak_memory_bytes() -> int:
    """The device's peak, or the process's resident peak on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trim_heap() -> None:
    """Give freed memory back to the system, where the C library is glibc. Micro-batches have ever new shapes, so its
    heap fragments: 60 steps of the demo's model grew by 0.9 GB without this and by nothing with it (20 ms a call)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
