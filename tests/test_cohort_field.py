"""Plan and field work without any engine."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.cohort.field import slide_hash
from cellmill.cohort.plan import plan_fields
from cellmill.cohort.rows import Row
from cellmill.cohort.strips import StripTask, cut_into_strips
from cellmill.cohort.tiles import TileGrid, Verdict, by_pixels, by_place, count_tiles
from cellmill.grid import SlideGrid, TileGeometry
from cellmill.store.work import SlideFacts

GEOMETRY = TileGeometry(tile_px=192, margin_px=32)


def facts(width: int, height: int) -> SlideFacts:
    grid = SlideGrid(width_px=width, height_px=height, scale_x=1.0, scale_y=1.0, target_mpp=0.5)
    return SlideFacts("s", grid, 0.5, 0.5, width, height, "f")


@st.composite
def judged_slides(draw: st.DrawFn) -> tuple[SlideFacts, TileGrid]:
    slide = facts(draw(st.integers(1, 1500)), draw(st.integers(1, 1500)))
    tiles = TileGrid.of_slide(slide.grid, GEOMETRY)
    seed = draw(st.integers(0, 2**32 - 1))
    verdicts = np.random.default_rng(seed).choice(len(Verdict), size=tiles.verdicts.shape)
    return slide, TileGrid(tiles.tiles, verdicts.astype(np.uint8))


@settings(deadline=None, max_examples=40)
@given(judged_slides(), st.sampled_from([256, 512, 768, 2048]))
def test_plan_and_fields_together_count_every_tile_once(judged: tuple[SlideFacts, TileGrid], field_px: int) -> None:
    slide, tiles = judged
    by_position = TileGrid(
        tiles.tiles, np.where(tiles.verdicts > Verdict.BACKGROUND, 0, tiles.verdicts).astype(np.uint8)
    )
    plan = plan_fields(slide, by_position, geometry=GEOMETRY, field_px=field_px, halo_px=165)
    total = plan.counts
    for field in plan.fields:
        seen = tiles.within(plan.task(field).tiles.tiles)
        total = total.plus(by_pixels(count_tiles(seen, owner=field.core, grid=slide.grid, geometry=GEOMETRY)))
    whole = count_tiles(tiles, owner=None, grid=slide.grid, geometry=GEOMETRY)
    assert total.plus(by_place(whole)).excluded_px.keys() == whole.excluded_px.keys()
    assert (total.num_tiles, total.analysed_px, dict(total.excluded_px)) == (
        whole.num_tiles,
        whole.analysed_px,
        dict(whole.excluded_px),
    )
    assert total.analysed_px + sum(total.excluded_px.values()) == slide.grid.width_px * slide.grid.height_px


def test_fields_of_background_alone_are_no_work() -> None:
    slide = facts(4096, 2048)
    tiles = TileGrid.of_slide(slide.grid, GEOMETRY)
    tiles.verdicts[:] = Verdict.BACKGROUND
    tiles.verdicts[1, 1] = Verdict.ANALYSED
    plan = plan_fields(slide, tiles, geometry=GEOMETRY, field_px=1024, halo_px=165)
    assert [field.name for field in plan.fields] == ["x00000_y00000"]


@settings(deadline=None, max_examples=40)
@given(judged_slides(), st.data())
def test_a_strip_survives_its_journey_and_holds_what_its_fields_need(
    judged: tuple[SlideFacts, TileGrid], data: st.DataObject
) -> None:
    slide, tiles = judged
    plan = plan_fields(slide, tiles, geometry=GEOMETRY, field_px=256, halo_px=165)
    if not plan.fields:
        return
    fields = data.draw(st.lists(st.sampled_from(plan.fields), min_size=1, unique=True))
    (strip,) = cut_into_strips(plan, fields, num_strips=1)
    table = Row(kind="strip", slide_id="s", document={"strip": strip.to_json()}).to_table()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    row = Row.of_table(pa.ipc.open_stream(sink.getvalue()).read_all())
    again = StripTask.from_json(row.document["strip"])
    assert (again.facts, again.fields, again.tiles.tiles) == (strip.facts, strip.fields, strip.tiles.tiles)
    for number, field in enumerate(again.fields):
        task, planned = again.task(number, GEOMETRY), plan.task(field)
        assert (task.field, task.window, task.tiles.tiles) == (planned.field, planned.window, planned.tiles.tiles)
        assert np.array_equal(task.tiles.verdicts, planned.tiles.verdicts)


@pytest.mark.parametrize("slide_id", ["", "0012", "x" * 500])
def test_slide_hashes_fit_an_id(slide_id: str) -> None:
    assert 0 < slide_hash(slide_id) < 1 << 15
