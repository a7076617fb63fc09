"""Slides damaged on purpose: every one must open or be set aside with a reason, in bounded time and memory.

In: a number. Out: a damaged slide, always the same for that number (real and synthetic slides of every kind read here,
with bits flipped, ends cut, headers edited), and what became of it. `make fuzz` runs thousands and goes on where it was
stopped; `test_fuzz_slides.py` runs a few.
"""

import argparse
import faulthandler
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import tifffile

from cellmill.grid import Box, TileGeometry
from cellmill.slides import isolation, opening, openslide_reader, reader_process, tifffile_reader, tiled_tiff_reader
from cellmill.slides.errors import SlideError
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.isolation import ReaderLimits

PLANTED = "DOE^JANE S22-4711"
"""Stands in the headers of the synthetic slides and must never come out."""
_IMPORTED_BEFORE_FORKING = (opening, openslide_reader, tifffile_reader, tiled_tiff_reader)
LIMITS = ReaderLimits(timeout_seconds=20, memory_bytes=1 << 30)
MAX_SECONDS = 90.0
"""For a whole slide, tissue and pixels, on a busy machine."""
MAX_GROWTH_BYTES = 600 << 20
"""Of the process that asks, over all slides of a batch."""
_MAX_PX_READ = 1 << 22
_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    255,
    256,
    4095,
    1 << 16,
    (1 << 20) - 1,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    4_000_000_000,
    (1 << 32) - 1,
)
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8}

Edit = Callable[[bytearray, random.Random], bytearray]


@dataclass(frozen=True)
class Mutant:
    """A damaged slide."""

    number: int
    seed_name: str
    edits: tuple[str, ...]
    content: bytes
    suffix: str


@dataclass(frozen=True)
class Outcome:
    """What became of it. `fault` says what should not have happened; empty where all is well."""

    number: int
    seed_name: str
    edits: tuple[str, ...]
    ended: str
    reason: str
    seconds: float
    fault: str


# ---------------------------------------------------------------------------------------------------------- seeds


@cache
def seeds(data: Path | None) -> dict[str, bytes]:
    """Whole slides by file name: synthetic ones, and the real ones where there are any."""
    found = _synthetic()
    if data is not None:
        slides = data / "slides"
        fixtures = slides / "fixtures"
        real = [slides / "HE_example.ome.tif", fixtures / "small.svs", fixtures / "boxes.tiff"]
        real.append(data / "dicom" / "sm_image.dcm")
        found |= {path.name: path.read_bytes() for path in real if path.is_file()}
        found["cmu.svs"] = _cropped(slides / "CMU-1-Small-Region.svs")
    return found


def _synthetic() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    tissue = np.clip(rng.normal((205, 150, 190), 25, (400, 520, 3)), 0, 255).astype(np.uint8)
    tissue[:, 400:] = 244
    aperio = f"Aperio Image Library v1\r\n520x400|AppMag = 20|Patient = {PLANTED}|MPP = 0.5"
    label = np.full((60, 60, 3), (255, 0, 255), np.uint8)
    made: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tif"
        options = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "software": False}
        with tifffile.TiffWriter(path) as file:
            jpeg = {"compression": "jpeg", "compressionargs": {"level": 80}, **options}
            file.write(tissue, description=aperio, **jpeg)
            file.write(tissue[::4, ::4], description=aperio, subfiletype=1, **jpeg)
            file.write(label, description="label " + PLANTED, subfiletype=1, photometric="rgb", metadata=None)
        made["jpeg.svs"] = path.read_bytes()
        with tifffile.TiffWriter(path) as file:
            file.write(
                _jpeg2000_tiles(tissue), shape=tissue.shape, dtype=np.uint8, compression=33005, description=aperio,
                **options,
            )  # fmt: skip
        made["jpeg2000.svs"] = path.read_bytes()
        with tifffile.TiffWriter(Path(folder) / "a.ome.tif", ome=True) as file:
            meta = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Description": PLANTED}
            ome = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
            file.write(tissue, subifds=1, metadata=meta, **ome)
            file.write(tissue[::2, ::2], subfiletype=1, **ome)
        made["pyramid.ome.tif"] = (Path(folder) / "a.ome.tif").read_bytes()
        scale = {
            "resolution": (20000, 20000),
            "resolutionunit": "CENTIMETER",
            "extratags": [(315, 2, 0, PLANTED, True)],  # Artist
        }
        for name, kind in (
            ("tiled.tif", {"tile": (128, 128), "compression": "lzw"}),
            ("strips.tif", {"rowsperstrip": 16, "compression": "zlib", "predictor": True}),
            ("planes.tif", {"planarconfig": "separate", "tile": (128, 128)}),
            ("big.tif", {"tile": (128, 128), "compression": "jpeg", "bigtiff": True}),
        ):
            image = np.moveaxis(tissue, -1, 0) if "planarconfig" in kind else tissue
            tifffile.imwrite(path, image, photometric="rgb", metadata=None, **scale, **kind)
            made[name] = path.read_bytes()
    return made


def _jpeg2000_tiles(image: np.ndarray):
    for top in range(0, image.shape[0], 128):
        for left in range(0, image.shape[1], 128):
            tile = np.full((128, 128, 3), 244, np.uint8)
            part = image[top : top + 128, left : left + 128]
            tile[: part.shape[0], : part.shape[1]] = part
            yield imagecodecs.jpeg2k_encode(tile, codecformat="j2k", level=30)


def _cropped(path: Path) -> bytes:
    """A corner of a real slide, its tiles as they are."""
    with tifffile.TiffFile(path) as file, tempfile.NamedTemporaryFile(suffix=".svs") as target:
        page = file.pages[0]
        tiles = [
            file.filehandle.read_array(np.uint8, page.databytecounts[i], page.dataoffsets[i]).tobytes()
            for row in range(3)
            for i in range(row * 10, row * 10 + 3)
        ]
        with tifffile.TiffWriter(target.name) as out:
            out.write(
                iter(tiles), shape=(720, 720, 3), dtype=np.uint8, tile=(240, 240), photometric="rgb", metadata=None,
                compression="jpeg", jpegtables=page.jpegtables, description=page.description, software=False,
            )  # fmt: skip
        return Path(target.name).read_bytes()


# ---------------------------------------------------------------------------------------------------------- edits


def _flip_bits(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _flip_head(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 2, 8))):
        content[rng.randrange(min(len(content), 1024))] ^= 1 << rng.randrange(8)
    return content


def _cut(content: bytearray, rng: random.Random) -> bytearray:
    return content[: max(1, int(len(content) * rng.random() ** 0.5))]


def _blank(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content))
    length = min(len(content) - start, rng.choice((4, 64, 1024, 1 << 16)))
    content[start : start + length] = rng.choice((b"\0", b"\xff", b"A")) * length
    return content


def _shift(content: bytearray, rng: random.Random) -> bytearray:
    place = rng.randrange(len(content))
    if rng.random() < 0.5:
        del content[place : place + rng.choice((1, 2, 100))]
    else:
        content[place:place] = rng.randbytes(rng.choice((1, 2, 100)))
    return content


def _splice(content: bytearray, rng: random.Random) -> bytearray:
    start, length = rng.randrange(len(content)), rng.choice((16, 512, 8192))
    to = rng.randrange(len(content))
    piece = bytes(content[start : start + length])
    content[to : to + len(piece)] = piece
    return content


def _edit_tag(content: bytearray, rng: random.Random) -> bytearray:
    """Another value, count or type for entries of a TIFF's directories: sizes, offsets, compressions, bomb by bomb."""
    entries = _tiff_entries(bytes(content))
    for _ in range(rng.choice((1, 1, 2, 4)) if entries else 0):
        offset, big, order = rng.choice(entries)
        number = rng.choice(_NUMBERS) if rng.random() < 0.8 else rng.randrange(1 << 32)
        part = rng.choice(("value", "value", "value", "count", "type", "tag"))
        if part == "value":
            struct.pack_into(order + ("Q" if big else "I"), content, offset + (12 if big else 8), number)
        elif part == "count":
            struct.pack_into(order + ("Q" if big else "I"), content, offset + 4, number)
        else:
            struct.pack_into(order + "H", content, offset + (2 if part == "type" else 0), number & 0xFFFF)
    return content


def _tiff_entries(content: bytes) -> list[tuple[int, bool, str]]:
    """Where the entries of the first directories lie; (offset, BigTIFF, byte order)."""
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None or len(content) < 64:
        return []
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    found: list[tuple[int, bool, str]] = []
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
        for _ in range(4):
            (number,) = struct.unpack_from(order + ("Q" if big else "H"), content, at)
            first, step = at + (8 if big else 2), 20 if big else 12
            if not number or number > 100:
                break
            found += [(first + step * n, big, order) for n in range(number)]
            (at,) = struct.unpack_from(order + ("Q" if big else "I"), content, first + step * number)
            if not at:
                break
    except struct.error:
        pass
    return [entry for entry in found if entry[0] + 20 <= len(content)]


def _bomb(content: bytearray, rng: random.Random) -> bytearray:
    """A directory that claims far more pixels, rows a strip or larger tiles than the file holds."""
    entries = _tiff_entries(bytes(content))
    sizes = {256, 257, 278, 322, 323}  # ImageWidth, ImageLength, RowsPerStrip, TileWidth, TileLength
    side = rng.choice((1 << 14, 60_000, 1 << 19, (1 << 20) - 1, 1 << 24, 4_000_000_000))
    wanted = rng.choice(({256, 257}, {256, 257}, {322, 323}, {278}, sizes))
    for offset, big, order in entries:
        if struct.unpack_from(order + "H", content, offset)[0] in wanted:
            struct.pack_into(order + "H", content, offset + 2, 4)
            struct.pack_into(order + ("Q" if big else "I"), content, offset + (12 if big else 8), side)
    return content


def _edit_text(content: bytearray, rng: random.Random) -> bytearray:
    """Other numbers and markup in descriptions, of the same length so that nothing moves."""
    numbers = [match for match in re.finditer(rb"[0-9]+(\.[0-9]+)?", bytes(content[: 1 << 16])) if len(match[0]) > 1]
    for _ in range(rng.choice((1, 3))):
        if not numbers:
            return _flip_head(content, rng)
        found = rng.choice(numbers)
        text = rng.choice((b"0", b"9" * 40, b"-1", b"nan", b"1e9", b"<!DOCTYPE x>", b"&a;", b"\0\0"))
        length = found.end() - found.start()
        content[found.start() : found.end()] = (
            (text * length)[:length] if text[:1] == b"9" else text[:length].ljust(length)
        )
    return content


EDITS: dict[str, Edit] = {
    "bits": _flip_bits,
    "head": _flip_head,
    "cut": _cut,
    "blank": _blank,
    "shift": _shift,
    "splice": _splice,
    "tag": _edit_tag,
    "tag again": _edit_tag,
    "text": _edit_text,
    "bomb": _bomb,
}


def mutant(number: int, data: Path | None) -> Mutant:
    """The damaged slide of this number."""
    rng = random.Random(number)
    whole = seeds(data)
    name = sorted(whole)[number % len(whole)]
    content = bytearray(whole[name])
    names = rng.sample(sorted(EDITS), rng.choice((1, 1, 1, 2)))
    for edit in names:
        content = EDITS[edit](content, rng) or bytearray(b"\0")
    return Mutant(number, name, tuple(names), bytes(content), "".join(Path(name).suffixes))


# -------------------------------------------------------------------------------------------------------- running


class ForkedReader:
    """A reader process forked from this one in place of a fresh interpreter, which takes a second to start."""

    def __init__(self, arguments: list[str], *, pass_fds: tuple[int, ...], **_: object) -> None:
        self.pid = os.fork()
        self.returncode: int | None = None
        if self.pid == 0:
            try:
                faulthandler.disable()  # pytest's would tell of each decoder that aborts
                null = os.open(os.devnull, os.O_RDWR)
                for standard in (0, 1, 2):
                    os.dup2(null, standard)
                sys.argv = arguments[-4:]
                reader_process.main()
            finally:
                os._exit(70)

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 1e9)
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("reader", timeout or 0)
            else:
                time.sleep(0.002)
        return self.returncode


@contextmanager
def forked_readers() -> Generator[None]:
    """Have `cellmill.slides.isolation` fork its children; all else of it is as in a run."""
    started = isolation.subprocess.Popen
    isolation.subprocess.Popen = ForkedReader  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        isolation.subprocess.Popen = started  # type: ignore[misc]


def look_at(path: Path) -> str:
    """All that a run does with a slide before the network: open, find tissue, read. Raises `SlideError`.

    A slide that states no scale is given one, so that its pixels are met too.
    """
    tiles = TileGeometry(tile_px=192, margin_px=32)
    with IsolatedSlide(path, target_mpp=0.5, mpp=0.5, limits=LIMITS) as slide:
        tissue = slide.find_tissue(tiles)
        box = slide.grid.box
        num_bad = 0
        for part in _parts(box):
            read = slide.read(part)
            assert read.pixels.shape == (part.height, part.width, 3)
            num_bad += bool(read.unreadable)
    return f"opened, {tissue.num_tiles} tiles of tissue" + (", parts unreadable" if num_bad else "")


def _parts(box: Box) -> list[Box]:
    if box.area <= _MAX_PX_READ:
        return [box]
    corners = [(0, 0), (box.x1 - 700, 0), (0, box.y1 - 700), (box.x1 - 700, box.y1 - 700), (box.x1 // 2, box.y1 // 2)]
    return [
        Box(x, y, x + 700, y + 700).clipped(box) for x, y in corners if Box(x, y, x + 700, y + 700).clipped(box).area
    ]


def attempt(damaged: Mutant, folder: Path) -> Outcome:
    """What becomes of a damaged slide."""
    path = folder / f"{PLANTED.split()[1]}{damaged.suffix}"
    path.write_bytes(damaged.content)
    started, fault = time.monotonic(), ""
    try:
        ended, reason = "opened", look_at(path)
    except SlideError as error:
        ended, reason = type(error).__name__, str(error)
        if len(reason) < 10:
            fault = "set aside without a reason"
    except Exception as error:  # noqa: BLE001 - the very thing looked for
        ended, reason, fault = "exception", repr(error)[:300], f"{type(error).__name__} came out"
    seconds = time.monotonic() - started
    if seconds > MAX_SECONDS:
        fault = fault or f"took {seconds:.0f} s"
    if any(word in reason for word in (*PLANTED.split(), str(folder))):
        fault = fault or "the reason names the file or quotes its header"
    path.unlink()
    return Outcome(damaged.number, damaged.seed_name, damaged.edits, ended, reason, round(seconds, 2), fault)


def run(
    numbers: list[int], data: Path | None, *, log: Path | None = None, seconds: float = float("inf")
) -> list[Outcome]:
    """Damaged slides of these numbers, those in `log` left out, until time is up."""
    done = {json.loads(line)["number"] for line in log.read_text().splitlines()} if log and log.exists() else set[int]()
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + seconds
    process = psutil.Process()
    at_first = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, forked_readers():
        for number in numbers:
            if number in done or time.monotonic() > deadline:
                continue
            outcome = attempt(mutant(number, data), Path(folder))
            outcomes.append(outcome)
            at_first = at_first or process.memory_info().rss
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
    growth = process.memory_info().rss - at_first
    if outcomes and growth > MAX_GROWTH_BYTES:
        outcomes.append(Outcome(-1, "", (), "", "", 0, f"the asking process grew by {growth >> 20} MiB"))
    return outcomes


def report(outcomes: list[dict[str, object]]) -> str:
    """How a batch ended, for people."""
    lines = [f"{len(outcomes)} damaged slides: {dict(Counter(str(o['ended']) for o in outcomes).most_common())}"]
    lines.append(f"by slide: {dict(Counter(str(o['seed_name']) for o in outcomes))}")
    slowest = max((float(str(o["seconds"])) for o in outcomes), default=0.0)
    child_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    lines.append(
        f"slowest {slowest:.1f} s; the largest reader took {child_mib} MiB (limit {LIMITS.memory_bytes >> 20})"
    )
    faults = [o for o in outcomes if o["fault"]]
    lines += [f"FAULT {o['number']} {o['seed_name']} {o['edits']}: {o['fault']}: {o['reason']}" for o in faults]
    return "\n".join([*lines, f"{len(faults)} faults"])


def main() -> int:
    """Run a long batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="damaged slides in all")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time; run again to go on")
    parser.add_argument("--log", type=Path, default=Path(".fuzz/slides.jsonl"), help="what became of each; kept")
    parser.add_argument("--data", type=Path, default=None, help="folder of real slides, as tests use it")
    arguments = parser.parse_args()
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    data = arguments.data if arguments.data and arguments.data.is_dir() else None
    numbers = list(range(arguments.first, arguments.first + arguments.count))
    extra = [asdict(o) for o in run(numbers, data, log=arguments.log, seconds=arguments.seconds) if o.number < 0]
    everything = [json.loads(line) for line in arguments.log.read_text().splitlines()] + extra
    sys.stdout.write(report(everything) + "\n")
    return 1 if any(o["fault"] for o in everything) else 0


if __name__ == "__main__":
    raise SystemExit(main())
