"""`compare-models`: what would change if one model took another's place, and whether that is small enough."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmill.arguments import parse_dataclass
from cellmill.comparing.config import CompareModelsConfig

if TYPE_CHECKING:
    from cellmill.comparing.run import Comparison

__all__ = ["main"]

ACCEPTED, UNUSABLE, REFUSED = 0, 2, 3
"""Exit codes: all figures lie within their margins; nothing could be compared; some figure does not, or a slide that
the reference did is missing."""

_DESCRIPTION = """Compare two models, or two finished cell sets, on the same slides: cells are paired one to one, and
what was lost, gained and retyped is held against margins, with 95 % intervals over slides. Writes comparison.json and
comparison.html. Exits 0 when the candidate is within all margins, 3 when not, 2 when nothing could be compared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_dataclass(CompareModelsConfig, prog="compare-models", description=_DESCRIPTION, arguments=arguments)
    from cellmill.cohort.engine import EngineError
    from cellmill.cohort.progress import open_progress
    from cellmill.comparing.run import compare_models
    from cellmill.store.errors import StoreError

    try:
        comparison = compare_models(config, progress=open_progress)
    except (ValueError, OSError, StoreError, EngineError) as error:
        sys.stderr.write(f"compare-models: {error}\n")
        return UNUSABLE
    sys.stdout.write(_told(comparison, config.out))
    return ACCEPTED if comparison.verdict.accepted else REFUSED


def _told(comparison: "Comparison", out: str) -> str:
    verdict = comparison.verdict
    lines = [f"  {check}" for check in verdict.checks]
    lines += [f"  {problem}" for problem in verdict.problems]
    lines.append("Accepted: all figures lie within their margins." if verdict.accepted else "Refused.")
    lines.append(f"{out.rstrip('/')}/comparison.html shows what changed.")
    return "\n".join([*lines, ""])
