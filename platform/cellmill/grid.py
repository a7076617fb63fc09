"""The absolute grid of a slide: model pixels, tiles, fields, anchors.

Integers only. Everything here is a pure function of the slide's size and the model's tile geometry, so that what a
cell is never depends on how the work was cut. Frames: `level0_px` is the slide's finest pixels, `px` the model grid at
`target_mpp`, whose pixel (x, y) covers level-0 x in [x * scale_x, (x + 1) * scale_x).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Box", "FieldSpec", "SlideGrid", "TileGeometry"]


@dataclass(frozen=True)
class Box:
    """A half-open rectangle on the model grid: x in [x0, x1), y in [y0, y1), in px. It may reach outside the slide."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def area(self) -> int:
        return max(self.width, 0) * max(self.height, 0)

    def grown(self, margin_px: int) -> "Box":
        """The box with `margin_px` added on each side."""
        return Box(self.x0 - margin_px, self.y0 - margin_px, self.x1 + margin_px, self.y1 + margin_px)

    def clipped(self, other: "Box") -> "Box":
        """The common part of two boxes; its area is 0 where they do not meet."""
        x0, y0 = max(self.x0, other.x0), max(self.y0, other.y0)
        return Box(x0, y0, max(x0, min(self.x1, other.x1)), max(y0, min(self.y1, other.y1)))

    @staticmethod
    def around(boxes: "Iterable[Box]") -> "Box":
        """The smallest box that holds all of `boxes`, of which there is at least one."""
        x0, y0, x1, y1 = zip(*((box.x0, box.y0, box.x1, box.y1) for box in boxes), strict=True)
        return Box(min(x0), min(y0), max(x1), max(y1))

    def contains(self, x: int, y: int) -> bool:
        return self.x0 <= x < self.x1 and self.y0 <= y < self.y1


@dataclass(frozen=True)
class TileGeometry:
    """What the network sees: square tiles of `tile_px` whose inner `stride_px` square counts."""

    tile_px: int
    margin_px: int

    def __post_init__(self) -> None:
        if self.margin_px < 0 or self.stride_px <= 0:
            raise ValueError(
                f"A tile needs a core: tile_px - 2 * margin_px must be positive, got tile_px={self.tile_px}, "
                f"margin_px={self.margin_px}."
            )

    @property
    def stride_px(self) -> int:
        """Side of a tile's core, and the distance between tiles."""
        return self.tile_px - 2 * self.margin_px

    def core(self, i: int, j: int) -> Box:
        """Core of tile in column `i`, row `j`: the pixels whose prediction comes from it."""
        stride = self.stride_px
        return Box(i * stride, j * stride, (i + 1) * stride, (j + 1) * stride)

    def window(self, i: int, j: int) -> Box:
        """What tile (i, j) shows the network."""
        return self.core(i, j).grown(self.margin_px)

    def covering(self, box: Box) -> Box:
        """Tile indices, as a half-open box over (i, j), whose cores cover `box`."""
        stride = self.stride_px
        return Box(box.x0 // stride, box.y0 // stride, -(-box.x1 // stride), -(-box.y1 // stride))


@dataclass(frozen=True)
class FieldSpec:
    """One field: the unit of work, retry and checkpoint.

    `core` is clipped to the slide on no side: the last row and column reach past the slide, so that cores stay whole
    numbers of mask shards.
    """

    column: int
    row: int
    core: Box
    halo_px: int

    @property
    def window(self) -> Box:
        """Core and halo: what the decode looks at."""
        return self.core.grown(self.halo_px)

    @property
    def name(self) -> str:
        return f"x{self.column:05d}_y{self.row:05d}"


@dataclass(frozen=True)
class SlideGrid:
    """The model grid of one slide."""

    width_px: int
    height_px: int
    scale_x: float
    scale_y: float
    """Level-0 pixels per model pixel."""
    target_mpp: float

    @staticmethod
    def of_slide(
        *, width_level0_px: int, height_level0_px: int, mpp_x: float, mpp_y: float, target_mpp: float
    ) -> "SlideGrid":
        """Grid of a slide of the given size and scale. Part pixels at the right and bottom count as pixels."""
        scale_x, scale_y = target_mpp / mpp_x, target_mpp / mpp_y
        return SlideGrid(
            width_px=max(1, math.ceil(width_level0_px / scale_x)),
            height_px=max(1, math.ceil(height_level0_px / scale_y)),
            scale_x=scale_x,
            scale_y=scale_y,
            target_mpp=target_mpp,
        )

    @property
    def box(self) -> Box:
        return Box(0, 0, self.width_px, self.height_px)

    def anchor_index(self, x: int, y: int) -> int:
        """Index of a pixel, unique in the slide."""
        return y * self.width_px + x

    @property
    def needs_64_bit_masks(self) -> bool:
        """Whether `1 + anchor_index` can pass the range of uint32."""
        return self.width_px * self.height_px >= (1 << 32) - 1

    def fields(self, *, field_px: int, halo_px: int) -> Iterator[FieldSpec]:
        """Fields of `field_px` square cores covering the slide, row by row."""
        for row in range(-(-self.height_px // field_px)):
            for column in range(-(-self.width_px // field_px)):
                core = Box(column * field_px, row * field_px, (column + 1) * field_px, (row + 1) * field_px)
                yield FieldSpec(column=column, row=row, core=core, halo_px=halo_px)
