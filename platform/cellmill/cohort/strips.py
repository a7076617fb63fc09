"""Strips: neighbouring fields that one worker does one after another, so that tiles they share are predicted once.

Two neighbouring fields look at the same tiles along their border: with fields of 2048 px and tiles of 512 px, fields
done apart would predict 2.25 times the tiles there are. A worker that goes from field to field keeps what the next
ones will look at. Which fields make a strip changes no result, since a tile's maps depend on its pixels alone.

In: the fields of a slide that are to do. Out: `StripTask`s, the messages that workers take.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cellmill.cohort.plan import FieldTask, SlidePlan, facts_from_json, field_from_json
from cellmill.cohort.tiles import TileGrid, Verdict
from cellmill.grid import Box, FieldSpec, TileGeometry
from cellmill.store.work import SlideFacts

__all__ = ["StripTask", "cut_into_strips", "strips_per_slide"]

_MAX_BAND_PX = 12288
"""Width of a band of fields: what is kept between two rows of fields grows with it, about 10 MB each 1000 px."""
_MAX_STRIP_PX = 1 << 29
"""Area of a strip's fields at most (134 mm2 at 0.5 um/px), so that large slides spread over the cluster."""


@dataclass(frozen=True)
class StripTask:
    """Fields to do in this order, with all that their worker needs to know of the slide."""

    facts: SlideFacts
    fields: tuple[FieldSpec, ...]
    tiles: TileGrid
    """Every tile that the fields' windows touch, as planned."""

    def task(self, number: int, geometry: TileGeometry) -> FieldTask:
        """The work of one of the fields."""
        field = self.fields[number]
        window = field.window.clipped(self.facts.grid.box)
        return FieldTask(facts=self.facts, field=field, tiles=self.tiles.within(geometry.covering(window)))

    def part(self, start: int, stop: int) -> "StripTask":
        """Some of the fields, as a strip of their own."""
        return StripTask(self.facts, self.fields[start:stop], self.tiles)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, read back by `from_json`."""
        fields = [asdict(field) for field in self.fields]
        return {"facts": asdict(self.facts), "fields": fields, "tiles": self.tiles.to_json()}

    @staticmethod
    def from_json(document: dict[str, Any]) -> "StripTask":
        """Parse what `to_json` wrote."""
        return StripTask(
            facts=facts_from_json(document["facts"]),
            fields=tuple(field_from_json(entry) for entry in document["fields"]),
            tiles=TileGrid.from_json(document["tiles"]),
        )


def strips_per_slide(*, num_slides: int, num_workers: int) -> int:
    """Into how many strips a slide is cut at least.

    One a worker for a single slide; with few slides about two for each worker, so that none waits long for the last;
    with many slides a worker takes them whole.
    """
    wanted = num_workers if num_slides == 1 else 2 * num_workers
    return max(1, math.ceil(wanted / max(1, num_slides)))


def cut_into_strips(plan: SlidePlan, fields: Sequence[FieldSpec], *, num_strips: int) -> list[StripTask]:
    """Cut the fields of a slide that are to do into strips of about equal work.

    Args:
        plan: the slide.
        fields: those of its fields that are to do.
        num_strips: how many strips at least, where there are as many fields.
    """
    if not fields:
        return []
    ordered = _by_bands(fields)
    weights = [_num_analysed(plan, field) for field in ordered]
    num_strips = min(
        len(ordered), max(num_strips, math.ceil(sum(field.core.area for field in ordered) / _MAX_STRIP_PX))
    )
    strips: list[StripTask] = []
    start, done, total = 0, 0.0, float(sum(weights))
    for number in range(1, num_strips + 1):
        stop = start
        # A field goes to the strip in whose share of the work its middle lies.
        while stop < len(ordered) and (number == num_strips or done + weights[stop] / 2 <= total * number / num_strips):
            done += weights[stop]
            stop += 1
        if stop > start:
            strips.append(_strip(plan, ordered[start:stop]))
        start = stop
    return strips


def _by_bands(fields: Sequence[FieldSpec]) -> list[FieldSpec]:
    """Along the slide's longer side, in bands of limited width: what lies between two rows of fields is kept short."""
    columns = 1 + max(field.column for field in fields) - min(field.column for field in fields)
    rows = 1 + max(field.row for field in fields) - min(field.row for field in fields)
    across, along = ("column", "row") if columns <= rows else ("row", "column")
    num_across = min(columns, rows)
    at_most = max(1, _MAX_BAND_PX // fields[0].core.width)
    width = math.ceil(num_across / math.ceil(num_across / at_most))
    first = min(getattr(field, across) for field in fields)
    return sorted(
        fields,
        key=lambda field: (
            (getattr(field, across) - first) // width,
            getattr(field, along),
            getattr(field, across),
        ),
    )


def _num_analysed(plan: SlidePlan, field: FieldSpec) -> int:
    """Tiles of a field's core that are planned to be analysed, at least 1."""
    tiles = plan.tiles.within(plan.geometry.covering(field.core.clipped(plan.facts.grid.box)))
    return max(1, int((tiles.verdicts == Verdict.ANALYSED).sum()))


def _strip(plan: SlidePlan, fields: Sequence[FieldSpec]) -> StripTask:
    windows = [plan.geometry.covering(field.window.clipped(plan.facts.grid.box)) for field in fields]
    return StripTask(facts=plan.facts, fields=tuple(fields), tiles=plan.tiles.within(Box.around(windows)))
