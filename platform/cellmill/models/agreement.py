"""Whether the ways to run a network agree: a fast backend's maps beside those of eager float32 torch.

What a model's figures are measured with and what runs it on a cohort are two programs; a model whose fast form says
something else must not be given to anyone.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.instances.maps import FLOW_SCALE
from cellmill.models.backends.contract import TileMaps
from cellmill.models.inference import PROB_TOLERANCE, DeviceKind, Segmenter, backend_name
from cellmill.models.loading import LoadedModel

__all__ = ["AGREEING_SHARE", "Agreement", "compare_backends", "share_within"]

AGREEING_SHARE = 0.999
"""At least this share of pixels must lie within the tolerance of `cellmill.models.inference`."""


@dataclass(frozen=True)
class Agreement:
    """How far one backend agrees with the reference."""

    backend: str
    share: float
    """Of pixels whose probabilities and vectors both lie within tolerance."""

    @property
    def holds(self) -> bool:
        """Whether that is enough."""
        return self.share >= AGREEING_SHARE


def compare_backends(
    model: LoadedModel, tiles: npt.NDArray[np.uint8], *, device: DeviceKind, num_threads: int = 1
) -> Agreement:
    """Run `tiles` (N, tile, tile, 3) through the backend of `device` and through the reference."""
    fast = Segmenter.open(model, device=device, batch_size=1, num_threads=num_threads)
    reference = Segmenter.open(model, device="cpu", batch_size=1, num_threads=num_threads, backend="reference")
    share = share_within(fast.predict(tiles), reference.predict(tiles))
    return Agreement(f"{backend_name(model.config, device=device)} on {device}", share)


def share_within(ours: TileMaps, theirs: TileMaps) -> float:
    """Share of pixels where two sets of maps differ by no more than the tolerance."""
    vectors = np.abs(ours.vectors.astype(int) - theirs.vectors).max(axis=1) <= FLOW_SCALE / 128
    prob = np.abs(ours.prob.astype(int) - theirs.prob).max(axis=1) <= PROB_TOLERANCE
    return float((vectors & prob).mean())
