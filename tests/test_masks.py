"""Masks: shards without locks, the same pixels for every field size, and an OME-Zarr that others read."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.grid import Box, FieldSpec, SlideGrid
from cellmill.store.core_masks import mask_levels, num_whole_levels, write_core
from cellmill.store.masks import MaskWriter
from cellmill.store.objects import ObjectStore
from cellmill.store.shards import chunks_of, decode_shard, distinct_labels, encode_shard, shard_px_of_field
from cellmill.store.testing import LatticeTissue

GRID = SlideGrid(width_px=2900, height_px=1300, scale_x=2.0, scale_y=2.0, target_mpp=0.5)
TISSUE = LatticeTissue(slide_id="s", grid=GRID, tissue=Box(200, 100, 2890, 1290))


def write_mask(store: ObjectStore, *, field_px: int, grid: SlideGrid = GRID, tissue: LatticeTissue = TISSUE) -> str:
    """Write a mask field by field and publish it; returns its digest."""
    writer = MaskWriter(store, slide_id="s", grid=grid, field_px=field_px)
    fields = grid.fields(field_px=field_px, halo_px=0)
    writer.write_pyramid(dict(paint(store, f, field_px=field_px, grid=grid, tissue=tissue) for f in fields))
    writer.publish()
    return writer.digest()


def paint(
    store: ObjectStore, field: FieldSpec, *, field_px: int, grid: SlideGrid = GRID, tissue: LatticeTissue = TISSUE
) -> tuple[tuple[int, int], str]:
    """Write a field's shards and their record; returns its column and row, and the record's key."""
    pixels, key = tissue.mask_in(field.core), f"_work/{field.name}.mask"
    store.put(key, write_core(store, field.core, pixels, slide_id="s", grid=grid, field_px=field_px).to_bytes())
    return (field.column, field.row), key


@pytest.fixture(scope="module")
def whole() -> npt.NDArray[np.uint32]:
    """The mask as one array."""
    return TISSUE.mask_in(GRID.box)


@pytest.mark.parametrize("field_px", [256, 768, 1024, 1280, 4096])
def test_zarr_reads_every_level_right_whatever_the_field_size(
    tmp_path: Path, whole: npt.NDArray[np.uint32], field_px: int
) -> None:
    write_mask(ObjectStore(tmp_path), field_px=field_px)
    group = zarr.open_group(tmp_path / "masks" / "s.ome.zarr", mode="r")
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]
    expected = whole
    for number, dataset in enumerate(datasets):
        level = group[dataset["path"]]
        assert level.chunks == (256, 256)
        assert level.dtype == np.uint32
        assert np.array_equal(level[:], expected), number
        assert dataset["coordinateTransformations"] == [{"type": "scale", "scale": [0.5 * 2**number] * 2}]
        expected = expected[::2, ::2]
    assert max(group[datasets[-1]["path"]].shape) <= 512


def test_the_digest_is_of_pixels_not_of_shards(tmp_path: Path) -> None:
    digests = {write_mask(ObjectStore(tmp_path / str(size)), field_px=size) for size in (256, 768, 4096)}
    assert len(digests) == 1
    moved = LatticeTissue(slide_id="s", grid=GRID, tissue=Box(200, 100, 2890, 1289 - 24))
    assert write_mask(ObjectStore(tmp_path / "moved"), field_px=768, tissue=moved) not in digests


def test_level_k_pixel_i_lies_where_level_0_pixel_i_times_2_to_the_k_lies(tmp_path: Path) -> None:
    write_mask(ObjectStore(tmp_path), field_px=1024)
    group = zarr.open_group(tmp_path / "masks" / "s.ome.zarr", mode="r")
    multiscale = group.attrs["ome"]["multiscales"][0]
    scales = [dataset["coordinateTransformations"][0]["scale"] for dataset in multiscale["datasets"]]
    for level, (scale_y, scale_x) in enumerate(scales):
        pixels = group[str(level)][:]
        y, x = (values[:50] for values in np.nonzero(pixels))
        at_level0 = np.round(np.stack([y * scale_y, x * scale_x]) / 0.5).astype(int)
        assert np.array_equal(group["0"][:][tuple(at_level0)], pixels[y, x])


def test_ome_zarr_py_reads_the_labels(tmp_path: Path, whole: npt.NDArray[np.uint32]) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    write_mask(ObjectStore(tmp_path), field_px=1024)
    location = parse_url(tmp_path / "masks" / "s.ome.zarr", mode="r")
    assert location is not None
    node = next(iter(Reader(location)()))
    assert [type(spec).__name__ for spec in node.specs] == ["Label", "Multiscales"]
    assert np.array_equal(np.asarray(node.data[0]), whole)
    assert [axis["unit"] for axis in node.metadata["axes"]] == ["micrometer", "micrometer"]


def test_the_metadata_follows_the_ome_zarr_schema(tmp_path: Path) -> None:
    from ome_zarr_models.v05 import ImageLabel

    write_mask(ObjectStore(tmp_path), field_px=1024)
    ImageLabel.from_zarr(zarr.open_group(tmp_path / "masks" / "s.ome.zarr", mode="r"))


def test_nothing_opens_before_the_mask_is_published(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    writer = MaskWriter(store, slide_id="s", grid=GRID, field_px=1024)
    writer.write_pyramid(dict(paint(store, f, field_px=1024) for f in GRID.fields(field_px=1024, halo_px=0)))
    assert store.list_keys("masks/s.ome.zarr/0") and store.list_keys("masks/s.ome.zarr/3")
    for path in (tmp_path / "masks" / "s.ome.zarr", tmp_path / "masks" / "s.ome.zarr" / "0"):
        with pytest.raises(FileNotFoundError):
            zarr.open(path, mode="r")


def test_shards_without_cells_are_not_written_and_old_ones_go(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    small = LatticeTissue(slide_id="s", grid=GRID, tissue=Box(0, 0, 200, 200))
    store.put("masks/s.ome.zarr/0/c/1/2", b"of an earlier try")
    store.put("masks/s.ome.zarr/7/c/0/0", b"of an earlier try")
    write_mask(store, field_px=512, tissue=small)
    shards = [key for key in store.list_keys("masks") if "/c/" in key]
    assert shards == [f"masks/s.ome.zarr/{level}/c/0/0" for level in range(4)]


def test_a_slide_without_cells_has_a_mask_of_background(tmp_path: Path) -> None:
    empty = LatticeTissue(slide_id="s", grid=GRID, tissue=Box(0, 0, 0, 0))
    write_mask(ObjectStore(tmp_path), field_px=1024, tissue=empty)
    assert not zarr.open_group(tmp_path / "masks" / "s.ome.zarr", mode="r")["0"][:].any()


def test_a_slide_smaller_than_a_chunk_has_one_level(tmp_path: Path) -> None:
    grid = SlideGrid(100, 60, 1.0, 1.0, 0.5)
    tissue = LatticeTissue(slide_id="s", grid=grid, tissue=grid.box)
    digest = write_mask(ObjectStore(tmp_path), field_px=512, grid=grid, tissue=tissue)
    group = zarr.open_group(tmp_path / "masks" / "s.ome.zarr", mode="r")
    assert np.array_equal(group["0"][:], tissue.mask_in(grid.box))
    assert digest == write_mask(ObjectStore(tmp_path / "b"), field_px=256, grid=grid, tissue=tissue)


def test_slides_past_32_bits_get_64_bit_labels(tmp_path: Path) -> None:
    grid = SlideGrid(width_px=70_000, height_px=65_000, scale_x=1.0, scale_y=1.0, target_mpp=0.5)
    tissue = LatticeTissue(slide_id="s", grid=grid, tissue=Box(69_000, 64_000, 70_000, 65_000))
    store = ObjectStore(tmp_path)
    writer = MaskWriter(store, slide_id="s", grid=grid, field_px=1024)
    field = next(f for f in grid.fields(field_px=1024, halo_px=0) if (f.column, f.row) == (68, 63))
    writer.write_pyramid(dict([paint(store, field, field_px=1024, grid=grid, tissue=tissue)]))
    writer.publish()
    core = field.core
    level0 = zarr.open_group(tmp_path / "masks" / "s.ome.zarr", mode="r")["0"]
    inside = core.clipped(grid.box)
    assert level0.dtype == np.uint64
    assert level0[inside.y0 : inside.y1, inside.x0 : inside.x1].max() > 1 << 32


def test_ids_along_field_borders_are_found_with_their_painter(tmp_path: Path, whole: npt.NDArray[np.uint32]) -> None:
    field_px = 768
    store = ObjectStore(tmp_path)
    writer = MaskWriter(store, slide_id="s", grid=GRID, field_px=field_px)
    cores: dict[tuple[int, int], str] = {}
    expected: set[tuple[int, int, int]] = set()
    for field in GRID.fields(field_px=field_px, halo_px=0):
        cores |= [paint(store, field, field_px=field_px)]
        box = field.core
        part = whole[box.y0 : box.y1, box.x0 : box.x1]
        rims = [part[0], part[:, 0]]
        rims += [part[-1]] if part.shape[0] == field_px else []
        rims += [part[:, -1]] if part.shape[1] == field_px else []
        expected |= {(int(i), field.column, field.row) for i in np.unique(np.concatenate(rims)) if i}
    writer.write_pyramid(cores)
    found = writer.border_ids()
    assert set(zip(found.ids.tolist(), found.columns.tolist(), found.rows.tolist(), strict=True)) == expected


@pytest.mark.parametrize(("field_px", "shard_px"), [(256, 256), (2048, 2048), (5120, 2560), (8192, 4096), (5888, 256)])
def test_shards_are_the_largest_that_tile_a_field(field_px: int, shard_px: int) -> None:
    assert shard_px_of_field(field_px) == shard_px


@pytest.mark.parametrize("field_px", [0, -256, 100, 1000])
def test_fields_must_be_whole_chunks(field_px: int) -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        shard_px_of_field(field_px)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.floats(0, 0.2))
def test_shards_decode_to_what_was_encoded(seed: int, per_side: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    side = 256 * per_side
    pixels = np.where(rng.random((side, side)) < density, rng.integers(1, 2**32, (side, side)), 0).astype(np.uint32)
    pixels[:256, -256:] = 0
    data = encode_shard(chunks_of(pixels), shard_px=side)
    decoded = np.zeros_like(pixels)
    for chunk in [] if data is None else decode_shard(data, shard_px=side, dtype=pixels.dtype):
        decoded[chunk.row * 256 : chunk.row * 256 + 256, chunk.column * 256 : chunk.column * 256 + 256] = chunk.pixels
    assert np.array_equal(decoded, pixels)
    assert np.array_equal(distinct_labels(pixels), np.unique(pixels[pixels > 0]))


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    """Fields of 768 px end within a chunk of level 1, so that a commit reads level 0 again."""
    store = ObjectStore(tmp_path)
    writer = MaskWriter(store, slide_id="s", grid=GRID, field_px=768)
    place, record = paint(store, next(iter(GRID.fields(field_px=768, halo_px=0))), field_px=768)
    (key,) = store.list_keys("masks")
    data = bytearray(store.get(key))
    data[-10] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(ValueError, match="checksum") as caught:
        writer.write_pyramid({place: record})
    assert key in "".join(caught.value.__notes__)


@pytest.mark.parametrize(("field_px", "num_whole"), [(256, 0), (768, 0), (512, 1), (1024, 2), (2048, 3), (8192, 3)])
def test_levels_that_end_where_fields_end_are_encoded_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field_px: int, num_whole: int
) -> None:
    """A commit then reads no finer level again, and every object is what it says it is."""
    levels = mask_levels(GRID, field_px=field_px)
    assert num_whole_levels(levels, field_px=field_px) == num_whole
    store, read = ObjectStore(tmp_path), list[str]()
    writer = MaskWriter(store, slide_id="s", grid=GRID, field_px=field_px)
    cores = dict(paint(store, f, field_px=field_px) for f in GRID.fields(field_px=field_px, halo_px=0))
    get = ObjectStore.get
    monkeypatch.setattr(ObjectStore, "get", lambda self, key: (read.append(key), get(self, key))[1])
    writer.write_pyramid(cores)
    writer.publish()
    monkeypatch.undo()
    levels_read = {int(key.split("/")[2]) for key in read if key.startswith("masks/")}
    assert levels_read == set(range(num_whole, len(levels) - 1))
    digests = writer.digests()
    assert set(digests) == set(store.list_keys("masks"))
    assert all(hashlib.sha256(store.get(key)).hexdigest() == digest for key, digest in digests.items())
