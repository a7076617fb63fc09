"""OME-TIFF, and the TIFFs that OpenSlide refuses, through tifffile: one tile or strip at a time."""

import logging
import re
from collections import OrderedDict
from pathlib import Path
from xml.etree.ElementTree import ParseError

import numpy as np
import tifffile
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray

from cellmill.slides.errors import SlideReadError, SlideTooLargeError, UnsupportedSlideError
from cellmill.slides.reader import SlideLevel, level_downsamples
from cellmill.slides.scale import is_usable_mpp

__all__ = ["TifffileReader"]

# tifffile's warnings quote header text, which can name a patient.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

MAX_SEGMENT_BYTES = 1 << 28
"""Largest tile or strip decoded whole: 256 MiB."""
CACHE_BYTES = 1 << 28
"""Decoded segments kept: strips as wide as the slide are met by every block across it, 154 MB for one of 100,000 px."""

_NOT_THE_SLIDE = re.compile(r"label|macro|thumb|overview|preview|barcode", re.IGNORECASE)
_DECODE_ERRORS = (ValueError, RuntimeError, OSError, KeyError, IndexError, NotImplementedError, tifffile.TiffFileError)
_UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "nm": 1e-3, "m": 1e6, "in": 25400.0}


class TifffileReader:
    """An RGB image in a TIFF, its pyramid levels, and the scale its OME-XML or resolution tags state."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            tifffile.TiffFileError: when it is no TIFF.
            UnsupportedSlideError: when it holds no RGB image, or one in a compression that is not known.
        """
        self._file = tifffile.TiffFile(path)
        try:
            _refuse_entities(self._file)
            index, series = _slide_series(self._file)
            self._pages = [_page_of(level) for level in series.levels]
            for page in self._pages:
                _check_page(page)
        except BaseException:
            self._file.close()
            raise
        self._kind = series.kind
        self._levels = level_downsamples([(page.imagewidth, page.imagelength) for page in self._pages])
        self._mpp = _stated_mpp(self._file, index, self._pages[0])
        self._segments: OrderedDict[tuple[int, int], NDArray[np.uint8] | None] = OrderedDict()
        self._cached_bytes = 0

    @property
    def name(self) -> str:
        """Reader and kind of TIFF."""
        return f"tifffile/{self._kind}"

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
        """TIFF knows no such offset."""
        return (0, 0)

    def read_block(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Native pixels of a level as RGB, see `SlideReader`."""
        page = self._pages[level]
        block = np.full((height, width, 3), 255, np.uint8)
        seg_w, seg_h = _segment_size(page)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, page.imagewidth), min(y + height, page.imagelength)
        if x1 <= x0 or y1 <= y0:
            return block
        for row in range(y0 // seg_h, -(-y1 // seg_h)):
            for column in range(x0 // seg_w, -(-x1 // seg_w)):
                segment = self._segment(level, row, column)
                if segment is None:
                    continue
                left, top = column * seg_w, row * seg_h
                right, bottom = min(left + segment.shape[1], x1), min(top + segment.shape[0], y1)
                from_x, from_y = max(left, x0), max(top, y0)
                block[from_y - y : bottom - y, from_x - x : right - x] = segment[
                    from_y - top : bottom - top, from_x - left : right - left
                ]
        return block

    def close(self) -> None:
        """Release the file and the cache."""
        self._segments.clear()
        self._cached_bytes = 0
        self._file.close()

    def _segment(self, level: int, row: int, column: int) -> NDArray[np.uint8] | None:
        page = self._pages[level]
        index = row * -(-page.imagewidth // _segment_size(page)[0]) + column
        key = (level, index)
        if key in self._segments:
            self._segments.move_to_end(key)
            return self._segments[key]
        try:
            segment = self._decode(page, index)
        except _DECODE_ERRORS as error:
            raise SlideReadError(f"Level {level} cannot be decoded at tile column {column}, row {row}.") from error
        self._segments[key] = segment
        self._cached_bytes += 0 if segment is None else segment.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._segments) > 1:
            _, dropped = self._segments.popitem(last=False)
            self._cached_bytes -= 0 if dropped is None else dropped.nbytes
        return segment

    def _decode(self, page: tifffile.TiffPage, index: int) -> NDArray[np.uint8] | None:
        """One tile or strip as RGB (h, w, 3); None where the file holds nothing for it."""
        num_planes = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
        per_plane = len(page.dataoffsets) // num_planes
        planes: list[NDArray[np.uint8]] = []
        for plane in range(num_planes):
            position = plane * per_plane + index
            if page.databytecounts[position] == 0:
                return None
            encoded = self._read(page.dataoffsets[position], page.databytecounts[position])
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if _is_jpeg(page) else {}
            decoded, _, shape = page.decode(encoded, position, **tables, _fullsize=False)
            if decoded is None:
                return None
            planes.append(np.asarray(decoded)[0, : shape[1], : shape[2]])
        samples = planes[0] if num_planes == 1 else np.concatenate(planes, axis=-1)  # (h, w, S)
        return _rgb_on_white(samples, page)

    def _read(self, offset: int, length: int) -> bytes:
        handle = self._file.filehandle
        handle.seek(offset)
        data = handle.read(length)
        if len(data) != length:
            raise ValueError("the file ends within this tile")
        return data


def _refuse_entities(file: tifffile.TiffFile) -> None:
    """tifffile parses OME-XML on its own, with a parser that expands entities; OME-XML has none."""
    description = file.pages.first.description
    if "<!DOCTYPE" in description or "<!ENTITY" in description:
        raise UnsupportedSlideError("The file's XML declares entities, as no slide does; export it again.")


def _slide_series(file: tifffile.TiffFile) -> tuple[int, tifffile.TiffPageSeries]:
    """The series that is the slide, and its index: the largest that is not a label, macro or thumbnail."""
    if not file.series:
        raise tifffile.TiffFileError("no image directory")
    candidates = [
        (index, series)
        for index, series in enumerate(file.series)
        if not _NOT_THE_SLIDE.search(series.name) and "Y" in series.axes and "X" in series.axes
    ]
    if not candidates:
        raise UnsupportedSlideError("The file holds no image besides labels and thumbnails.")
    return max(candidates, key=lambda item: _area(item[1]))


def _area(series: tifffile.TiffPageSeries) -> int:
    return series.shape[series.axes.index("Y")] * series.shape[series.axes.index("X")]


def _page_of(level: tifffile.TiffPageSeries) -> tifffile.TiffPage:
    """The one page of a series level."""
    if level.axes not in ("YXS", "SYX"):
        sizes = ", ".join(f"{axis}: {size}" for axis, size in zip(level.axes, level.shape, strict=True))
        raise UnsupportedSlideError(
            f"The image is no plain RGB picture (its axes are {sizes}); export one plane as 8-bit RGB."
        )
    return level.keyframe


def _check_page(page: tifffile.TiffPage) -> None:
    """Refuse what cannot be read as 8-bit RGB, before reading any of it."""
    photometric = page.photometric
    is_rgb = photometric == tifffile.PHOTOMETRIC.RGB or (
        photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS
    )
    if page.dtype != np.uint8 or page.samplesperpixel not in (3, 4) or not is_rgb:
        raise UnsupportedSlideError(
            f"The image has {page.samplesperpixel} channel(s) of type {page.dtype}; slides are 8-bit RGB."
        )
    compression = int(page.compression)
    if compression != 1 and compression not in tifffile.TIFF.DECOMPRESSORS:
        raise UnsupportedSlideError(f"The image is stored in TIFF compression {compression}, which is not known.")
    seg_w, seg_h = _segment_size(page)
    if seg_w * seg_h * page.samplesperpixel > MAX_SEGMENT_BYTES:
        raise SlideTooLargeError(
            f"The image is stored in pieces of {seg_w} x {seg_h} px, too large to decode; convert it to a tiled TIFF."
        )
    if len(page.dataoffsets) != len(page.databytecounts) or len(page.dataoffsets) < np.prod(page.chunked):
        raise UnsupportedSlideError("The TIFF's list of tiles is not complete: the file is damaged.")


def _segment_size(page: tifffile.TiffPage) -> tuple[int, int]:
    """Width and height of a tile, or of a strip."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, min(page.rowsperstrip, page.imagelength)


def _is_jpeg(page: tifffile.TiffPage) -> bool:
    return int(page.compression) in (6, 7, 34892, 33007)


def _rgb_on_white(samples: NDArray[np.uint8], page: tifffile.TiffPage) -> NDArray[np.uint8]:
    rgb = np.ascontiguousarray(samples[..., :3])
    if samples.shape[-1] == 3 or not page.extrasamples:
        return rgb
    alpha = samples[..., 3:].astype(np.uint32)
    if page.extrasamples[0] == tifffile.EXTRASAMPLE.ASSOCALPHA:
        return np.minimum(rgb + 255 - alpha, 255).astype(np.uint8)
    if page.extrasamples[0] == tifffile.EXTRASAMPLE.UNASSALPHA:
        return ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return rgb


def _stated_mpp(file: tifffile.TiffFile, series_index: int, page: tifffile.TiffPage) -> tuple[float, float] | None:
    """um/px from OME-XML, from Aperio's "MPP = ", or from resolution tags that can be a microscope's."""
    if file.is_ome and file.ome_metadata:
        return _ome_mpp(file.ome_metadata, series_index) or _tag_mpp(page)
    if file.is_svs and (found := re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", page.description)):
        return float(found[1]), float(found[1])
    return _tag_mpp(page)


def _ome_mpp(xml: str, series_index: int) -> tuple[float, float] | None:
    try:
        root = fromstring(xml)
    except (ParseError, DefusedXmlException):
        return None
    pixels = [element for element in root.iter() if element.tag.rsplit("}", 1)[-1] == "Pixels"]
    if series_index >= len(pixels):
        return None
    sizes: list[float] = []
    for axis in "XY":
        unit = _UM_PER_UNIT.get(pixels[series_index].get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            sizes.append(float(pixels[series_index].get(f"PhysicalSize{axis}", "")) * (unit or float("nan")))
        except ValueError:
            return None
    return sizes[0], sizes[1]


def _tag_mpp(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Resolution tags, where they are no default of an image program (72 dpi is 353 um/px)."""
    um_per_unit = {2: 25400.0, 3: 10000.0}.get(int(page.resolutionunit))
    if um_per_unit is None:
        return None
    per_x, per_y = page.resolution
    if not (per_x > 0 and per_y > 0):
        return None
    mpp = (um_per_unit / per_x, um_per_unit / per_y)
    return mpp if is_usable_mpp(mpp[0]) and is_usable_mpp(mpp[1]) else None
