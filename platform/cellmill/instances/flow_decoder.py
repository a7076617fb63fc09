"""The flows decoder: pixels follow the predicted flow to where it converges; what converges together is a cell.

Consumes `DenseMaps`, produces `Instances`. The method is Cellpose's (Stringer et al., Nature Methods 2021), made exact
and local: positions are integers with a fixed-point fraction, so a path is the same in every window; a path longer than
`max_reach_px` ends as background; ties go by absolute (y, x); each mask is judged by itself.

How far maps count, with R = `max_reach_px`: the end of a pixel's path depends on maps within R + 1 of it, and the
number of paths ending at a pixel on those within 2R + 1. Which sink has that pixel depends on such numbers up to 10 px
away (a sink 5 px off, what it grows over another 5 px off). A cell's pixels end within 5 px of its sink and start
within R of where they end. Together a cell depends on maps within 5 + 10 + (2R + 1) of its sink. A pixel is painted by
cells whose sink is within R + 5 of it, an anchor is a cell's pixel, and a cell that encloses it has its sink as near:
`halo_px` = (R + 5) + (2R + 16) = 3R + 21.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cellmill.instances.decoder import Instances
from cellmill.instances.extents import label_extents, sums_by_label
from cellmill.instances.flow_kernels import (
    count_ends,
    find_sinks,
    follow_flows,
    keep_largest_component,
    label_by_sink,
    mask_flows,
    paint_labels,
)
from cellmill.instances.maps import FLOW_SCALE, PROB_SCALE, DenseMaps
from cellmill.instances.mask_kernels import fill_holes, judge_masks, number_by_anchor
from cellmill.instances.mask_limits import MaskLimits

__all__ = ["FlowDecoder", "FlowDecoderConfig", "background_limit", "finish_masks"]

_SINK_GROWTH_PX = 5


@dataclass(frozen=True)
class FlowDecoderConfig:
    """Settings of the flows decoder; each changes results."""

    mpp: float
    """Micrometres per pixel of the model grid."""
    foreground_threshold: float = 0.5
    """A pixel whose probability of not being background is above this takes part."""
    num_steps: int = 200
    """Steps of a path."""
    limits: MaskLimits = field(default_factory=MaskLimits)
    """What a mask must meet to stand."""
    min_area_um2: float = 5.0
    max_area_um2: float = 1500.0
    """Cells smaller or larger, holes filled, are dropped."""
    max_reach_px: int = 48
    """A path that strays further than this from its start ends as background."""

    def __post_init__(self) -> None:
        if not 0 < self.mpp < math.inf:
            raise ValueError(f"mpp must be positive, got {self.mpp}.")
        if not 0 < self.foreground_threshold < 1:
            raise ValueError(f"foreground_threshold must lie between 0 and 1, got {self.foreground_threshold}.")
        if not 0 < self.min_area_um2 <= self.max_area_um2:
            raise ValueError(
                f"Areas must satisfy 0 < min_area_um2 <= max_area_um2, got {self.min_area_um2}, {self.max_area_um2}."
            )
        if not 0 < self.max_reach_px < 1024 or self.num_steps < 1:
            raise ValueError(
                f"max_reach_px must be 1 to 1023 and num_steps at least 1, got {self.max_reach_px}, {self.num_steps}."
            )


@dataclass(frozen=True)
class FlowDecoder:
    """Decodes maps of the flows family."""

    config: FlowDecoderConfig

    @property
    def reach_px(self) -> int:
        """A cell's pixels and its anchor all lie within `max_reach_px` + 5 of its sink."""
        return 2 * (self.config.max_reach_px + _SINK_GROWTH_PX)

    @property
    def halo_px(self) -> int:
        """See the module's docstring."""
        return 3 * self.config.max_reach_px + 21

    def maps(
        self, vectors: npt.NDArray[np.int16], prob: npt.NDArray[np.uint8], origin_px: tuple[int, int]
    ) -> DenseMaps:
        """A network's maps as `decode` takes them."""
        return DenseMaps(vectors, prob, origin_px)

    def decode(self, maps: DenseMaps) -> Instances:
        """The cells of one window.

        Beyond the window is background, and paths stop at its rim. At the rim of the slide all windows must do alike:
        either end with the slide or hold background maps beyond it.
        """
        config = self.config
        # compiled once for contiguous arrays; views of larger maps are copied
        flow, background = np.ascontiguousarray(maps.flow), np.ascontiguousarray(maps.prob[0])  # (2, H, W), (H, W)
        limit = background_limit(config)
        labels = np.empty(background.shape, np.int32)

        ends = np.empty(mask_flows(flow, background, limit, labels), np.int32)
        follow_flows(labels, background, limit, config.num_steps, config.max_reach_px, ends)
        count_ends(ends, labels)
        sinks = find_sinks(labels)
        label_by_sink(ends, labels, sinks)
        keep_largest_component(background, limit, len(sinks), ends)
        paint_labels(background, limit, ends, labels)
        sums = sums_by_label(labels, background, len(sinks))
        return finish_masks(labels, flow, sums, sinks, config=config, origin_px=maps.origin_px)


def background_limit(config: FlowDecoderConfig) -> int:
    """Pixels whose background is below this, in steps of 1 / PROB_SCALE, take part."""
    return math.ceil(PROB_SCALE * (1 - config.foreground_threshold) - 1e-9)


def finish_masks(
    labels: npt.NDArray[np.int32],
    flow: npt.NDArray[np.int16],
    background_sums: npt.NDArray[np.int64],
    sinks: npt.NDArray[np.int32],
    *,
    config: FlowDecoderConfig,
    origin_px: tuple[int, int],
) -> Instances:
    """Judge the masks, fill their holes and number what stands: the part of the decode that looks at single masks.

    Args:
        labels: (H, W), pixels of sink k as k + 1, -1 where a path was cut short; numbered anew in place.
        flow: (2, H, W) as in `DenseMaps`; looked at inside masks only.
        background_sums: (m + 1,) of the background over the pixels of each label.
        sinks: flat pixel index of each sink.
        config: what stands.
        origin_px: absolute (x, y) of the window's first pixel.
    """
    pixel_um2 = config.mpp**2
    boxes, sums = label_extents(labels, len(sinks))
    sure = background_sums <= PROB_SCALE * (1 - config.limits.detection_prob_min) * sums[:, 0]
    sums[~sure, 0] = 0  # as if they had no pixels
    stands, holed = judge_masks(
        labels,
        flow,
        FLOW_SCALE,
        boxes,
        sums,
        math.ceil(config.min_area_um2 / pixel_um2 - 1e-9),
        math.floor(config.max_area_um2 / pixel_um2 + 1e-9),
        config.limits.flow_error_max,
    )
    fill_holes(labels, boxes, stands, holed)
    anchors, former = number_by_anchor(labels, boxes, stands, sinks)
    x0, y0 = origin_px
    rows, columns = np.divmod(anchors, labels.shape[1])
    return Instances(
        labels=labels,
        anchors_px=np.stack([columns + x0, rows + y0], axis=1),
        exceeds_reach=sums[former, 3] > 0,
        origin_px=origin_px,
    )
