"""A reader of slides whose scanned area does not begin at the slide's corner, as scanners of MRXS files leave it."""

from cellmill.slides.opening import open_slide
from cellmill.slides.reader import SlideReader

BOUNDS_LEVEL0_PX = (120, 80)


def open_bounded(path: str) -> SlideReader:
    """The usual reader, which states bounds."""
    return _BoundedReader(open_slide(path))  # type: ignore[return-value]


class _BoundedReader:
    bounds_level0_px = BOUNDS_LEVEL0_PX

    def __init__(self, reader: SlideReader) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> object:
        return getattr(self._reader, name)
