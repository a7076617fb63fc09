"""What every backend promises, and the records that cross it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor  # seconds to import, which backends without it do not take

__all__ = ["Backend", "DeviceMaps", "TileMaps"]


@dataclass(frozen=True)
class TileMaps:
    """Dense maps of tile cores, quantised as in `cellmill.instances.maps`."""

    vectors: npt.NDArray[
        np.int16
    ]  # (N, 2, stride, stride), as `DenseMaps.flow` or `HvMaps.hv`, by the network's family
    prob: npt.NDArray[np.uint8]  # (N, C + 1, stride, stride), background first


@dataclass(frozen=True)
class DeviceMaps:
    """`TileMaps` of one batch, still on the device; they hold until the next batch but one is asked for."""

    vectors: "Tensor"  # (N, 2, stride, stride) int16
    prob: "Tensor"  # (N, C + 1, stride, stride) uint8


class Backend(Protocol):
    """A network on one device, for one batch shape."""

    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of one full batch (B, tile, tile, 3); a tile's never depend on the others'."""
        ...

    def run_many(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[TileMaps]:
        """Maps of full batches, in order; a backend that can overlaps their copies with the computing."""
        return map(self.run, batches)

    def run_on_device(self, batches: Iterable[npt.NDArray[np.uint8]]) -> "Iterator[TileMaps | DeviceMaps]":
        """As `run_many`, with the maps left where they are made.

        Work on a device's maps must be queued before the next batch is asked for.
        """
        return self.run_many(batches)
