"""One compressed tile of a TIFF to RGB, or a refusal: nothing in between.

Consumes the bytes of a tile and an array of the size its directory states, which it fills. What a decoder would merely
warn about (a Huffman code that is not one, data that end early) is a refusal here, as it is in OpenSlide: imagecodecs'
JPEG decoder fills the rest of such a tile with grey or noise and says nothing (seen for every one of 172 damaged tiles
of an SVS that OpenSlide refused), so JPEG goes through simplejpeg, whose strict mode reports it.
"""

import struct
from collections.abc import Callable
from functools import partial

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

__all__ = [
    "APERIO_JPEG2000_RGB",
    "APERIO_JPEG2000_YCBCR",
    "TileDecoder",
    "TileError",
    "jpeg2000_decoder",
    "jpeg_decoder",
]

APERIO_JPEG2000_YCBCR = 33003
APERIO_JPEG2000_RGB = 33005

_EOI, _SOS, _APP0, _APP14 = 0xD9, 0xDA, 0xE0, 0xEE
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


class TileError(Exception):
    """A tile is damaged, or of a kind that is not decoded here; its text names markers and sizes only."""


TileDecoder = Callable[[bytes, NDArray[np.uint8]], None]
"""Fills a contiguous uint8 (h, w, 3) from the bytes of a tile of that size; raises `TileError`, and then the array may
hold anything. Fresh memory would cost a third of what decoding costs: its pages have to be mapped first."""


def jpeg_decoder(*, tables: bytes | None, is_ycbcr: bool) -> TileDecoder:
    """Decoder of JPEG tiles.

    Args:
        tables: the directory's JPEGTables, which abbreviated streams need.
        is_ycbcr: what the directory's PhotometricInterpretation says; it decides, whatever the stream itself claims
            (Aperio stores RGB in streams that claim nothing, which decoders take for YCbCr).

    Raises:
        TileError: when the tables are damaged.
    """
    shared = b"" if tables is None else _header(tables)[0]
    # Of a stream's own claims decoders believe JFIF first, then the last Adobe marker: ours replaces both.
    return _JpegDecoder(b"\xff\xd8" + _ADOBE + (b"\1" if is_ycbcr else b"\0") + shared)


class _JpegDecoder:
    """Decodes tiles whose headers are, as a rule, the same byte by byte: the last one's is kept as it was rewritten."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._shape: tuple[int, ...] = ()
        self._header = self._rewritten = b""

    def __call__(self, tile: bytes, pixels: NDArray[np.uint8]) -> None:
        if pixels.shape != self._shape or not tile.startswith(self._header):
            segments, scan = _header(tile, size=(pixels.shape[1], pixels.shape[0]))
            marker = tile[scan : scan + 2]
            self._shape, self._header, self._rewritten = pixels.shape, tile[: scan + 2], self._head + segments + marker
        stream = self._rewritten + tile[len(self._header) :]
        try:
            simplejpeg.decode_jpeg(stream, colorspace="RGB", buffer=pixels, strict=True)
        except ValueError as error:
            raise TileError("The JPEG stream is damaged or of a rare kind.") from error


def _header(stream: bytes, *, size: tuple[int, int] | None = None) -> tuple[bytes, int]:
    """A stream's marker segments without SOI, JFIF and Adobe, and where its scan begins; of tables, where they end.

    Raises:
        TileError: when it is no JPEG stream, or its frame is not three components of `size`.
    """
    if stream[:2] != b"\xff\xd8":
        raise TileError("No JPEG stream.")
    kept: list[bytes] = []
    end_marker = _EOI if size is None else _SOS
    position = 2
    while position + 2 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == end_marker:
            return b"".join(kept), position
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        if size is not None and marker in _FRAME_HEADERS:
            _check_frame(stream[position:end], size)
        if marker not in (_APP0, _APP14):
            kept.append(stream[position:end])
        position = end
    raise TileError("The JPEG header is damaged.")


def _check_frame(frame: bytes, size: tuple[int, int]) -> None:
    if len(frame) < 10:
        raise TileError("The JPEG frame header is cut off.")
    bits, height, width, components = struct.unpack_from(">BHHB", frame, 4)
    if bits != 8 or components != 3 or (width, height) != size:
        raise TileError(f"The JPEG frame is {width} x {height} px of {components} components of {bits} bit.")


def jpeg2000_decoder(*, is_ycbcr: bool) -> TileDecoder:
    """Decoder of JPEG 2000 code streams of three components of 8 bit, none subsampled."""
    return partial(_decode_jpeg2000, is_ycbcr=is_ycbcr)


def _decode_jpeg2000(tile: bytes, pixels: NDArray[np.uint8], *, is_ycbcr: bool) -> None:
    height, width = pixels.shape[:2]
    # Looked at before decoding: the decoder allocates whatever size the stream claims.
    size, components = struct.pack(">4I", width, height, 0, 0), struct.pack(">H", 3) + b"\7\1\1" * 3
    if tile[:4] != b"\xff\x4f\xff\x51" or tile[8:24] != size or tile[40:51] != components:
        raise TileError("The JPEG 2000 stream is of a rare kind, or its size is not the tile's.")
    try:
        decoded = imagecodecs.jpeg2k_decode(tile, numthreads=1)
    except (RuntimeError, ValueError) as error:
        raise TileError("The JPEG 2000 stream is damaged.") from error
    if decoded.shape != pixels.shape or decoded.dtype != np.uint8:
        raise TileError("The JPEG 2000 stream is of a rare kind.")
    pixels[:] = _rgb_of_ycbcr(decoded) if is_ycbcr else decoded


def _rgb_of_ycbcr(ycbcr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Full-range BT.601, as JFIF defines it, to the nearest integer."""
    luma = ycbcr[..., 0].astype(np.float32)
    blue, red = ycbcr[..., 1].astype(np.float32) - 128, ycbcr[..., 2].astype(np.float32) - 128
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
