"""Which levels of a slide are plain directories of JPEG or JPEG 2000 tiles, and where each tile's bytes lie.

Consumes a TIFF and the level sizes that OpenSlide found in it; produces one `TileLevel` for every level that is exactly
one directory of that size in a form decoded here. Only directories of a level's size are looked into, and tiled ones at
that: labels, macros and thumbnails are neither.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellmill.slides.tile_codecs import (
    APERIO_JPEG2000_RGB,
    APERIO_JPEG2000_YCBCR,
    TileDecoder,
    TileError,
    jpeg2000_decoder,
    jpeg_decoder,
)

__all__ = ["TileLevel", "find_tile_levels"]

# tifffile's warnings quote header text, which can name a patient.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

MAX_TILE_PX = 1 << 22
"""Tiles of more than 2048 x 2048 px stay with OpenSlide."""
_JPEG = 7


@dataclass(frozen=True)
class TileLevel:
    """One directory of tiles."""

    width_px: int
    height_px: int
    tile_w: int
    tile_h: int
    offsets: NDArray[np.int64]  # (rows, columns)
    sizes: NDArray[np.int64]  # (rows, columns); 0 where the file holds no such tile
    decode: TileDecoder

    def read(self, file: int, column: int, row: int, *, into: NDArray[np.uint8]) -> None:
        """Decode a tile whole, also where it reaches over the level's edge.

        Args:
            file: descriptor of the slide.
            column: of the tile.
            row: of the tile.
            into: (tile_h, tile_w, 3), contiguous; it may hold anything after an error.

        Raises:
            TileError: when the file holds no such tile, or one that is damaged or of a kind that is not decoded here.
            OSError: when the file cannot be read.
        """
        offset, size = int(self.offsets[row, column]), int(self.sizes[row, column])
        if not 0 < size <= 4 * self.tile_w * self.tile_h + (1 << 16) or offset <= 0:
            raise TileError("The file holds no such tile, or one of an absurd size.")
        encoded = os.pread(file, size, offset)
        if len(encoded) < size:
            raise TileError("The file ends within this tile.")
        self.decode(encoded, into)


def find_tile_levels(path: Path, sizes_px: Sequence[tuple[int, int]], *, is_aperio: bool) -> dict[int, TileLevel]:
    """Levels, by their index in `sizes_px`, that can be decoded here; none where tifffile cannot make out the file."""
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
            found: dict[int, TileLevel] = {}
            for index, size in enumerate(sizes_px):
                matching = [page for page in pages if (page.imagewidth, page.imagelength) == size]
                level = _tile_level(matching[0], is_aperio=is_aperio) if len(matching) == 1 else None
                if level is not None:
                    found[index] = level
                if is_aperio and (level is None or not level.sizes.all()):
                    # Aperio's encoder spoils the tiles of coarser levels below a missing one. OpenSlide paints them
                    # from the finer level instead: leave that to it.
                    break
            return found
    except Exception:  # noqa: BLE001 -- tifffile meets damaged headers with any type of exception
        return {}


def _tile_level(page: tifffile.TiffPage, *, is_aperio: bool) -> TileLevel | None:
    plain = (
        page.dtype == np.uint8
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and page.imagedepth == page.tiledepth == 1
        and 0 < page.tilewidth * page.tilelength <= MAX_TILE_PX
    )
    decode = _decoder(page, is_aperio=is_aperio) if plain else None
    if decode is None:
        return None
    shape = (-(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth))
    if len(page.dataoffsets) != shape[0] * shape[1] or len(page.databytecounts) != len(page.dataoffsets):
        return None
    return TileLevel(
        width_px=page.imagewidth,
        height_px=page.imagelength,
        tile_w=page.tilewidth,
        tile_h=page.tilelength,
        offsets=np.array(page.dataoffsets, np.int64).reshape(shape),
        sizes=np.array(page.databytecounts, np.int64).reshape(shape),
        decode=decode,
    )


def _decoder(page: tifffile.TiffPage, *, is_aperio: bool) -> TileDecoder | None:
    compression, photometric = int(page.compression), page.photometric
    if compression == _JPEG and photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR):
        is_ycbcr = photometric == tifffile.PHOTOMETRIC.YCBCR
        return jpeg_decoder(tables=page.jpegtables, is_ycbcr=is_ycbcr)
    if is_aperio and compression in (APERIO_JPEG2000_YCBCR, APERIO_JPEG2000_RGB):
        return jpeg2000_decoder(is_ycbcr=compression == APERIO_JPEG2000_YCBCR)
    return None
