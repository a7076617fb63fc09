"""`export_qupath`: cells of a cell set for QuPath, or as GeoJSON or SpatialData. Parse, export, report."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmill.arguments import parse_dataclass
from cellmill.export.config import ExportConfig

if TYPE_CHECKING:
    from cellmill.export.run import ExportReport

__all__ = ["main"]

_DESCRIPTION = """Export cells of a cell set: a QuPath project with images, classes, areas and one object a cell, or
GeoJSON parts, or SpatialData. The folder appears whole or not at all, and nothing that is there is lost. Exits 0 when
it is made, 2 when the settings cannot be met, 1 when QuPath failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_dataclass(ExportConfig, prog="export_qupath", description=_DESCRIPTION, arguments=arguments)
    # Only now: --help and a wrong flag need no readers.
    from cellmill.export.qupath import QuPathError
    from cellmill.export.run import export_cells
    from cellmill.store.errors import StoreError

    try:
        report = export_cells(config)
    except (ValueError, StoreError) as error:
        sys.stderr.write(f"export_qupath: {error}\n")
        return 2
    except QuPathError as error:
        sys.stderr.write(f"export_qupath: {error}\n")
        return 1
    sys.stdout.write(_told(report))
    return 0


def _told(report: "ExportReport") -> str:
    lines = [
        f"{len(report.slides)} slides, {report.num_cells:,} cells in {report.folder} ({report.seconds:.1f} s).",
        *(f"Note: {note}" for note in report.notes),
    ]
    if report.left_to_do:
        lines.append("QuPath was not asked (PAQUO_QUPATH_DIR is not set). Left to do:")
        lines += [f"  {number}. {step}" for number, step in enumerate(report.left_to_do, start=1)]
    return "\n".join([*lines, ""])
