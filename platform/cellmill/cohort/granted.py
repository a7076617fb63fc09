"""How much of the machine this process may use: CPUs by affinity and cgroup quota, never the machine's count."""

import math
import os
from pathlib import Path

__all__ = ["granted_cpus", "granted_memory_bytes", "pin_threads"]

_CGROUP = Path("/sys/fs/cgroup")


def granted_cpus() -> int:
    """CPUs this process may use, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, affinity if quota is None else min(affinity, math.floor(quota)))


def granted_memory_bytes() -> int:
    """Memory this process may use: the smaller of the machine's and the cgroup's limit."""
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for file in (_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes"):
        text = _read(file)
        if text.isdecimal():
            limits.append(int(text))
    return min(limits)


def pin_threads(num_threads: int) -> None:
    """Hold the libraries of this process to `num_threads`; torch and OpenVINO are told by the model's backend."""
    import cv2
    import numba
    import pyarrow as pa

    cv2.setNumThreads(num_threads)
    numba.set_num_threads(min(num_threads, numba.get_num_threads()))
    pa.set_cpu_count(num_threads)
    pa.set_io_thread_count(max(2, num_threads))


def _cpu_quota() -> float | None:
    """CPUs of the cgroup's quota (version 2, then version 1); None where there is none."""
    words = _read(_CGROUP / "cpu.max").split()
    if len(words) == 2 and words[0].isdecimal():
        return int(words[0]) / int(words[1])
    quota, period = _read(_CGROUP / "cpu" / "cpu.cfs_quota_us"), _read(_CGROUP / "cpu" / "cpu.cfs_period_us")
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
