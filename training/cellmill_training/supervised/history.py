"""What a run said of itself, one JSON line an epoch: written by the first worker, read by whoever keeps the run.

A run that resumes drops the lines after its checkpoint and writes them anew, so that a step is there once. The driver
follows the file while workers train and hands each line to MLflow once.
"""

import json
import logging
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cellmill_training.tracking.runs import TrackedRun

__all__ = ["append_history", "followed", "read_history", "trim_history"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 5.0
_SHOWN = ("seconds", "train_total", "train_error", "val_pq", "val_mean_pq", "val_mean_r2", "val_mean_f1")


def append_history(path: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")


def read_history(path: Path) -> list[dict[str, float]]:
    """All whole lines; none where there is no file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def trim_history(path: Path, step: int) -> None:
    """Drop what lies after `step`: it is about to be done again."""
    kept = [line for line in read_history(path) if line["step"] <= step]
    if path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(path)


@contextmanager
def followed(path: Path, run: TrackedRun) -> Generator[None]:
    """While the block runs, and once at its end, hand the lines of a history to a run and the log, each step once.

    Lines of an earlier command that this one goes on from come first, so that every MLflow run has the whole curve.
    """
    ended = threading.Event()
    seen = -1

    def forward() -> None:
        nonlocal seen
        for line in read_history(path):
            if line["step"] > seen:
                seen = int(line["step"])
                run.log_metrics({name: value for name, value in line.items() if name != "step"}, step=seen)
                logger.info(
                    "step %d: %s", seen, ", ".join(f"{name} {line[name]:.3f}" for name in _SHOWN if name in line)
                )

    def follow() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            forward()

    thread = threading.Thread(target=follow, name="history", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        forward()
