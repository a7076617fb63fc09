"""One slide, opened apart: what the cohort run asks of a slide, from path to tile decisions and pixels."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from cellmill.grid import Box, SlideGrid, TileGeometry
from cellmill.slides.errors import SlideTooLargeError
from cellmill.slides.isolation import DEFAULT_READER, IsolatedReader, ReaderLimits
from cellmill.slides.model_grid import ModelGridReader, ModelPixels
from cellmill.slides.reader import MAX_AREA_PX, SlideInfo
from cellmill.slides.scale import resolve_mpp
from cellmill.slides.tissue import TissueMap, find_tissue

__all__ = ["IsolatedSlide"]


class IsolatedSlide:
    """A slide on its model grid, decoded in a child process.

    After a `ReaderProcessError` it stays usable: the next call starts a fresh child. Not thread-safe. Close it, or use
    it in a `with` block.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        target_mpp: float,
        mpp: float | tuple[float, float] | None = None,
        reader: str = DEFAULT_READER,
        limits: ReaderLimits | None = None,
    ) -> None:
        """Open the slide at `path`.

        Args:
            path: a slide file, or a folder with one DICOM series.
            target_mpp: um/px of the model grid.
            mpp: level-0 um/px to use instead of what the slide states.
            reader: function that opens a slide, named `module:function`; it runs in the child only.
            limits: time for any one answer and memory of the child.

        Raises:
            SlideError: when it cannot be opened or its scale is unusable, with a reason for people.
        """
        self._reader = IsolatedReader(path, reader=reader, limits=limits)
        try:
            self.mpp = resolve_mpp(self.info.stated_mpp, mpp)
        except BaseException:
            self.close()
            raise
        self.grid = SlideGrid.of_slide(
            width_level0_px=self.info.width_level0_px,
            height_level0_px=self.info.height_level0_px,
            mpp_x=self.mpp[0],
            mpp_y=self.mpp[1],
            target_mpp=target_mpp,
        )
        if self.grid.box.area > MAX_AREA_PX:
            self.close()
            raise SlideTooLargeError(
                f"At {self.mpp[0]:g} x {self.mpp[1]:g} um/px the slide would have {self.grid.width_px} x "
                f"{self.grid.height_px} px at {target_mpp:g} um/px, more than any slide has. Check --mpp and the scale "
                "the slide states."
            )
        self._model_grid = ModelGridReader(self._reader, self.grid)

    @property
    def info(self) -> SlideInfo:
        """Sizes, stated scale and fingerprint."""
        return self._reader.info

    def find_tissue(self, tiles: TileGeometry, *, mode: Literal["auto", "none"] | Path = "auto") -> TissueMap:
        """Which tiles are analysed, see `cellmill.slides.tissue.find_tissue`."""
        return find_tissue(self._reader, self.grid, tiles, mode=mode)

    def read(self, box: Box, *, wanted: Iterable[Box] | None = None) -> ModelPixels:
        """Pixels of a box on the model grid, see `ModelGridReader.read`."""
        return self._model_grid.read(box, wanted=wanted)

    def close(self) -> None:
        """End the child process."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
