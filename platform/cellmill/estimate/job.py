"""`estimate_cohort`: slides in, what segmenting them will take out. Parse, estimate, report."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmill.arguments import parse_dataclass
from cellmill.ending import BROKE_OFF, DONE, SOME_FAILED, UNUSABLE, exit_code
from cellmill.estimate.config import EstimateCohortConfig

if TYPE_CHECKING:
    from cellmill.estimate.run import CohortEstimate

__all__ = ["main", "print_estimate", "report_document"]

_DESCRIPTION = """Say what segmenting a cohort will take, before anything is spent: mm2, fields, cells, CPU- and
GPU-hours, GB of output, memory. Opens the slides, finds their tissue, and measures on a few pieces of it for seconds,
here, with as many workers at once as the run would have. Writes no output. Exits 0 when all slides that were looked at
can be done, 3 when some cannot (they are listed with their reasons), 2 when the settings cannot be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_dataclass(
        EstimateCohortConfig, prog="estimate_cohort", description=_DESCRIPTION, arguments=arguments
    )
    # Only now: --help and a wrong flag need no torch.
    from cellmill.cohort.engine import EngineError
    from cellmill.cohort.sources import NetworkModel
    from cellmill.estimate.run import estimate_cohort
    from cellmill.models.loading import load_model

    def work() -> int:
        found = estimate_cohort(config, NetworkModel(load_model(config.model)), say=_say)
        if config.json is not None:
            Path(config.json).write_text(json.dumps(report_document(found), indent=2) + "\n", encoding="utf-8")
        print_estimate(found)
        return SOME_FAILED if found.unusable else DONE

    errors: dict[type[Exception], int] = {ValueError: UNUSABLE, OSError: UNUSABLE, EngineError: BROKE_OFF}
    return exit_code(work, prog="estimate_cohort", errors=errors)


def report_document(found: "CohortEstimate") -> dict[str, Any]:
    """The estimate as plain JSON types."""
    cost = {**asdict(found.cost), "output_gb": found.cost.output_gb}
    return {
        "estimate": cost,
        "device": found.device,
        "num_workers_measured": found.num_workers_here,
        "wall_time_is_scaled": found.is_scaled,
        "sureness": {name: value if value != float("inf") else None for name, value in asdict(found.sureness).items()},
        "unusable": [asdict(slide) for slide in found.unusable],
        "rates": None if found.rates is None else asdict(found.rates),
    }


def print_estimate(found: "CohortEstimate") -> None:
    """Slides that cannot be done, the table of figures, and what they rest on."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a log has no width; reasons stay readable
    for slide in found.unusable:
        console.print(Text(f"{slide.slide_id}: cannot be done. {slide.reason}"), soft_wrap=True)
    table = Table(title=None, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value, note in _lines(found):
        table.add_row(name, value, note)
    console.print(table)
    for line in _footing(found):
        console.print(Text(line), soft_wrap=True)


def _lines(found: "CohortEstimate") -> list[tuple[str, str, str]]:
    cost, sure = found.cost, found.sureness
    of_area, of_cells = _error(sure.area_error), _error(sure.area_error + sure.cells_error)
    wall = f"{cost.num_workers} workers on {found.device}"
    if found.is_scaled:
        wall += f"; scaled up from the {found.num_workers_here} that are here"
    steps = ", ".join(f"{name} {_hours(hours)}" for name, hours in cost.cpu_hours_by_step.items())
    return [
        ("slides", f"{cost.num_slides:,.0f}", f"of {sure.num_slides:,} listed"),
        ("slide area", f"{cost.slide_mm2:,.1f} mm2", of_area),
        ("tissue to analyse", f"{cost.analysed_mm2:,.2f} mm2", of_area),
        ("fields", f"{cost.num_fields:,.0f}", f"{cost.num_predictions:,.0f} tiles predicted, of {cost.num_tiles:,.0f}"),
        ("cells", f"{cost.num_cells:,.0f}", of_cells),
        ("CPU time", _hours(cost.cpu_hours), steps),
        ("GPU time", _hours(cost.gpu_hours) if cost.gpu_hours else "none", ""),
        ("wall time", _hours(cost.wall_hours), wall),
        ("output", f"{cost.output_gb:,.4g} GB", f"tables {cost.table_gb:,.4g}, masks {cost.mask_gb:,.4g} {of_cells}"),
        ("memory", f"{cost.memory_gb_per_worker:,.2f} GB", "for each worker with its slide reader"),
    ]


def _footing(found: "CohortEstimate") -> list[str]:
    sure = found.sureness
    if found.rates is None:
        return ["No tissue was found in the slides that could be opened, so there was nothing to measure."]
    opened = f"Opened {sure.num_surveyed + len(found.unusable):,} of {sure.num_slides:,} slides"
    if sure.area_error:
        opened += ", evenly spread over the list; the others are taken to be like them"
    lines = [
        f"{opened}. Measured on {sure.num_pieces} pieces of tissue ({sure.measured_mm2:.2f} mm2), "
        f"{found.num_workers_here} at once.",
        "+- is twice the standard error from places and slides that were not looked at. Times hold for this kind of "
        "machine when nothing else runs on it; what others do while this measures makes them longer.",
    ]
    if sure.excluded_share > 0.005:
        lines.append(f"Of the tissue, about {sure.excluded_share:.0%} will be excluded for pen, blur or damage.")
    return lines


def _error(share: float) -> str:
    if share == float("inf"):
        return "+- not known: too few pieces"
    return f"+- {share:.0%}" if share >= 0.005 else ""


def _hours(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 2 * 3600 else f"{hours:,.1f} h"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
