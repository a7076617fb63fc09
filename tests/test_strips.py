"""Strips: each tile is seen once, and what later fields need of it is what they would have found themselves."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.cohort.field import FieldMaps, FieldPixels, predict_field, read_field
from cellmill.cohort.plan import SlidePlan, plan_fields
from cellmill.cohort.sources import TileBatch
from cellmill.cohort.strips import cut_into_strips, strips_per_slide
from cellmill.cohort.tile_memory import TileMemory
from cellmill.cohort.tiles import TileGrid, Verdict
from cellmill.grid import Box, SlideGrid, TileGeometry
from cellmill.models.inference import TileMaps
from cellmill.slides.model_grid import ModelPixels
from cellmill.store.work import SlideFacts
from cellmill_schemas.ontology import get_ontology

GEOMETRY = TileGeometry(tile_px=96, margin_px=16)
ONTOLOGY = get_ontology("ikem3")


@dataclass
class NoisySlide:
    """Pixels that are a function of their position; some tiles cannot be read."""

    unreadable: tuple[Box, ...] = ()
    num_read: int = 0

    def read(self, box: Box, *, wanted: Iterable[Box] | None = None) -> ModelPixels:
        pixels = np.full((box.height, box.width, 3), 255, np.uint8)
        for part in [box] if wanted is None else list(wanted):
            self.num_read += 1
            y, x = np.mgrid[part.y0 : part.y1, part.x0 : part.x1]
            noise = (x * 7919 + y * 104729 + (x * y) % 251) % 256
            rows = slice(part.y0 - box.y0, part.y1 - box.y0)
            pixels[rows, part.x0 - box.x0 : part.x1 - box.x0] = noise[..., None].astype(np.uint8)
        return ModelPixels(box, pixels, self.unreadable)


@dataclass
class CountingSource:
    """Maps that are a function of a tile's pixels."""

    predicted: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def predict(self, batches: Iterable[TileBatch]) -> Iterator[TileMaps]:
        for batch in batches:
            self.predicted += [(int(i), int(j)) for i, j in batch.indices]
            inner = batch.pixels[:, 16:-16, 16:-16].astype(np.int16)  # (N, 64, 64, 3)
            flow = np.stack([inner[..., 0] - inner[..., 1], inner[..., 2]], axis=1)
            prob = np.stack([inner[..., 0]] * (len(ONTOLOGY) + 1), axis=1).astype(np.uint8)
            yield TileMaps(vectors=flow, prob=prob)


@st.composite
def plans(draw: st.DrawFn) -> SlidePlan:
    grid = SlideGrid(
        width_px=draw(st.integers(200, 1100)), height_px=draw(st.integers(200, 1100)), scale_x=1, scale_y=1,
        target_mpp=0.5,
    )  # fmt: skip
    tiles = TileGrid.of_slide(grid, GEOMETRY)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.3, 0.7]))
    verdicts = np.where(rng.random(tiles.verdicts.shape) < share, Verdict.BACKGROUND, Verdict.ANALYSED)
    facts = SlideFacts("s", grid, 0.5, 0.5, grid.width_px, grid.height_px, "f")
    tiles = TileGrid(tiles.tiles, verdicts.astype(np.uint8))
    return plan_fields(facts, tiles, geometry=GEOMETRY, field_px=256, halo_px=40)


def unreadable_boxes(plan: SlidePlan) -> tuple[Box, ...]:
    return tuple(GEOMETRY.core(i, j) for i, j in plan.tiles.analysed().tolist() if (3 * i + j) % 7 == 0)


def alone(plan: SlidePlan, number: int) -> tuple[FieldPixels, FieldMaps]:
    """A field done by itself."""
    task = plan.task(plan.fields[number])
    seen = read_field(task, NoisySlide(unreadable_boxes(plan)), geometry=GEOMETRY)
    maps, _ = predict_field(
        task, seen, source=CountingSource(), geometry=GEOMETRY, ontology=ONTOLOGY, batch_size=4
    )  # fmt: skip
    return seen, maps


@settings(max_examples=25)
@given(plans(), st.integers(1, 4))
def test_a_strip_sees_each_tile_once_and_finds_what_fields_find_alone(plan: SlidePlan, num_strips: int) -> None:
    names = [f.name for f in plan.fields]
    strips = cut_into_strips(plan, plan.fields, num_strips=num_strips)
    assert sorted(f.name for strip in strips for f in strip.fields) == sorted(names)
    for strip in strips:
        memory, source = TileMemory(strip, GEOMETRY), CountingSource()
        for number, spec in enumerate(strip.fields):
            task = strip.task(number, GEOMETRY)
            slide = NoisySlide(unreadable_boxes(plan))
            read = read_field(task, slide, geometry=GEOMETRY, fresh=memory.fresh(number))
            seen = memory.completed(number, read)
            maps, kept = predict_field(
                task,
                seen,
                source=source,
                geometry=GEOMETRY,
                ontology=ONTOLOGY,
                batch_size=4,
                known=memory.maps(number),
                keep=lambda index, number=number: memory.part_for_later(number, *index),  # noqa: B023
            )
            memory.keep(number, seen, kept)
            expected, expected_maps = alone(plan, names.index(spec.name))
            assert np.array_equal(seen.tiles.verdicts, expected.tiles.verdicts)
            assert np.array_equal(maps.vectors, expected_maps.vectors) and np.array_equal(maps.prob, expected_maps.prob)
            assert maps.origin_px == expected_maps.origin_px
            for i, j in seen.tiles.analysed().tolist():
                part = GEOMETRY.core(i, j).clipped(task.window)
                assert np.array_equal(seen.tile(part), expected.tile(part))
        assert len(source.predicted) == len(set(source.predicted))
        assert not memory.maps(len(strip.fields) - 1)


def all_tissue(side_px: int, field_px: int) -> SlidePlan:
    grid = SlideGrid(width_px=side_px, height_px=side_px, scale_x=1, scale_y=1, target_mpp=0.5)
    facts = SlideFacts("s", grid, 0.5, 0.5, side_px, side_px, "f")
    tiles = TileGrid.of_slide(grid, GEOMETRY)
    return plan_fields(facts, tiles, geometry=GEOMETRY, field_px=field_px, halo_px=40)


def test_strips_share_the_work_evenly() -> None:
    plan = all_tissue(2560, 256)
    assert [len(strip.fields) for strip in cut_into_strips(plan, plan.fields, num_strips=2)] == [50, 50]
    half = replace(plan, tiles=TileGrid(plan.tiles.tiles, plan.tiles.verdicts.copy()))
    half.tiles.verdicts[:, half.tiles.tiles.width // 2 :] = Verdict.BACKGROUND
    first, second = cut_into_strips(half, [f for f in half.fields if f.row < 4], num_strips=2)
    work = [sum(f.column < 5 for f in strip.fields) for strip in (first, second)]
    assert abs(work[0] - work[1]) <= 4


def test_a_large_slide_is_cut_even_for_one_worker() -> None:
    plan = all_tissue(40960, 4096)
    strips = cut_into_strips(plan, plan.fields, num_strips=1)
    assert len(strips) == 4
    for strip in strips:
        across = {field.column for field in strip.fields}
        assert max(across) - min(across) <= 5  # two bands of three fields at most


@pytest.mark.parametrize(
    ("num_slides", "num_workers", "expected"),
    [(1, 2, 2), (1, 16, 16), (3, 2, 2), (8, 2, 1), (1000, 64, 1), (64, 64, 2)],
)
def test_few_slides_are_cut_for_many_workers(num_slides: int, num_workers: int, expected: int) -> None:
    assert strips_per_slide(num_slides=num_slides, num_workers=num_workers) == expected
