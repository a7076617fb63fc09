"""What every backend promises, and the records that cross it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Backend", "TileMaps"]


@dataclass(frozen=True)
class TileMaps:
    """Dense maps of tile cores, quantised as in `cellmill.instances.maps`."""

    vectors: npt.NDArray[
        np.int16
    ]  # (N, 2, stride, stride), as `DenseMaps.flow` or `HvMaps.hv`, by the network's family
    prob: npt.NDArray[np.uint8]  # (N, C + 1, stride, stride), background first


class Backend(Protocol):
    """A network on one device, for one batch shape."""

    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of one full batch (B, tile, tile, 3); a tile's never depend on the others'."""
        ...

    def run_many(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[TileMaps]:
        """Maps of full batches, in order; a backend that can overlaps their copies with the computing."""
        return map(self.run, batches)
