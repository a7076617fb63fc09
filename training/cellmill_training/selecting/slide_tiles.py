"""The tiles of one slide that could be labelled, with their features.

In: a `SlideTask`. Out: `SlideTiles`: whole tiles of `tile_px` on the slide's absolute grid at `TILE_MPP` that are
mostly tissue and neither unreadable, inked nor out of focus; one row one tile, row by row. Features are kept in a file
that is named by all that decides them, so a second selection on the same slides reads no pixels.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import cv2
import numpy as np
import numpy.typing as npt

from cellmill.cohort.granted import pin_threads
from cellmill.grid import Box, TileGeometry
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.isolation import DEFAULT_READER
from cellmill.slides.quality import judge_tile
from cellmill.slides.tissue import MIN_CHROMA
from cellmill.staging.cache import node_cache
from cellmill_training.selecting.encoding import TILE_MPP, EncoderChoice, feature_sets_of, open_encoder

__all__ = [
    "MIN_TISSUE_SHARE",
    "NoTilesError",
    "SlideTask",
    "SlideTiles",
    "features_of_tiles",
    "load_features",
    "measure_slide",
    "tissue_share",
]

MIN_TISSUE_SHARE = 0.5
"""Tiles with more glass than this leaves are not worth an annotator's time."""
_AT_ONCE = 16
_PARTIAL = ".partial"


class NoTilesError(ValueError):
    """A slide has nothing to choose from."""


@dataclass(frozen=True)
class SlideTask:
    """What is wanted of one slide."""

    slide_id: str
    cohort: str
    url: str
    encoders: tuple[EncoderChoice, ...]
    tile_px: int
    features: Path
    """Folder of feature files."""
    mpp: tuple[float, float] | float | None = None
    """Level-0 um/px to use instead of what the slide states."""
    fingerprint: str | None = None
    """Of the file that a cell set was made from; None where there is none to agree with."""
    tissue: Literal["auto", "none"] | Path = "auto"
    reader: str = DEFAULT_READER
    max_tiles: int = 2000
    """Of a slide with more, so many are drawn."""
    seed: int = 0


@dataclass(frozen=True)
class SlideTiles:
    """Where a slide's tiles are; their features lie in a file."""

    slide_id: str
    cohort: str
    url: str
    tile_px: int
    tiles: npt.NDArray[np.int32]  # (n, 2) column, row on the grid of `tile_px` at TILE_MPP
    scale: tuple[float, float]
    """Level-0 px per px of that grid, in x and y."""
    mpp: tuple[float, float]
    """Level-0 um/px."""
    origin_level0_px: tuple[int, int]
    """Level-0 position of a viewer's origin."""
    num_found: int
    """Tiles there were before some were drawn."""
    path: Path
    """Of the features."""

    def __len__(self) -> int:
        return len(self.tiles)

    def boxes_level0_px(self) -> npt.NDArray[np.float64]:
        """(n, 4) as x0, y0, x1, y1, OpenSlide's frame."""
        corners = np.concatenate([self.tiles, self.tiles + 1], axis=1).astype(np.float64) * self.tile_px
        return corners * np.array([*self.scale, *self.scale])

    def boxes_um(self) -> npt.NDArray[np.float64]:
        """(n, 4) in um from the slide's corner."""
        return self.boxes_level0_px() * np.array([*self.mpp, *self.mpp])


def measure_slide(task: SlideTask) -> SlideTiles:
    """Find the slide's tiles and compute their features, or find them computed.

    Raises:
        SlideError: when the slide cannot be read.
        NoTilesError: when it has no tile to choose from, or is not the file that was segmented.
    """
    pin_threads(1)
    encoders = [open_encoder(choice) for choice in task.encoders]
    with (
        node_cache().stage(task.url) as copy,
        IsolatedSlide(copy.path, target_mpp=TILE_MPP, mpp=task.mpp, reader=task.reader) as slide,
    ):
        if task.fingerprint is not None and slide.info.fingerprint != task.fingerprint:
            raise NoTilesError(
                f"the file is not the one that was segmented (fingerprint {slide.info.fingerprint}, then "
                f"{task.fingerprint}), so its cells lie elsewhere"
            )
        path = task.features / f"{task.slide_id}-{_key(task, slide, [encoder.digest for encoder in encoders])}.npz"
        if (known := _read_places(path)) is None:
            _write(path, *_measured(task, slide))
            known = _read_places(path)
        assert known is not None, "it was just written"
        tiles, num_found = known
        if not len(tiles):
            raise NoTilesError(
                f"it has no whole tile of {task.tile_px * TILE_MPP:g} um that is mostly tissue, readable and in focus"
            )
        return SlideTiles(
            slide_id=task.slide_id,
            cohort=task.cohort,
            url=task.url,
            tile_px=task.tile_px,
            tiles=tiles,
            scale=(slide.grid.scale_x, slide.grid.scale_y),
            mpp=slide.mpp,
            origin_level0_px=slide.info.bounds_level0_px,
            num_found=num_found,
            path=path,
        )


def load_features(slide: SlideTiles, feature_set: str) -> npt.NDArray[np.float32]:
    """One feature set (n, D) of a slide's tiles."""
    with np.load(slide.path, allow_pickle=False) as file:
        return file[feature_set]


def tissue_share(pixels: npt.NDArray[np.uint8]) -> float:
    """Share of a tile (H, W, 3) that is more coloured than glass, judged at an eighth of its size."""
    size = (max(1, pixels.shape[1] // 8), max(1, pixels.shape[0] // 8))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.int16)
    return float((small.max(axis=2) - small.min(axis=2) >= MIN_CHROMA).mean())


def _measured(
    task: SlideTask, slide: IsolatedSlide
) -> tuple[npt.NDArray[np.int32], int, dict[str, npt.NDArray[np.float32]]]:
    """Tiles (n, 2), how many there were, and features by set."""
    geometry = TileGeometry(tile_px=task.tile_px, margin_px=0)
    found = slide.find_tissue(geometry, mode=task.tissue)
    rows, columns = np.nonzero(found.tiles)
    tiles = np.stack([columns, rows], axis=1).astype(np.int32)
    whole = (tiles + 1) * task.tile_px <= (slide.grid.width_px, slide.grid.height_px)
    tiles = tiles[whole.all(axis=1)]
    num_found = len(tiles)
    if num_found > task.max_tiles:
        digest = hashlib.sha256(f"{task.seed}\n{task.slide_id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        tiles = tiles[np.sort(rng.choice(num_found, task.max_tiles, replace=False))]
    kept: list[tuple[int, int]] = []
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    for places, pixels in _batches(_good_tiles(slide, tiles, geometry)):
        kept += places
        for name, values in features_of_tiles(task.encoders, pixels).items():
            parts.setdefault(name, []).append(values)
    return np.array(kept, np.int32).reshape(-1, 2), num_found, {k: np.concatenate(v) for k, v in parts.items()}


def features_of_tiles(
    encoders: tuple[EncoderChoice, ...], pixels: npt.NDArray[np.uint8], *, mpp: float = TILE_MPP
) -> dict[str, npt.NDArray[np.float32]]:
    """Both feature sets of tiles (B, H, W, 3), named `<encoder>:<pooling>`."""
    by_encoder = {choice.name: open_encoder(choice).features(pixels, mpp=mpp) for choice in encoders}
    sets = feature_sets_of(tuple(choice.name for choice in encoders))
    return {f"{name}:{pooling}": by_encoder[name][pooling] for name, pooling in sets}


def _good_tiles(
    slide: IsolatedSlide, tiles: npt.NDArray[np.int32], geometry: TileGeometry
) -> Iterator[tuple[tuple[int, int], npt.NDArray[np.uint8]]]:
    for column, row in tiles.tolist():
        box: Box = geometry.core(column, row)
        found = slide.read(box)
        if (
            found.is_readable(box)
            and tissue_share(found.pixels) >= MIN_TISSUE_SHARE
            and judge_tile(found.pixels) == "ok"
        ):
            yield (column, row), found.pixels


def _batches(
    tiles: Iterator[tuple[tuple[int, int], npt.NDArray[np.uint8]]],
) -> Iterator[tuple[list[tuple[int, int]], npt.NDArray[np.uint8]]]:
    places: list[tuple[int, int]] = []
    pixels: list[npt.NDArray[np.uint8]] = []
    for place, tile in tiles:
        places.append(place)
        pixels.append(tile)
        if len(places) == _AT_ONCE:
            yield places, np.stack(pixels)
            places, pixels = [], []
    if places:
        yield places, np.stack(pixels)


def _key(task: SlideTask, slide: IsolatedSlide, digests: list[str]) -> str:
    """Over all that decides tiles and features."""
    tissue = task.tissue if isinstance(task.tissue, str) else hashlib.sha256(task.tissue.read_bytes()).hexdigest()
    document = {
        "slide": slide.info.fingerprint,
        "mpp": slide.mpp,
        "encoders": digests,
        "tile_px": task.tile_px,
        "tissue": tissue,
        "max_tiles": task.max_tiles,
        "seed": task.seed,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _read_places(path: Path) -> tuple[npt.NDArray[np.int32], int] | None:
    """Tiles (n, 2) of a feature file and how many there were; None where there is no file, or a broken one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["tiles"], int(file["num_found"])
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _write(
    path: Path, tiles: npt.NDArray[np.int32], num_found: int, features: dict[str, npt.NDArray[np.float32]]
) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, tiles=tiles, num_found=np.int64(num_found), **features)  # pyright: ignore[reportArgumentType]
    partial.replace(path)
