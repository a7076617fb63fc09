"""`verify_cellset`: is everything a run wrote still there, and right? Parse, check, report."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellmill.arguments import parse_dataclass
from cellmill.verify.findings import VerifyReport

__all__ = ["VerifyConfig", "main"]

WHOLE, UNUSABLE, NOT_WHOLE = 0, 2, 3
"""Exit codes: nothing is wrong; there is no cell set, or it cannot be read; something is wrong."""

_DESCRIPTION = """Prove that a cell set is whole, or say exactly what is not: every object byte for byte as it was
committed, tables and masks in agreement, every area accounted for, nothing left over. Exits 0 when nothing is wrong,
3 when something is, 2 when there is no cell set to read."""


@dataclass(frozen=True)
class VerifyConfig:
    """Settings of `verify_cellset`."""

    cells: str = ""
    """The cell set: what was given to segment_cohort as --out, a folder or any fsspec URL."""

    bytes_only: bool = False
    """Compare bytes with their digests and look no further: as fast as the storage reads. Finds damage and loss."""

    slides: tuple[str, ...] = ()
    """Slides that must be in the cell set, as given to segment_cohort. Default: whichever are there."""

    pseudonymize: str | None = None
    """File with the secret that segment_cohort was given, to know slides of --slides by their pseudonyms."""

    json: str = ""
    """File to write the findings and figures to, as JSON."""

    num_workers: int = 0
    """Slides checked at the same time. Default (0): the CPUs granted to this process."""

    def __post_init__(self) -> None:
        if not self.cells:
            raise ValueError("--cells is missing; give the --out of a segment_cohort run.")
        if self.num_workers < 0:
            raise ValueError(f"--num-workers must be 1 or more, got {self.num_workers}; leave it out.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_dataclass(VerifyConfig, prog="verify_cellset", description=_DESCRIPTION, arguments=arguments)
    from cellmill.cohort.granted import granted_cpus
    from cellmill.cohort.manifest import list_sources
    from cellmill.privacy import read_secret
    from cellmill.store.errors import StoreError
    from cellmill.store.objects import ObjectStore
    from cellmill.verify.cellset import verify_cellset

    try:
        secret = read_secret(config.pseudonymize)
        report = verify_cellset(
            config.cells,
            with_content=not config.bytes_only,
            slide_ids=[source.slide_id for source in list_sources(config.slides, secret=secret)],
            num_workers=config.num_workers or granted_cpus(),
        )
        if config.json:
            folder, _, name = config.json.rpartition("/")
            ObjectStore(folder or ".").put(name, json.dumps(report.to_json(), indent=2).encode())
    except (ValueError, FileNotFoundError, StoreError) as error:
        sys.stderr.write(f"verify_cellset: {error}\n")
        return UNUSABLE
    _print(report)
    return WHOLE if report.is_whole else NOT_WHOLE


def _print(report: VerifyReport) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    if report.findings:
        table = Table()
        for name in ("what", "where", "says"):
            table.add_column(name, overflow="fold")
        for finding in report.findings:
            slide = f" ({finding.slide_id})" if finding.slide_id and finding.slide_id not in finding.where else ""
            table.add_row(finding.kind, Text(finding.where), Text(finding.says + slide))
        console.print(table)
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in report.num_slides_by_outcome.items())
    verdict = "whole" if report.is_whole else f"{len(report.findings)} things are wrong"
    console.print(
        f"{report.url}: {verdict}. Slides: {outcomes or 'none'}. {report.num_objects:,} objects, "
        f"{report.num_bytes / 1e6:,.1f} MB, {report.num_cells:,} cells looked at in {report.seconds:.1f} s "
        f"({report.mb_per_second:,.0f} MB/s).",
        soft_wrap=True,
        markup=False,
    )
