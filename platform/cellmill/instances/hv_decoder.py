"""The hv decoder: a watershed on the slopes of predicted distances, from one marker a nucleus.

Consumes `HvMaps`, produces `Instances`. The method is HoVer-Net's (Graham et al., Medical Image Analysis 2019), made
exact and local. HoVer-Net scales slopes by the least and the greatest of the image; here both are constants. Its
watershed runs over the whole image; here over each 4-connected part of the foreground alone, which is the same, and
over parts wider than `widest_part_px` tile by tile: tiles of `tile_px` lie on the absolute grid, each is flooded with
`margin_px` around, and each pixel is whose its own tile's flood says. A cell that two tiles see differently at the seam
between them is flagged. A cell keeps what lies within R = `max_reach_px` of its marker's peak, and the 4-connected
piece that holds the peak. Its anchor is its pixel of highest energy, ties by (y, x).

How far maps count: whether a pixel is of a marker depends on maps within S = 7 px (the Sobel filter, whose weights
beyond round to 0) + 12 px (holes in markers) + 4 px (the opening). Whose a pixel is depends on markers within 2R - 8 of
it (its part, or its tile and margin), on whether those are large enough (9 px more), and on all of its own marker,
which it only gets if the marker lies within 2R of it. So it depends on maps within A = S + 2R + 1. All pixels of a
cell, and of a cell that encloses it, lie within 2R of each other, and pixels next to them decide the flag:
`halo_px` = 2R + 1 + A = 4R + 25.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.instances.decoder import Instances
from cellmill.instances.hv_cell_kernels import keep_within_reach, mark_seams, measure_extents, take_pieces
from cellmill.instances.hv_energy_kernels import (
    SLOPE_ONE,
    SOBEL_RADIUS_PX,
    draw_energy,
    fill_marker_holes,
    open_markers,
    sobel_weights,
)
from cellmill.instances.hv_flood_kernels import flood_narrow_parts, flood_wide_parts
from cellmill.instances.hv_parts_kernels import find_runs, join_runs, order_by_part, part_boxes, place_markers
from cellmill.instances.maps import PROB_SCALE, HvMaps
from cellmill.instances.mask_kernels import fill_holes, judge_areas, number_by_anchor

__all__ = ["HvDecoder", "HvDecoderConfig"]

_HOLE_PX = 12
_OPENING_PX = 4  # two steps of a disc of radius 2


@dataclass(frozen=True)
class HvDecoderConfig:
    """Settings of the hv decoder; each changes results.

    The defaults are HoVer-Net's at 0.25 um/px. CellViT at 0.5 um/px takes `sobel_px` 11 and `min_marker_px` 3.
    """

    mpp: float
    """Micrometres per pixel of the model grid."""
    foreground_threshold: float = 0.5
    """A pixel whose probability of not being background is at least this takes part."""
    sobel_px: int = 21
    """Side of the Sobel filter, odd."""
    lowest_slope: float = -0.30
    """Slope a px that counts as energy 0: where two nuclei touch, distances fall by 2 over some 7 px."""
    marker_slope: float = 0.0
    """Markers are where both distances rise by more than this a px. HoVer-Net's threshold, 0.6 of the way from the
    least to the greatest slope of the image, came out at -0.01 to 0.06 on crops of one field. Measured on made-up
    nuclei of 4 to 20 px radius at two levels of noise: of -0.04 to 0.03, values from -0.02 to 0 found most of them."""
    min_marker_px: int = 10
    """Smaller markers, in pixels, are dropped."""
    min_area_um2: float = 5.0
    max_area_um2: float = 1500.0
    """Cells smaller or larger, holes filled, are dropped."""
    max_reach_px: int = 40
    """A cell ends this far from its marker's peak."""

    def __post_init__(self) -> None:
        if not 0 < self.mpp < math.inf:
            raise ValueError(f"mpp must be positive, got {self.mpp}.")
        if not 0 < self.foreground_threshold < 1:
            raise ValueError(f"foreground_threshold must lie between 0 and 1, got {self.foreground_threshold}.")
        if self.sobel_px % 2 == 0 or not 3 <= self.sobel_px <= 21:
            raise ValueError(f"sobel_px must be odd, 3 to 21, got {self.sobel_px}.")
        if not self.lowest_slope < self.marker_slope:
            raise ValueError(
                f"lowest_slope must be less than marker_slope, got {self.lowest_slope}, {self.marker_slope}."
            )
        if not 1 <= self.min_marker_px <= 10:
            raise ValueError(f"min_marker_px must be 1 to 10, which the halo allows for, got {self.min_marker_px}.")
        if not 0 < self.min_area_um2 <= self.max_area_um2:
            raise ValueError(
                f"Areas must satisfy 0 < min_area_um2 <= max_area_um2, got {self.min_area_um2}, {self.max_area_um2}."
            )
        if not 8 <= self.max_reach_px < 512:
            raise ValueError(f"max_reach_px must be 8 to 511, got {self.max_reach_px}.")


@dataclass(frozen=True)
class HvDecoder:
    """Decodes maps of the hv family."""

    config: HvDecoderConfig

    @property
    def reach_px(self) -> int:
        """A cell's pixels and its anchor all lie within `max_reach_px` of its marker's peak."""
        return 2 * self.config.max_reach_px

    @property
    def halo_px(self) -> int:
        """See the module's docstring."""
        return 4 * self.config.max_reach_px + 2 + SOBEL_RADIUS_PX + _HOLE_PX + _OPENING_PX

    @property
    def widest_part_px(self) -> int:
        """Parts of the foreground wider or higher are flooded tile by tile."""
        return 2 * self.config.max_reach_px - 8

    @property
    def tile_px(self) -> int:
        """Side of the tiles of wide parts."""
        return self.config.max_reach_px

    @property
    def margin_px(self) -> int:
        """What a tile's flood sees around it: with the tile, as far from a pixel as the widest part."""
        return self.widest_part_px - self.tile_px + 1

    def maps(self, vectors: npt.NDArray[np.int16], prob: npt.NDArray[np.uint8], origin_px: tuple[int, int]) -> HvMaps:
        """A network's maps as `decode` takes them."""
        return HvMaps(vectors, prob, origin_px)

    def decode(self, maps: HvMaps) -> Instances:
        """The cells of one window.

        Beyond the window distances go on mirrored and there is no foreground. At the rim of the slide all windows must
        do alike: either end with the slide or hold background maps beyond it.
        """
        config = self.config
        height, width = maps.prob.shape[1:]
        labels = np.zeros((height, width), np.int32)
        if labels.size == 0:
            return Instances(labels, np.zeros((0, 2), np.int64), np.zeros(0, np.bool_), maps.origin_px)

        energy, foreground, markers = self._energy(maps)
        marker_runs = find_runs(markers)
        peaks, within = place_markers(
            marker_runs[1], *join_runs(*marker_runs), energy, config.min_marker_px, config.max_reach_px, labels
        )
        runs = find_runs(foreground)
        is_wide, crossings = self._flood(labels, energy, runs, maps.origin_px)
        in_pieces = keep_within_reach(labels, runs[1], is_wide, peaks, within, config.max_reach_px)
        cut = mark_seams(labels, crossings, len(peaks))
        sinks = take_pieces(labels, energy, runs[1], in_pieces, peaks)

        pixel_um2 = config.mpp**2
        boxes, num_pixels, meets_exceeded, holed = measure_extents(labels, runs[1], len(sinks))
        stands = judge_areas(
            labels,
            boxes,
            num_pixels,
            holed,
            math.ceil(config.min_area_um2 / pixel_um2 - 1e-9),
            math.floor(config.max_area_um2 / pixel_um2 + 1e-9),
        )
        fill_holes(labels, boxes, stands, holed)
        anchors, former = number_by_anchor(labels, boxes, stands, sinks)
        x0, y0 = maps.origin_px
        rows, columns = np.divmod(anchors, width)
        return Instances(
            labels=labels,
            anchors_px=np.stack([columns + x0, rows + y0], axis=1),
            exceeds_reach=(meets_exceeded | cut)[former],
            origin_px=maps.origin_px,
        )

    def _energy(self, maps: HvMaps) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Energy, foreground and markers, each (H, W)."""
        config = self.config
        energy, foreground, raw = draw_energy(
            np.ascontiguousarray(maps.hv),  # compiled once for contiguous arrays; views of larger maps are copied
            np.ascontiguousarray(maps.prob[0]),
            math.floor(PROB_SCALE * (1 - config.foreground_threshold) + 1e-9) + 1,
            *sobel_weights(config.sobel_px),
            round(SLOPE_ONE * config.lowest_slope),
            round(SLOPE_ONE * config.marker_slope),
        )
        fill_marker_holes(raw, _HOLE_PX)
        return energy, foreground, open_markers(raw, foreground)

    def _flood(
        self,
        labels: npt.NDArray[np.int32],
        energy: npt.NDArray[np.uint16],
        runs: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]],
        origin_px: tuple[int, int],
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int32]]:
        """Grow the markers in `labels`; which runs are of wide parts (n,), and the crossings of their tiles (m, 5)."""
        parts, num_parts = join_runs(*runs)
        boxes = part_boxes(runs[1], parts, num_parts)
        wide = flood_narrow_parts(labels, energy, runs[1], *order_by_part(parts, num_parts), boxes, self.widest_part_px)
        is_wide = wide[parts]
        x0, y0 = origin_px
        return is_wide, flood_wide_parts(labels, energy, *runs, is_wide, y0, x0, self.tile_px, self.margin_px)
