"""Slides through OpenSlide: SVS, NDPI, MRXS, SCN, BIF, VMS, DICOM, tiled TIFF."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from cellmill.privacy import allowed_properties
from cellmill.slides.errors import SlideReadError, SlideTooLargeError
from cellmill.slides.reader import SlideLevel, level_downsamples

__all__ = ["OpenSlideReader"]

_MAX_TILE_PX = 1 << 26
"""Decoded whole: 256 MiB. Scanners write tiles of up to 4096 x 4096 px."""
_EXACT_PX = 1 / 512
"""A part of a level pixel too small to change a pixel by more than one grey level."""


class OpenSlideReader:
    """An OpenSlide handle that reads absolute blocks and survives a block that cannot be decoded."""

    def __init__(self, path: Path) -> None:
        """Open `path`; raises `openslide.OpenSlideError` where OpenSlide does."""
        self._path = path
        self._slide: openslide.OpenSlide | None = None
        slide = self._open()
        properties = allowed_properties(slide.properties)
        _check_tiles(properties)
        self._vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self._levels = level_downsamples([(int(width), int(height)) for width, height in slide.level_dimensions])
        self._downsamples = tuple(float(value) for value in slide.level_downsamples)
        self._mpp = _pair(properties.get(openslide.PROPERTY_NAME_MPP_X), properties.get(openslide.PROPERTY_NAME_MPP_Y))
        bounds = _pair(
            properties.get(openslide.PROPERTY_NAME_BOUNDS_X), properties.get(openslide.PROPERTY_NAME_BOUNDS_Y)
        )
        self._bounds = (0, 0) if bounds is None else (int(bounds[0]), int(bounds[1]))

    @property
    def name(self) -> str:
        """Reader and vendor."""
        return f"openslide/{self._vendor}"

    @property
    def vendor(self) -> str:
        """OpenSlide's name of the format."""
        return self._vendor

    @property
    def is_plain_tiff(self) -> bool:
        """Whether it is a format whose levels are one TIFF directory of tiles each, without overlaps or stitching."""
        return self._vendor in ("aperio", "generic-tiff")

    @property
    def levels(self) -> tuple[SlideLevel, ...]:
        """Resolutions, finest first."""
        return self._levels

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Level-0 um/px as stated."""
        return self._mpp

    @property
    def bounds_level0_px(self) -> tuple[int, int]:
        """Left and top of the scanned area."""
        return self._bounds

    def read_block(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Native pixels of a level as RGB, see `SlideReader`."""
        location = (self._level0_px(level, x), self._level0_px(level, y))
        for attempt in (1, 2):
            try:
                rgba = np.asarray(self._open().read_region(location, level, (width, height)))  # (H, W, 4)
                return _on_white(rgba)
            except openslide.OpenSlideError as error:
                # The handle is in a permanent error state now. Network file systems fail once in a while: try a fresh
                # one before calling the block unreadable.
                self.close()
                if attempt == 2:
                    raise SlideReadError(f"Level {level} cannot be decoded at ({x}, {y}).") from error
        raise AssertionError("unreachable")

    def is_exact(self, level: int, position: int) -> bool:
        """Whether a block whose left or top is at `position` shows the level's own pixels, not a mix of neighbours."""
        off_by_px = self._level0_px(level, position) / self._downsamples[level] - position
        return abs(off_by_px) < _EXACT_PX

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None

    def _level0_px(self, level: int, position: int) -> int:
        # OpenSlide takes level-0 positions and divides by its own downsample, an average over both axes; the nearest
        # level-0 pixel is at most half of one off the level pixel meant, the same for every request of this block.
        return round(position * self._downsamples[level])

    def _open(self) -> openslide.OpenSlide:
        if self._slide is None:
            self._slide = openslide.OpenSlide(str(self._path))
        return self._slide


def _check_tiles(properties: Mapping[str, str]) -> None:
    """Refuse tiles that OpenSlide would end its process over, for want of memory."""
    for name, width in properties.items():
        height = properties.get(name.replace("tile-width", "tile-height"))
        if name.endswith("tile-width") and height is not None and float(width) * float(height) > _MAX_TILE_PX:
            raise SlideTooLargeError(
                f"The slide is stored in pieces of {width} x {height} px, too large to decode: the file is damaged, or "
                "must be converted to a tiled one."
            )


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Straight (not premultiplied) RGBA over white, (H, W, 3)."""
    alpha = rgba[..., 3:]
    rgb = rgba[..., :3]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    opacity = alpha.astype(np.uint32)
    return ((rgb * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _pair(first: str | None, second: str | None) -> tuple[float, float] | None:
    try:
        return (float(first or ""), float(second or ""))
    except ValueError:
        return None
