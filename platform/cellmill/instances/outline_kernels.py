"""Compiled steps of outlines: trace a mask's boundary, simplify it keeping its area, round it, check it.

Coordinates are relative to the mask's bounding box until the last step, so that an outline does not depend on where the
window starts. Rings here are open (the first vertex is not repeated) and turn from x towards y.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["outline_cells"]

_NO_COLLAPSE = 1e300


@njit(cache=True, nogil=True)
def outline_cells(
    labels: NDArray[np.int32],
    boxes: NDArray[np.int64],
    numbers: NDArray[np.int64],
    sizes: NDArray[np.int64],
    origin: tuple[int, int],
    scale: tuple[float, float],
    tolerance: tuple[float, float],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Outlines of the cells `numbers` (labels), in whole level-0 px.

    Args:
        labels: (H, W); each cell 4-connected and without holes.
        boxes: (n, 4) y0, x0, y1, x1 inclusive, of each cell.
        numbers: (n,) label of each cell.
        sizes: (n,) pixels of each cell.
        origin: absolute (x, y) of the window.
        scale: level-0 px per px, in x and y.
        tolerance: a step of the simplification may displace this many px2, or this share of the cell's area.

    Returns:
        vertices (m, 2) as x, y, rings closed; first vertex of each ring (n + 1,); boundary counts (n, 2): edges of
        the boundary followed by a straight step, and by a corner.
    """
    num_cells = len(numbers)
    starts = np.zeros(num_cells + 1, np.int64)
    turns = np.zeros((num_cells, 2), np.int64)
    vertices = np.empty((16 * num_cells + 64, 2), np.float64)
    longest = 8
    for cell in range(num_cells):
        longest = max(longest, 2 * sizes[cell] + 8)  # a boundary of n pixels has at most 2n + 2 edges
    corners = np.empty((longest, 2), np.int64)
    ring = np.empty((longest, 2), np.float64)
    rounded = np.empty((longest, 2), np.int64)
    for cell in range(num_cells):
        num_corners = _trace(labels, numbers[cell], boxes[cell], corners)
        num_turns = _count_turns(corners, num_corners)
        turns[cell, 0] = num_corners - num_turns
        turns[cell, 1] = num_turns
        limit = max(tolerance[0], tolerance[1] * sizes[cell])
        x0, y0 = origin[0] + boxes[cell, 1], origin[1] + boxes[cell, 0]
        num_vertices = 0
        for attempt in range(3):
            if attempt < 2:  # the second, hardly simplified, where simplifying or rounding made edges cross
                num_ring = _midpoints(corners, num_corners, ring)
                num_ring = _collapse(ring, num_ring, limit if attempt == 0 else 0.1)
            else:  # along the pixels' edges: valid wherever a pixel is at least one level-0 px wide
                num_ring = num_corners
                for at in range(num_corners):
                    ring[at, 0] = corners[at, 0]
                    ring[at, 1] = corners[at, 1]
            num_vertices = _round(ring, num_ring, x0, y0, scale, rounded)
            if _is_simple(rounded, num_vertices):
                break
            num_vertices = 0
        if num_vertices == 0:
            num_vertices = _box_ring(boxes[cell], x0, y0, scale, rounded)
        first = starts[cell]
        if first + num_vertices + 1 > len(vertices):
            larger = np.empty((2 * len(vertices) + num_vertices + 1, 2), np.float64)
            larger[:first] = vertices[:first]
            vertices = larger
        for at in range(num_vertices + 1):
            vertices[first + at, 0] = rounded[at % num_vertices, 0]
            vertices[first + at, 1] = rounded[at % num_vertices, 1]
        starts[cell + 1] = first + num_vertices + 1
    return vertices[: starts[num_cells]], starts, turns


@njit(cache=True, nogil=True)
def _trace(labels: NDArray[np.int32], number: int, box: NDArray[np.int64], corners: NDArray[np.int64]) -> int:
    """Pixel corners (x, y) along the boundary, one a pixel edge, relative to the box; the mask lies to the right."""
    height, width = labels.shape
    x = box[1]
    while labels[box[0], x] != number:
        x += 1
    start_x, start_y = x, box[0]
    y = start_y
    dy, dx = 0, 1
    count = 0
    while True:
        corners[count, 0] = x - box[1]
        corners[count, 1] = y - box[0]
        count += 1
        y += dy
        x += dx
        if y == start_y and x == start_x:
            return count
        # the pixels ahead, to the right and to the left of the way
        right_y = y if (dx == 1 or dy == 1) else y - 1
        right_x = x if (dx == 1 or dy == -1) else x - 1
        left_y = y if (dx == -1 or dy == 1) else y - 1
        left_x = x if (dx == 1 or dy == 1) else x - 1
        is_right = 0 <= right_y < height and 0 <= right_x < width and labels[right_y, right_x] == number
        is_left = 0 <= left_y < height and 0 <= left_x < width and labels[left_y, left_x] == number
        if not is_right:
            dy, dx = dx, -dy
        elif is_left:
            dy, dx = -dx, dy


@njit(cache=True, nogil=True)
def _count_turns(corners: NDArray[np.int64], count: int) -> int:
    turns = 0
    for at in range(count):
        last, after = (at - 1) % count, (at + 1) % count
        turns += corners[last, 0] != corners[after, 0] and corners[last, 1] != corners[after, 1]
    return turns


@njit(cache=True, nogil=True)
def _midpoints(corners: NDArray[np.int64], count: int, ring: NDArray[np.float64]) -> int:
    """Ring through the middles of the boundary's edges, without the middles of straight runs.

    It cuts each corner by an eighth of a pixel, outer and inner ones alike, so it loses half a pixel of area in all.
    """
    num_ring = 0
    for at in range(count):
        x0, y0 = corners[(at - 1) % count]
        x1, y1 = corners[at]
        x2, y2 = corners[(at + 1) % count]
        x3, y3 = corners[(at + 2) % count]
        # the steps from the last edge's middle to this one's and on to the next: doubled
        before_x, before_y, after_x, after_y = x2 - x0, y2 - y0, x3 - x1, y3 - y1
        if before_x != after_x or before_y != after_y:
            ring[num_ring, 0] = 0.5 * (x1 + x2)
            ring[num_ring, 1] = 0.5 * (y1 + y2)
            num_ring += 1
    return num_ring


@njit(cache=True, nogil=True)
def _segment_collapse(
    ax: float, ay: float, bx: float, by: float, cx: float, cy: float, dx: float, dy: float
) -> tuple[float, float, float]:
    """Point that may stand for the edge BC of A-B-C-D without changing the area, and the area it displaces.

    Kronenfeld et al., "Simplification of polylines by segment collapse", Int. J. Cartography 2020.
    """
    # all points E with area(A, E, D) = area(A, B, C, D): u . E = s, a line parallel to AD
    ux, uy = dy - ay, ax - dx
    s = ax * by - ay * bx + bx * cy - by * cx + cx * dy - cy * dx
    on_line = ux * ax + uy * ay
    height_b, height_c, height_e = ux * bx + uy * by - on_line, ux * cx + uy * cy - on_line, s - on_line
    use_ab = abs(height_b) > abs(height_c) if height_b * height_c >= 0.0 else height_b * height_e > 0.0
    if use_ab:
        if height_b == 0.0:
            return bx, by, _NO_COLLAPSE
        t = height_e / height_b
        ex, ey = ax + t * (bx - ax), ay + t * (by - ay)
        tip_x, tip_y, far_x, far_y = bx, by, dx, dy
    else:
        if height_c == 0.0:
            return bx, by, 0.0 if height_b == 0.0 and (ux != 0.0 or uy != 0.0) else _NO_COLLAPSE
        t = height_e / height_c
        ex, ey = dx + t * (cx - dx), dy + t * (cy - dy)
        tip_x, tip_y, far_x, far_y = cx, cy, ax, ay
    # the line from E to the far end crosses BC at F: the triangle (tip, E, F) is displaced, and as much beyond F
    vx, vy, wx, wy = cx - bx, cy - by, far_x - ex, far_y - ey
    across = vx * wy - vy * wx
    if across == 0.0:
        return ex, ey, 0.0
    r = ((ex - bx) * wy - (ey - by) * wx) / across
    fx, fy = bx + r * vx, by + r * vy
    return ex, ey, abs((ex - tip_x) * (fy - tip_y) - (ey - tip_y) * (fx - tip_x))


@njit(cache=True, nogil=True)
def _collapse(ring: NDArray[np.float64], count: int, limit: float) -> int:
    """Collapse the cheapest edge into a point while that displaces at most `limit` px2; returns the vertices left."""
    after = np.empty(count, np.int64)
    before = np.empty(count, np.int64)
    cost = np.empty(count, np.float64)
    point = np.empty((count, 2), np.float64)
    for at in range(count):
        after[at] = (at + 1) % count
        before[at] = (at - 1) % count
    for at in range(count):
        _price(ring, before, after, at, cost, point)
    left = count
    while left > 5:
        best = int(np.argmin(cost))
        if cost[best] > limit:
            break
        gone = after[best]
        ring[best, 0] = point[best, 0]
        ring[best, 1] = point[best, 1]
        after[best] = after[gone]
        before[after[gone]] = best
        cost[gone] = _NO_COLLAPSE
        left -= 1
        at = int(before[before[best]])
        for _ in range(4):
            _price(ring, before, after, at, cost, point)
            at = after[at]
    kept = np.empty((left, 2), np.float64)
    at = 0
    while after[before[at]] != at:  # the first vertex still in the ring
        at += 1
    for index in range(left):
        kept[index] = ring[at]
        at = after[at]
    ring[:left] = kept
    return left


@njit(cache=True, nogil=True)
def _price(
    ring: NDArray[np.float64],
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    at: int,
    cost: NDArray[np.float64],
    point: NDArray[np.float64],
) -> None:
    a, c = int(before[at]), int(after[at])
    d = int(after[c])
    x, y, price = _segment_collapse(
        ring[a, 0], ring[a, 1], ring[at, 0], ring[at, 1], ring[c, 0], ring[c, 1], ring[d, 0], ring[d, 1]
    )
    point[at, 0], point[at, 1], cost[at] = x, y, price


@njit(cache=True, nogil=True)
def _round(
    ring: NDArray[np.float64],
    count: int,
    x0: int,
    y0: int,
    scale: tuple[float, float],
    rounded: NDArray[np.int64],
) -> int:
    """Whole level-0 px of a ring, without repeated vertices and those on a straight line; returns their number."""
    kept = 0
    for at in range(count):
        rounded[kept, 0] = np.int64(np.floor((x0 + ring[at, 0]) * scale[0] + 0.5))
        rounded[kept, 1] = np.int64(np.floor((y0 + ring[at, 1]) * scale[1] + 0.5))
        kept += 1
        while kept > 1 and (
            (rounded[kept - 1, 0] == rounded[kept - 2, 0] and rounded[kept - 1, 1] == rounded[kept - 2, 1])
            or (kept > 2 and _turn(rounded, kept - 3, kept - 2, kept - 1) == 0)
        ):
            rounded[kept - 2] = rounded[kept - 1]
            kept -= 1
    first = 0
    while kept - first > 2:  # the same where the ring closes
        if _turn(rounded, kept - 2, kept - 1, first) == 0:
            kept -= 1
        elif _turn(rounded, kept - 1, first, first + 1) == 0:
            first += 1
        else:
            break
    for at in range(kept - first):
        rounded[at] = rounded[at + first]
    return kept - first


@njit(cache=True, nogil=True)
def _turn(points: NDArray[np.int64], a: int, b: int, c: int) -> int:
    """Twice the signed area of a triangle: its sign is the turn at `b`."""
    return (points[b, 0] - points[a, 0]) * (points[c, 1] - points[b, 1]) - (points[b, 1] - points[a, 1]) * (
        points[c, 0] - points[b, 0]
    )


@njit(cache=True, nogil=True)
def _is_simple(points: NDArray[np.int64], count: int) -> bool:
    """Whether a ring (no repeated or straight vertices) bounds an area, turns from x to y and never meets itself."""
    if count < 3:
        return False
    doubled_area = 0
    for at in range(count):
        after = (at + 1) % count
        doubled_area += points[at, 0] * points[after, 1] - points[at, 1] * points[after, 0]
    if doubled_area <= 0:
        return False
    for i in range(count):
        i1 = (i + 1) % count
        for j in range(i + 2, count):
            j1 = (j + 1) % count
            if j1 != i and _segments_touch(points, i, i1, j, j1):
                return False
    return True


@njit(cache=True, nogil=True)
def _segments_touch(points: NDArray[np.int64], a: int, b: int, c: int, d: int) -> bool:
    if (
        max(points[a, 0], points[b, 0]) < min(points[c, 0], points[d, 0])
        or max(points[c, 0], points[d, 0]) < min(points[a, 0], points[b, 0])
        or max(points[a, 1], points[b, 1]) < min(points[c, 1], points[d, 1])
        or max(points[c, 1], points[d, 1]) < min(points[a, 1], points[b, 1])
    ):
        return False
    c_side, d_side = _turn(points, a, b, c), _turn(points, a, b, d)
    a_side, b_side = _turn(points, c, d, a), _turn(points, c, d, b)
    return min(c_side, d_side) <= 0 <= max(c_side, d_side) and min(a_side, b_side) <= 0 <= max(a_side, b_side)


@njit(cache=True, nogil=True)
def _box_ring(box: NDArray[np.int64], x0: int, y0: int, scale: tuple[float, float], rounded: NDArray[np.int64]) -> int:
    """The bounding box, at least one level-0 px wide: for slides coarser than the model grid."""
    left, top = np.int64(np.floor(x0 * scale[0])), np.int64(np.floor(y0 * scale[1]))
    right = max(left + 1, np.int64(np.ceil((x0 + box[3] - box[1] + 1) * scale[0])))
    bottom = max(top + 1, np.int64(np.ceil((y0 + box[2] - box[0] + 1) * scale[1])))
    rounded[0, 0], rounded[0, 1] = left, top
    rounded[1, 0], rounded[1, 1] = right, top
    rounded[2, 0], rounded[2, 1] = right, bottom
    rounded[3, 0], rounded[3, 1] = left, bottom
    return 4
