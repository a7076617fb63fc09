"""`report_cohort`: a cell set in, pages for a browser out. Parse, report."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cellmill.arguments import parse_dataclass
from cellmill.ending import DONE, SOME_FAILED, UNUSABLE, exit_code
from cellmill.report.config import ReportCohortConfig

__all__ = ["main"]

_DESCRIPTION = """Make a report of a cell set: a folder of pages that open in any browser, from a share and without a
network. The cohort in numbers, slides that stand out, slides that failed, and a page a slide with its map and its cells
up close. Exits 0 when every slide has its page, 3 when some have none (they are listed), 2 when the settings cannot be
used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_dataclass(ReportCohortConfig, prog="report_cohort", description=_DESCRIPTION, arguments=arguments)
    from cellmill.report.run import report_cohort
    from cellmill.store.errors import StoreError

    def work() -> int:
        report = report_cohort(config, say=_say)
        for slide_id, reason in report.without_page:
            _say(f"{slide_id} has no page: {reason}")
        _say(f"{report.num_pages} slides. Open {Path(config.html) / 'index.html'} in a browser.")
        return SOME_FAILED if report.without_page else DONE

    errors: dict[type[Exception], int] = {ValueError: UNUSABLE, OSError: UNUSABLE, StoreError: UNUSABLE}
    return exit_code(work, prog="report_cohort", errors=errors, stopped="stopped; no report was changed.")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
