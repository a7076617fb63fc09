"""`summarize_cohort`: a cell set in, tables of numbers out. Parse, summarise, report."""

import sys
from collections.abc import Sequence

from cellmill.arguments import parse_dataclass
from cellmill.spatial.config import SummarizeCohortConfig

__all__ = ["main"]

DONE, UNUSABLE, SOME_FAILED, INTERRUPTED = 0, 2, 3, 130
"""Exit codes, as those of `segment_cohort`."""

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

    try:
        report = summarize_cohort(config, say=_say)
    except (ValueError, OSError, StoreError) as error:
        sys.stderr.write(f"summarize_cohort: {error}\n")
        return UNUSABLE
    except KeyboardInterrupt:
        sys.stderr.write("summarize_cohort: stopped; no table was changed.\n")
        return INTERRUPTED
    for slide_id, reason in report.failed:
        _say(f"{slide_id} is left out: {reason}")
    _say(f"{report.num_slides - len(report.failed)} slides in {config.out}: summary, pairs, radii (.parquet and .csv)")
    return SOME_FAILED if report.failed else DONE


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
