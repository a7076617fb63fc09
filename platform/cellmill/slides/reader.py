"""The one interface between slide files and everything else: levels of native pixels, by absolute position.

Another kind of file is another module with a class of this shape and a function `path -> SlideReader`, named as
`module:function` wherever a reader can be chosen.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cellmill.privacy import allowed_reader_name
from cellmill.slides.errors import SlideTooLargeError, UnsupportedSlideError

__all__ = [
    "MAX_AREA_PX",
    "FillsBlocks",
    "SlideInfo",
    "SlideLevel",
    "SlideReader",
    "check_levels",
    "check_size_in_bytes",
    "fill_block",
    "level_downsamples",
]

MAX_SIDE_PX = 1 << 20
MAX_AREA_PX = 1 << 38
"""Well above any scanner (a 26 x 76 mm slide at 0.1 um/px has 1.98e11 px); headers beyond it lie."""
MAX_PX_PER_BYTE = 1 << 11
"""A blank 256 px tile takes 200 bytes or more (330 px a byte); one left out takes 8, but no slide is all left out. A
header beyond it describes an image that is not in the file, and could keep a worker busy for hours."""


@dataclass(frozen=True)
class SlideLevel:
    """One resolution of a slide; pixel (x, y) of it covers level-0 x in [x * downsample_x, (x + 1) * downsample_x)."""

    width_px: int
    height_px: int
    downsample_x: float
    downsample_y: float


class SlideReader(Protocol):
    """An open slide. Not thread-safe; reads native pixels only, never a label, macro or thumbnail image."""

    @property
    def name(self) -> str:
        """Which reader and format this is, like "openslide/aperio"."""
        ...

    @property
    def levels(self) -> tuple[SlideLevel, ...]:
        """Resolutions, finest first; there is at least one."""
        ...

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Level-0 um/px in x and y as the file states them, believed or not; None where it states none."""
        ...

    @property
    def bounds_level0_px(self) -> tuple[int, int]:
        """Left and top of the scanned area in level-0 px; coordinates do not have it subtracted."""
        ...

    def read_block(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Native pixels of a level as RGB; white outside the level and where the slide holds nothing.

        Raises:
            SlideReadError: when the region cannot be decoded. Other regions may still be read.
        """  # -> (height, width, 3)
        ...

    def close(self) -> None:
        """Release the file."""
        ...


@runtime_checkable
class FillsBlocks(Protocol):
    """What a `SlideReader` may offer besides: pixels into memory that is there already, for those who ask for many.

    Fresh memory has to be mapped page by page, which took as long as decoding the pixels that went into it.
    """

    def fill_block(self, level: int, x: int, y: int, block: NDArray[np.uint8]) -> None:
        """As `read_block`, into `block` (height, width, 3); after an error it may hold anything."""
        ...


def fill_block(reader: SlideReader, level: int, x: int, y: int, block: NDArray[np.uint8]) -> None:
    """Native pixels into `block` (height, width, 3), from any reader; raises as `SlideReader.read_block`."""
    if isinstance(reader, FillsBlocks):
        reader.fill_block(level, x, y, block)
    else:
        block[:] = reader.read_block(level, x, y, block.shape[1], block.shape[0])


@dataclass(frozen=True)
class SlideInfo:
    """All that is ever taken from a slide besides pixels: `cellmill.privacy` lists it."""

    reader_name: str
    levels: tuple[SlideLevel, ...]
    stated_mpp: tuple[float, float] | None
    bounds_level0_px: tuple[int, int]
    fingerprint: str

    @property
    def width_level0_px(self) -> int:
        """Width of the finest level."""
        return self.levels[0].width_px

    @property
    def height_level0_px(self) -> int:
        """Height of the finest level."""
        return self.levels[0].height_px

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, read back by `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> "SlideInfo":
        """Parse what `to_json` wrote."""
        mpp, bounds = document["stated_mpp"], document["bounds_level0_px"]
        return SlideInfo(
            reader_name=allowed_reader_name(str(document["reader_name"])),
            levels=tuple(_level_from_json(level) for level in document["levels"]),
            stated_mpp=None if mpp is None else (float(mpp[0]), float(mpp[1])),
            bounds_level0_px=(int(bounds[0]), int(bounds[1])),
            fingerprint=str(document["fingerprint"]),
        )


def _level_from_json(level: dict[str, Any]) -> SlideLevel:
    sizes = (int(level["width_px"]), int(level["height_px"]))
    return SlideLevel(*sizes, float(level["downsample_x"]), float(level["downsample_y"]))


def level_downsamples(sizes_px: Sequence[tuple[int, int]]) -> tuple[SlideLevel, ...]:
    """Levels of the given (width, height), finest first, with their downsamples.

    Writers cut part pixels off, so 2221 px become 555 at a quarter: the ratio 4.0018 is taken as the 4 it was, which
    also keeps level-0 positions right at the far edge.
    """
    width0, height0 = sizes_px[0]
    return tuple(
        SlideLevel(width, height, _downsample(width0, width), _downsample(height0, height))
        for width, height in sizes_px
    )


def _downsample(size0_px: int, size_px: int) -> float:
    nominal = round(size0_px / size_px)
    return float(nominal) if abs(size0_px / nominal - size_px) < 1 else size0_px / size_px


def check_levels(levels: tuple[SlideLevel, ...]) -> None:
    """Refuse sizes that no slide has, before anything is allocated for them.

    Raises:
        UnsupportedSlideError: when there is no level, or an empty one.
        SlideTooLargeError: when the sizes are absurd.
    """
    if not levels or any(level.width_px < 1 or level.height_px < 1 for level in levels):
        raise UnsupportedSlideError("The slide holds no pixels: its header states an empty image.")
    width, height = levels[0].width_px, levels[0].height_px
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_AREA_PX:
        raise SlideTooLargeError(
            f"The slide's header claims {width} x {height} px; slides of more than {MAX_SIDE_PX} px a side or "
            f"{MAX_AREA_PX} px in all are refused. Check the file, or export it again."
        )


def check_size_in_bytes(levels: tuple[SlideLevel, ...], num_bytes: int) -> None:
    """Refuse sizes that the slide's files cannot hold.

    Raises:
        SlideTooLargeError: when they are too small for the picture that the header claims.
    """
    width, height = levels[0].width_px, levels[0].height_px
    if width * height > MAX_PX_PER_BYTE * num_bytes:
        raise SlideTooLargeError(
            f"The slide's header claims {width} x {height} px, and its files hold {num_bytes} bytes, too few for any "
            "such picture: the file is damaged or cut off. Copy it again, or export it again."
        )
