"""A comparison as one page that needs nothing beside it, in the look of the cohort report."""

from typing import TYPE_CHECKING

from cellmill.report.rendering import render

if TYPE_CHECKING:
    from cellmill.comparing.run import Comparison

__all__ = ["comparison_page"]


def comparison_page(comparison: "Comparison") -> str:
    """The HTML."""
    ontology = comparison.reference.ontology
    total = sum(change.counts for change in comparison.changes)
    return render(
        "comparison.html",
        comparison.candidate,
        comparison=comparison,
        verdict=comparison.verdict,
        classes=ontology.classes,
        counts=[] if isinstance(total, int) else total.tolist(),
        kinds={
            "lost": "Lost: only the reference has them",
            "gained": "Gained: only the candidate has them",
            "retyped": "Retyped: both have them, as different types",
        },
    )
