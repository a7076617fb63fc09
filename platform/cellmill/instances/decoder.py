"""The interface of decoders: dense maps in, instances out.

Two families of models share it: flows (`flow_decoder`) and horizontal-vertical distances (`hv_decoder`), each with its
own record of maps. What they promise is locality: a cell's pixels, anchor and flags depend only on maps within
`halo_px` of any of its pixels and of its anchor, and on nothing else, the window's position and size included.
Everything downstream (fields, retries, resumes, masks that join at seams) rests on that promise.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cellmill.grid import Box
from cellmill.instances.maps import ClassMaps

__all__ = ["Decoder", "Instances"]

MapsT = TypeVar("MapsT", bound=ClassMaps)


@dataclass(frozen=True)
class Instances:
    """Cells of one window. One row of `anchors_px` and of `exceeds_reach` is one cell, in (y, x) order of the anchor.

    Each cell is 4-connected and without holes, and holds its anchor. Cells near the window's rim are as good as the
    maps there: only what lies `halo_px` or deeper inside is final.
    """

    labels: npt.NDArray[np.int32]  # (H, W), 0 is background, cell k is k + 1
    anchors_px: npt.NDArray[np.int64]  # (n, 2), absolute (x, y)
    exceeds_reach: npt.NDArray[np.bool_]  # (n,), a path into this cell was cut short, or the cell at a seam
    origin_px: tuple[int, int]

    def __len__(self) -> int:
        return len(self.anchors_px)

    @property
    def box(self) -> Box:
        """The window, absolute."""
        x, y = self.origin_px
        return Box(x, y, x + self.labels.shape[1], y + self.labels.shape[0])

    def owned_by(self, core: Box) -> npt.NDArray[np.bool_]:
        """Which cells have their anchor in `core`, and so belong to it."""
        x, y = self.anchors_px[:, 0], self.anchors_px[:, 1]
        return (x >= core.x0) & (x < core.x1) & (y >= core.y0) & (y < core.y1)


class Decoder(Protocol[MapsT]):
    """Turns dense maps of one kind, `DenseMaps` or `HvMaps`, into instances, locally."""

    @property
    def reach_px(self) -> int:
        """No pixel of a cell lies further than this from its anchor (Chebyshev)."""
        ...

    @property
    def halo_px(self) -> int:
        """Maps this far around a pixel or an anchor decide its fate."""
        ...

    def maps(self, vectors: npt.NDArray[np.int16], prob: npt.NDArray[np.uint8], origin_px: tuple[int, int]) -> MapsT:
        """What `decode` takes, of a network's vectors (2, H, W) and probabilities (C + 1, H, W)."""
        ...

    def decode(self, maps: MapsT) -> Instances:
        """The cells of one window."""
        ...
