"""What a piece of work takes: CPU seconds of this process and of the slide readers it started, and wall seconds.

CPU seconds count every thread, and child processes whether they have ended or not; so a sum of them over all workers
is what a cluster is charged for, while wall seconds depend on who waits for whom.
"""

import os
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

__all__ = ["Memory", "Spent", "Stopwatch", "cpu_seconds", "peak_memory", "tree_cpu_seconds"]

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Spent:
    """Seconds of CPU and of wall time."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    def plus(self, other: "Spent") -> "Spent":
        """Both, one after the other."""
        return Spent(self.cpu_seconds + other.cpu_seconds, self.wall_seconds + other.wall_seconds)

    def times(self, factor: float) -> "Spent":
        """The same work `factor` times, one after the other."""
        return Spent(self.cpu_seconds * factor, self.wall_seconds * factor)

    def without(self, other: "Spent") -> "Spent":
        """What is left when `other` was part of it; never less than nothing."""
        return Spent(max(0.0, self.cpu_seconds - other.cpu_seconds), max(0.0, self.wall_seconds - other.wall_seconds))

    @staticmethod
    def sum(parts: Iterable["Spent"]) -> "Spent":
        """All of them, one after another."""
        total = Spent()
        for part in parts:
            total = total.plus(part)
        return total


class Stopwatch:
    """Measures from when it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def lap(self) -> Spent:
        """What was spent since the last lap."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        spent = Spent(cpu - self._cpu, wall - self._wall)
        self._wall, self._cpu = wall, cpu
        return spent


def cpu_seconds() -> float:
    """CPU seconds of this process since it began, with its direct children, ended or alive."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + _of_children(recursive=False)


def tree_cpu_seconds() -> float:
    """CPU seconds of this process and of everything below it."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + _of_children(recursive=True)


def _of_children(*, recursive: bool) -> float:
    total = 0.0
    for child in psutil.Process().children(recursive=recursive):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue  # it ended between the listing and the question
        total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass
class Memory:
    """Resident bytes of this process at their highest, with those of its largest child at the end."""

    peak_bytes: int = 0


@contextmanager
def peak_memory() -> Generator[Memory]:
    """Watch the resident memory of this process while the block runs, and add its largest child's when it ends."""
    process, over = psutil.Process(), threading.Event()
    memory = Memory(process.memory_info().rss)

    def watch() -> None:
        # Only this process: to list its children takes milliseconds, which would show in what is measured.
        while not over.wait(_POLL_SECONDS):
            memory.peak_bytes = max(memory.peak_bytes, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True, name="cellmill-memory")
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()
        memory.peak_bytes += _bytes_of_largest_child(process)


def _bytes_of_largest_child(process: psutil.Process) -> int:
    largest = 0
    for child in process.children():
        try:
            largest = max(largest, child.memory_info().rss)
        except psutil.Error:
            continue
    return largest
