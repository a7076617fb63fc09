"""`select-tiles`: which tiles of a cohort to label next. Parse, choose, report."""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmill.arguments import parse_dataclass
from cellmill_training.selecting.settings import SelectTilesSettings

if TYPE_CHECKING:
    from cellmill_training.selecting.run import SelectionReport

__all__ = ["main"]

DONE, UNUSABLE, SOME_SET_ASIDE = 0, 2, 3

_DESCRIPTION = """Choose tiles of a cohort to label: diverse ones, ones likely to hold rare types, and ones on which
classifiers disagree. Writes a tile list and a QuPath project ready for annotation. Exits 0 when all slides were looked
at, 3 when some were set aside (each with its reason), 2 when the settings cannot be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    settings = parse_dataclass(SelectTilesSettings, prog="select-tiles", description=_DESCRIPTION, arguments=arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Only now: --help and a wrong flag need no torch and no scikit-learn.
    from cellmill.store.errors import StoreError
    from cellmill_training.selecting.run import select_tiles

    try:
        report = select_tiles(settings, say=logging.getLogger(__name__).info)
    except (ValueError, StoreError) as error:
        sys.stderr.write(f"select-tiles: {error}\n")
        return UNUSABLE
    sys.stdout.write(_told(report))
    return SOME_SET_ASIDE if report.set_aside else DONE


def _told(report: "SelectionReport") -> str:
    drawn = Counter(tile.drawn_for for tile in report.selection.tiles)
    lines = [
        f"{len(report.selection.tiles)} of {report.num_candidates} tiles in {report.folder}: {drawn['rare']} as likely "
        f"to hold a rare type, {drawn['uncertain']} as uncertain, {drawn['diversity']} for diversity."
    ]
    for one in report.selection.classifiers:
        design = one.design
        lines.append(
            f"{one.cell_type}: balanced accuracy {one.nested_accuracy:.3f} on folds by {one.folds_by} "
            f"({one.num_present} tiles with, {one.num_absent} without); {design.depth} hidden layers, "
            f"{design.feature_set}, scaled by {design.scaler}"
        )
    lines += [f"{name}: no classifier, because {why}." for name, why in report.selection.without_classifier.items()]
    lines += [f"Note: {note}" for note in report.notes]
    lines += [f"Set aside: {slide_id}: {reason}" for slide_id, reason in report.set_aside]
    return "\n".join([*lines, f"Next: {report.folder / 'qupath' / 'READ_ME_FIRST.txt'}", ""])
