"""`rescore-cohort`: a heavy model scores the cells that a query chooses, and says how often it agrees."""

import sys
from collections import Counter
from collections.abc import Sequence

from cellmill.arguments import parse_dataclass
from cellmill.rescore.agreement import SlideAgreement
from cellmill.rescore.config import RescoreCohortConfig

__all__ = ["main"]

SCORED, UNUSABLE, SOME_FAILED = 0, 2, 3
"""Exit codes: every slide has its scores; settings cannot be used; some slides have none."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Score, print a line a slide and a table of agreement."""
    config = parse_dataclass(
        RescoreCohortConfig,
        prog="rescore-cohort",
        description="Let a heavy model score the cells that a query chooses.",
        arguments=arguments,
    )
    from cellmill.embedding.sources import NetworkEmbeddings
    from cellmill.models.loading import load_model
    from cellmill.rescore.run import rescore_cohort

    try:
        found = rescore_cohort(config, NetworkEmbeddings(load_model(config.model)), say=_say)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"rescore_cohort: {error}\n")
        return UNUSABLE
    _print_agreement(found)
    return SOME_FAILED if any(slide.problem for slide in found) else SCORED


def _say(slide: SlideAgreement) -> None:
    if slide.problem:
        sys.stdout.write(f"{slide.slide_id}: not scored. {slide.problem}\n")
        return
    sys.stdout.write(
        f"{slide.slide_id}: {slide.num_scored:,} of {slide.num_chosen:,} cells in {slide.rescored_mm2:.2f} mm2, "
        f"{slide.num_agreeing:,} of the same type\n"
    )


def _print_agreement(slides: list[SlideAgreement]) -> None:
    from rich.console import Console
    from rich.table import Table

    total: Counter[tuple[str, str]] = sum((slide.pairs for slide in slides), Counter())
    table = Table("student's type", "cells", "teacher agrees", "teacher's types")
    for student in sorted({student for student, _ in total}):
        row = {teacher: number for (kind, teacher), number in total.items() if kind == student}
        number = sum(row.values())
        ranked = sorted(row.items(), key=lambda entry: (-entry[1], entry[0]))
        others = ", ".join(f"{teacher} {count / number:.0%}" for teacher, count in ranked)
        table.add_row(student, f"{number:,}", f"{row.get(student, 0) / number:.1%}", others)
    Console().print(table)
