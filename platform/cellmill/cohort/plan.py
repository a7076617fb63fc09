"""What there is to do for one slide: its grid, its tiles, its fields.

In: an open slide, the settings that change results. Out: a `SlidePlan`. One `FieldTask` is one field with something to
analyse in its window; a field wholly of background has no task, its area is in the plan's own counts.
"""

from dataclasses import dataclass, replace
from typing import Any

from cellmill.cohort.tiles import TileGrid, Verdict, by_place, count_tiles
from cellmill.grid import Box, FieldSpec, SlideGrid, TileGeometry
from cellmill.store.work import FieldCounts, SlideFacts

__all__ = ["FieldTask", "SlidePlan", "facts_from_json", "field_from_json", "plan_fields"]


@dataclass(frozen=True)
class FieldTask:
    """One field to segment, with all that its workers need to know of the slide."""

    facts: SlideFacts
    field: FieldSpec
    tiles: TileGrid
    """The tiles that core and halo touch, as planned: pixels have not been looked at yet."""

    @property
    def window(self) -> Box:
        """What the decode sees, in px: core and halo inside the slide."""
        return self.field.window.clipped(self.facts.grid.box)


@dataclass(frozen=True)
class SlidePlan:
    """All the work of one slide."""

    facts: SlideFacts
    tiles: TileGrid
    """Every tile of the slide."""
    fields: tuple[FieldSpec, ...]
    """Fields with something to analyse, row by row."""
    counts: FieldCounts
    """Area that needs no field: outside the region, background."""
    geometry: TileGeometry
    figures: str
    """What was measured when tissue was looked for, in words."""

    def task(self, field: FieldSpec) -> FieldTask:
        """The work of one of `fields`."""
        window = field.window.clipped(self.facts.grid.box)
        return FieldTask(facts=self.facts, field=field, tiles=self.tiles.within(self.geometry.covering(window)))


def plan_fields(
    facts: SlideFacts,
    tiles: TileGrid,
    *,
    geometry: TileGeometry,
    field_px: int,
    halo_px: int,
    figures: str = "",
) -> SlidePlan:
    """Cut a slide into fields.

    Args:
        facts: the slide and its grid.
        tiles: every tile with the verdict of its place: analysed, outside the region, or background.
        geometry: the tiles' shape.
        field_px: side of a field's core.
        halo_px: what the decode needs around it.
        figures: what was measured when tissue was looked for.
    """
    counts = by_place(count_tiles(tiles, owner=None, grid=facts.grid, geometry=geometry))
    plan = SlidePlan(facts=facts, tiles=tiles, fields=(), counts=counts, geometry=geometry, figures=figures)
    wanted = [
        field
        for field in facts.grid.fields(field_px=field_px, halo_px=halo_px)
        if (plan.task(field).tiles.verdicts == Verdict.ANALYSED).any()
    ]
    return replace(plan, fields=tuple(wanted))


def facts_from_json(document: dict[str, Any]) -> SlideFacts:
    """Parse `asdict(facts)` after its way through JSON."""
    values: dict[str, Any] = {**document, "grid": SlideGrid(**document["grid"])}
    return SlideFacts(**values)


def field_from_json(document: dict[str, Any]) -> FieldSpec:
    """Parse `asdict(field)` after its way through JSON."""
    values: dict[str, Any] = {**document, "core": Box(**document["core"])}
    return FieldSpec(**values)
