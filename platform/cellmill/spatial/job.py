"""`summarize_cohort`: a cell set in, tables of numbers out. Parse, summarise, report."""

import sys
from collections.abc import Sequence

from cellmill.arguments import parse_dataclass
from cellmill.ending import DONE, SOME_FAILED, UNUSABLE, exit_code
from cellmill.spatial.config import SummarizeCohortConfig

__all__ = ["main"]

_DESCRIPTION = """Summarise a cell set, per slide, tissue fragment and drawn region: counts, densities, type shares, TIL
scores, nearest distances, neighbours within radii, cross-K, neighbourhood enrichment. Writes summary, pairs and radii
as Parquet and CSV. Exits 0 when every slide is in them, 3 when some are not (they are listed), 2 when the settings
cannot be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_dataclass(
        SummarizeCohortConfig, prog="summarize_cohort", description=_DESCRIPTION, arguments=arguments
    )
    from cellmill.spatial.run import summarize_cohort
    from cellmill.store.errors import StoreError

    def work() -> int:
        report = summarize_cohort(config, say=_say)
        for slide_id, reason in report.failed:
            _say(f"{slide_id} is left out: {reason}")
        num_done = report.num_slides - len(report.failed)
        _say(f"{num_done} slides in {config.out}: summary, pairs, radii (.parquet and .csv)")
        return SOME_FAILED if report.failed else DONE

    errors: dict[type[Exception], int] = {ValueError: UNUSABLE, OSError: UNUSABLE, StoreError: UNUSABLE}
    return exit_code(work, prog="summarize_cohort", errors=errors, stopped="stopped; no table was changed.")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
