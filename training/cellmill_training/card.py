"""The model card's figures as text: one table of qualities and one of types, every figure with its counts.

Consumes evaluations by source, produces Markdown. A row that starts with `| held-out` is read by a test, so that a card
cannot drift into prose without numbers.
"""

from collections.abc import Mapping

from cellmill.metrics.panoptic import PanopticCounts
from cellmill_training.evaluate import Evaluation

__all__ = ["qualities_table", "types_table"]

_QUALITIES = (
    "| split | images | nuclei | DQ | SQ | PQ | found | invented | missed |\n|---|---|---|---|---|---|---|---|---|"
)
_TYPES = "| split | type | F1 | right | wrongly given | missed or given another |\n|---|---|---|---|---|---|"


def qualities_table(evaluations: Mapping[str, Evaluation], *, prefix: str = "held-out") -> str:
    """Detection, segmentation and panoptic quality at IoU 0.5, pooled over each source's images."""
    rows = [_QUALITIES]
    for source, evaluation in evaluations.items():
        rows.append(_quality_row(f"{prefix} {source}", evaluation.num_images, evaluation.strict))
        if evaluation.known != evaluation.strict:
            rows.append(_quality_row(f"{prefix} {source}, known pixels", evaluation.num_images, evaluation.known))
    return "\n".join(rows)


def types_table(evaluations: Mapping[str, Evaluation], *, prefix: str = "held-out") -> str:
    """F1 of each type that a source's reference has; types that a source cannot tell are left out."""
    rows = [_TYPES]
    for source, evaluation in evaluations.items():
        for name, counts in evaluation.types.items():
            if counts.true_positives + counts.false_negatives:
                rows.append(
                    f"| {prefix} {source} | {name} | {counts.f1:.2f} | {counts.true_positives} | "
                    f"{counts.false_positives} | {counts.false_negatives} |"
                )
    return "\n".join(rows)


def _quality_row(label: str, num_images: int, counts: PanopticCounts) -> str:
    return (
        f"| {label} | {num_images} | {counts.true_positives + counts.false_negatives} | "
        f"{counts.detection_quality:.3f} | {counts.segmentation_quality:.3f} | {counts.panoptic_quality:.3f} | "
        f"{counts.true_positives} | {counts.false_positives} | {counts.false_negatives} |"
    )
