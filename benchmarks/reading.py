"""Reading pixels: against OpenSlide on one core, and against ratiopath through Ray Data on two.

Ours is the product's own path (`IsolatedSlide.read`: decoding in a child process, resampling in the parent), and the
CPU seconds of both processes count. The regions are those of fields with a halo, so that neighbours overlap.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import PIL.Image
import psutil
import tifffile

from benchmarks.harness import Rival, Row, compare
from cellmill.grid import Box
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.opening import open_slide

ROOT = Path(__file__).resolve().parents[1]
REAL_SVS = ROOT.parent / "shared" / "data" / "slides" / "CMU-1-Small-Region.svs"
RATIOPATH = ROOT / ".bench" / "ratiopath" / "bin" / "python"
SIDE_PX, TILE_PX, JPEG_QUALITY = 8192, 240, 80
FIELD_PX, HALO_PX = 4096, 64
TASK_PX = 2048
"""Side of what a row of ours reads through Ray Data."""
NUM_SLIDES, STORE_BYTES = 3, 2 << 30
"""Slides through Ray Data, so that what Ray takes to begin counts less; room enough that it holds no task back."""
VIEW_PX = 256
"""Side of the tiles that both pipelines through Ray Data look at."""

Checksums = dict[tuple[str, int, int], int]
"""By path, left and top of a tile."""


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        large = write_large(Path(folder) / "large.svs")
        rows = [
            against_openslide("reading, native", large, mpp=0.5, field_px=FIELD_PX),
            against_openslide("reading, the real SVS", REAL_SVS, mpp=0.5, field_px=3000),
            against_openslide("reading, 0.2528 um/px shown at 0.5", large, mpp=0.2528, field_px=FIELD_PX // 2),
        ]
        return [*rows, against_ratiopath(large, Path(folder))]


def write_large(path: Path) -> Path:
    """The real SVS's pixels mirrored over 8192 x 8192 px, as an SVS of its own: 240 px tiles, JPEG, 4:2:0."""
    with closing(open_slide(REAL_SVS)) as reader:
        level = reader.levels[0]
        pixels = reader.read_block(0, 0, 0, level.width_px, level.height_px)
    rows, columns = (_mirrored(size) for size in pixels.shape[:2])
    tifffile.imwrite(
        path,
        pixels[rows[:, None], columns[None, :]],
        photometric="rgb",
        tile=(TILE_PX, TILE_PX),
        compression="jpeg",
        compressionargs={"level": JPEG_QUALITY},
        description="Aperio Image Library v1\r\n8192x8192|AppMag = 20|MPP = 0.5",
        metadata=None,
        software=False,
    )
    return path


def _mirrored(size: int) -> npt.NDArray[np.int64]:
    there_and_back = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    return np.resize(there_and_back, SIDE_PX)


def against_openslide(name: str, path: Path, *, mpp: float, field_px: int) -> Row:
    """One thread each. Both start with the file open and empty caches; opening is not counted."""
    with IsolatedSlide(path, target_mpp=0.5, mpp=mpp) as slide:
        boxes = list(_fields(slide, field_px))
        scale = slide.grid.scale_x
        most, equal = _agreement(slide, path, boxes) if scale == 1.0 else (0, 1.0)
    ours, theirs, ratio = compare(lambda: _our_seconds(path, mpp, boxes), lambda: _their_seconds(path, boxes, scale))
    megapixels = sum(box.area for box in boxes) / 1e6
    return Row(
        name=name,
        rival=f"OpenSlide {openslide.__library_version__} read_region{'' if scale == 1.0 else ', Pillow bicubic'}",
        ours=ours,
        theirs=theirs,
        unit="CPU s",
        ratio=ratio,
        aim="theirs / ours >= 3 per core; pixels equal within 1 level",
        met=ratio.median >= 3 and most <= 1,
        details={
            "megapixels of the model grid": megapixels,
            "ours, Mpx/s a core": megapixels / ours.median,
            "theirs, Mpx/s a core": megapixels / theirs.median,
            "ours, CPU s per mm2 at 0.5 um/px": ours.median / megapixels / 0.25,
            **({"most grey levels apart": float(most), "share of equal pixels": equal} if scale == 1.0 else {}),
        },
    )


def _fields(slide: IsolatedSlide, field_px: int) -> Iterator[Box]:
    for y in range(0, slide.grid.height_px, field_px):
        for x in range(0, slide.grid.width_px, field_px):
            yield Box(x, y, x + field_px, y + field_px).grown(HALO_PX).clipped(slide.grid.box)


def _our_seconds(path: Path, mpp: float, boxes: list[Box]) -> float:
    with IsolatedSlide(path, target_mpp=0.5, mpp=mpp) as slide:
        child = slide._reader._process
        assert child is not None
        before = _cpu_seconds(child._child.pid)
        for box in boxes:
            slide.read(box)
        return _cpu_seconds(child._child.pid) - before


def _cpu_seconds(child: int) -> float:
    """CPU seconds of this process and the reader's."""
    times = psutil.Process(child).cpu_times()
    return time.process_time() + times.user + times.system


def _their_seconds(path: Path, boxes: list[Box], scale: float) -> float:
    with openslide.OpenSlide(path) as slide:
        started = time.process_time()
        for box in boxes:
            size = (round(box.width * scale), round(box.height * scale))
            region = slide.read_region((round(box.x0 * scale), round(box.y0 * scale)), 0, size)
            if scale != 1.0:
                region.convert("RGB").resize((box.width, box.height), PIL.Image.Resampling.BICUBIC)
        return time.process_time() - started


def _agreement(slide: IsolatedSlide, path: Path, boxes: list[Box]) -> tuple[int, float]:
    """Most grey levels apart, and the share of pixels that are equal."""
    most, num_equal, num_pixels = 0, 0, 0
    with openslide.OpenSlide(path) as theirs:
        for box in boxes:
            rgba = np.asarray(theirs.read_region((box.x0, box.y0), 0, (box.width, box.height)))
            apart = np.abs(slide.read(box).pixels.astype(np.int16) - rgba[..., :3])
            most = max(most, int(apart.max()))
            num_equal += int((apart == 0).all(axis=2).sum())
            num_pixels += box.area
    return most, num_equal / num_pixels


def against_ratiopath(path: Path, folder: Path) -> Row:
    """Every tile of the slide through Ray Data on two CPUs, warm workers; wall seconds of the dataset."""
    from cellmill.cohort.session import ray_session

    paths = [folder / f"slide_{number}.svs" for number in range(NUM_SLIDES)]
    for copy in paths:
        copy.hardlink_to(path)
    request = {"slides": [str(copy) for copy in paths], "tile_px": VIEW_PX}
    versions: set[str] = set()

    def theirs() -> float:
        answer = rival.ask(**request, sums=str(folder / "theirs.npz"))
        versions.add(str(answer["version"]))
        return float(answer["seconds"])

    script = ROOT / "benchmarks" / "rivals" / "ratiopath_reading.py"
    with ray_session(object_store_bytes=STORE_BYTES), Rival(RATIOPATH, script, str(STORE_BYTES)) as rival:
        seen: Checksums = {}
        ours, them, ratio = compare(lambda: _through_ray(paths, seen), theirs)
    with np.load(folder / "theirs.npz") as sums:
        keys = zip(sums["path"].tolist(), sums["x"].tolist(), sums["y"].tolist(), strict=True)
        expected: Checksums = dict(zip(keys, sums["sum"].tolist(), strict=True))
    same = sum(seen.get(tile) == total for tile, total in expected.items()) / len(expected)
    return Row(
        name="reading through Ray Data",
        rival=f"ratiopath {versions.pop()} read_slides + read_slide_tiles, {VIEW_PX} px tiles, 2 CPUs",
        ours=ours,
        theirs=them,
        unit="s",
        ratio=ratio,
        aim="theirs / ours >= 5; the same pixels",
        met=ratio.median >= 5 and same == 1 and len(seen) == len(expected),
        details={"tiles": float(len(seen)), "share of tiles of equal checksum": same},
    )


def _through_ray(paths: list[Path], seen: Checksums) -> float:
    """Fields to tasks, each cut into the tiles that ratiopath reads one by one."""
    import ray.data

    corners = [(x, y) for y in range(0, SIDE_PX, TASK_PX) for x in range(0, SIDE_PX, TASK_PX)]
    fields = [{"path": str(path), "x": x, "y": y} for path in paths for x, y in corners]
    started = time.perf_counter()
    rows = ray.data.from_items(fields, override_num_blocks=8 * NUM_SLIDES).map_batches(look, batch_size=1).take_all()
    seconds = time.perf_counter() - started
    seen.update({(row["path"], row["x"], row["y"]): row["sum"] for row in rows})
    return seconds


def look(batch: dict[str, Any]) -> dict[str, Any]:
    """One field: checksums of its tiles."""
    path, left, top = str(batch["path"][0]), int(batch["x"][0]), int(batch["y"][0])
    pixels = _opened(path).read(Box(left, top, left + TASK_PX, top + TASK_PX)).pixels
    corners = [(x, y) for y in range(0, TASK_PX, VIEW_PX) for x in range(0, TASK_PX, VIEW_PX)]
    sums = [int(pixels[y : y + VIEW_PX, x : x + VIEW_PX][::7, ::5].sum()) for x, y in corners]
    xs, ys = np.array(corners).T
    return {"path": [path] * len(sums), "x": left + xs, "y": top + ys, "sum": np.array(sums)}


@lru_cache(maxsize=NUM_SLIDES)
def _opened(path: str) -> IsolatedSlide:
    """The slide stays open in a worker's process, as it does in ours of a cohort run."""
    return IsolatedSlide(path, target_mpp=0.5, mpp=0.5)
