"""What every row of the benchmark shares: fair pairs, rows, the table, the results file.

Two things are compared by turns (ours, theirs, ours, theirs ...), so that a drift of the machine's speed meets both;
the ratio is taken pair by pair and its median is the figure. A rival that needs an environment of its own stays alive
as a `Rival` between its turns, warm like ours.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

__all__ = ["NUM_REPEATS", "Rival", "Row", "Silence", "Spread", "compare", "print_table", "timed", "write_results"]

NUM_REPEATS = 5
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """Median, least and most of repeated measurements."""

    median: float
    least: float
    most: float
    repeats: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        return Spread(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Row:
    """One line of the table: what, against what, how much, and whether the aim holds."""

    name: str
    rival: str
    ours: Spread
    theirs: Spread | None
    unit: str
    ratio: Spread | None
    """Pair by pair; how it is formed (theirs / ours, or ours / theirs) is said by `aim`."""
    aim: str
    met: bool
    details: dict[str, float | str] = field(default_factory=dict[str, float | str])
    """Further figures of the same run: agreement, peak memory, counts."""


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(
    ours: Callable[[], float], theirs: Callable[[], float], *, repeats: int = NUM_REPEATS, warm_ups: int = 1
) -> tuple[Spread, Spread, Spread]:
    """Measure both by turns; each call returns its own figure (seconds, as a rule).

    Returns:
        Ours, theirs, and theirs / ours pair by pair.
    """
    pairs: list[tuple[float, float]] = []
    for number in range(warm_ups + repeats):
        pair = ours(), theirs()
        if number >= warm_ups:
            pairs.append(pair)
    return (
        Spread.of([one for one, _ in pairs]),
        Spread.of([other for _, other in pairs]),
        Spread.of([other / one for one, other in pairs]),
    )


class Rival:
    """A script in another environment, kept alive: each `ask` writes one JSON line to it and reads one back."""

    def __init__(self, python: Path, script: Path, *arguments: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [str(python), str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """One question, one answer; what else the script prints must go to its stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The rival ended with {self._process.wait()}; its messages are above.")
        return json.loads(line)

    def close(self) -> None:
        """End the script."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> "Rival":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Silence:
    """The progress of a cohort run, shown to nobody: a console costs time per slide even where it prints nothing."""

    def update(self, totals: object) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {"cpu": model, "cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def write_results(rows: Sequence[Row], *, folder: Path = RESULTS) -> Path:
    """Write rows into today's results; rows of the same name measured earlier today are replaced."""
    path = folder / f"{date.today().isoformat()}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    found.update({row.name: asdict(row) for row in rows})
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "rows": dict(sorted(found.items()))}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def print_table(rows: Sequence[Row]) -> None:
    """The rows as people read them."""
    from rich.console import Console
    from rich.table import Table

    table = Table("row", "against", "ours", "theirs", "ratio (spread)", "aim", "met", title="cellmill benchmarks")
    for row in rows:
        table.add_row(
            row.name,
            row.rival,
            _figure(row.ours, row.unit),
            _figure(row.theirs, row.unit),
            "" if row.ratio is None else f"{row.ratio.median:.3g} ({row.ratio.least:.3g} to {row.ratio.most:.3g})",
            row.aim,
            "yes" if row.met else "NO",
        )
        for name, value in row.details.items():
            table.add_row("", f"  {name}", f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(width=200).print(table)


def _figure(spread: Spread | None, unit: str) -> str:
    return "" if spread is None else f"{spread.median:.4g} {unit} ({spread.least:.4g} to {spread.most:.4g})"
