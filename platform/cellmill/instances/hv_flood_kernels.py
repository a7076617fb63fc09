"""Compiled watershed of the hv decoder: markers grow over the foreground, highest energy first.

`labels` (H, W) holds markers as 1, 2 ... and comes back with the other pixels of marker k as -k; 0 is nobody's. Each
flood runs in a patch of its own: a narrow part of the foreground in its bounding box, a wide one tile by tile.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.instances.hv_energy_kernels import NUM_LEVELS

__all__ = ["flood_narrow_parts", "flood_wide_parts"]

_UNCLAIMED = -1


@njit(cache=True, nogil=True)
def _flood(
    state: NDArray[np.int32],
    energy: NDArray[np.uint16],
    stride: int,
    seeds: NDArray[np.int32],
    num_seeds: int,
    links: NDArray[np.int32],
    queues: NDArray[np.int32],
) -> None:
    """Grow the labels in `state` over pixels that are `_UNCLAIMED`; all else in it is a wall.

    As scikit-image's watershed does: of the pixels claimed, that of highest energy goes next, of equals the one claimed
    first, and it claims its neighbours above, left, right and below. `queues` is (2, NUM_LEVELS), first and last pixel
    of each level, -1 where empty, and left so; `links` leads from each pixel to the next of its level.
    """
    heads, tails = queues[0], queues[1]
    level = -1
    for number in range(num_seeds):
        at = seeds[number]
        own = np.int64(energy[at])
        links[at] = -1
        if heads[own] < 0:
            heads[own] = at
        else:
            links[tails[own]] = at
        tails[own] = at
        level = max(level, own)
    while level >= 0:
        at = heads[level]
        if at < 0:
            level -= 1
            continue
        heads[level] = links[at]
        label = state[at]
        for move in (-stride, -1, 1, stride):
            near = at + move
            if state[near] != _UNCLAIMED:
                continue
            state[near] = label
            own = np.int64(energy[near])
            links[near] = -1
            if heads[own] < 0:
                heads[own] = near
            else:
                links[tails[own]] = near
            tails[own] = near
            level = max(level, own)


@njit(cache=True, nogil=True)
def _collect_seeds(
    state: NDArray[np.int32], stride: int, first: int, last: int, seeds: NDArray[np.int32], num_seeds: int
) -> int:
    """Add the labelled pixels of a stretch that have an unclaimed neighbour; the others have nobody to claim."""
    for at in range(first, last + 1):
        if state[at] > 0 and (
            state[at - stride] == _UNCLAIMED
            or state[at - 1] == _UNCLAIMED
            or state[at + 1] == _UNCLAIMED
            or state[at + stride] == _UNCLAIMED
        ):
            seeds[num_seeds] = at
            num_seeds += 1
    return num_seeds


@njit(cache=True, nogil=True)
def flood_narrow_parts(
    labels: NDArray[np.int32],
    energy: NDArray[np.uint16],
    runs: NDArray[np.int32],
    starts: NDArray[np.int32],
    ordered: NDArray[np.int32],
    boxes: NDArray[np.int32],
    widest_px: int,
) -> NDArray[np.bool_]:
    """Flood each part of the foreground that is at most `widest_px` wide and high; returns which are not."""
    stride = widest_px + 2
    state = np.zeros(stride * stride, np.int32)
    levels = np.zeros(stride * stride, np.uint16)
    links = np.empty(stride * stride, np.int32)
    seeds = np.empty(stride * stride, np.int32)
    queues = np.full((2, NUM_LEVELS), -1, np.int32)
    wide = np.zeros(len(boxes), np.bool_)
    for part in range(len(boxes)):
        y0, x0 = boxes[part, 0], boxes[part, 1]
        if boxes[part, 2] - y0 >= widest_px or boxes[part, 3] - x0 >= widest_px:
            wide[part] = True
            continue
        own = ordered[starts[part] : starts[part + 1]]
        only = _only_marker(labels, runs, own)
        if only >= 0:
            for index in own:
                y = runs[index, 0]
                for x in range(runs[index, 1], runs[index, 2] + 1):
                    if labels[y, x] == 0:
                        labels[y, x] = -only
            continue
        for index in own:
            y = runs[index, 0]
            to = (y - y0 + 1) * stride + 1 - x0
            for x in range(runs[index, 1], runs[index, 2] + 1):
                state[to + x] = labels[y, x] if labels[y, x] > 0 else _UNCLAIMED
                levels[to + x] = energy[y, x]
        num_seeds = 0
        for index in own:
            at = (runs[index, 0] - y0 + 1) * stride + 1 - x0
            num_seeds = _collect_seeds(state, stride, at + runs[index, 1], at + runs[index, 2], seeds, num_seeds)
        _flood(state, levels, stride, seeds, num_seeds, links, queues)
        for index in own:
            y = runs[index, 0]
            to = (y - y0 + 1) * stride + 1 - x0
            for x in range(runs[index, 1], runs[index, 2] + 1):
                if labels[y, x] == 0:
                    labels[y, x] = -state[to + x]
                state[to + x] = 0
    return wide


@njit(cache=True, nogil=True)
def _only_marker(labels: NDArray[np.int32], runs: NDArray[np.int32], own: NDArray[np.int32]) -> int:
    """The part's marker where it has one alone, 0 where it has none, -1 where it has several."""
    only = 0
    for index in own:
        y = runs[index, 0]
        for x in range(runs[index, 1], runs[index, 2] + 1):
            label = labels[y, x]
            if label > 0 and label != only:
                if only > 0:
                    return -1
                only = label
    return only


@njit(cache=True, nogil=True)
def flood_wide_parts(
    labels: NDArray[np.int32],
    energy: NDArray[np.uint16],
    row_starts: NDArray[np.int32],
    runs: NDArray[np.int32],
    is_wide: NDArray[np.bool_],
    origin_y: int,
    origin_x: int,
    tile_px: int,
    margin_px: int,
) -> NDArray[np.int32]:
    """Flood wide parts tile by tile: a pixel is whose the flood of its tile, with a margin around, says it is.

    Tiles lie on the absolute grid of `tile_px`. `is_wide` is by run.

    Returns:
        Where two tiles might differ: rows of inner y, x, outer y, x, label. Inner and outer pixel touch across a tile's
        rim, and the inner one's tile gives both to this label.
    """
    height, width = labels.shape
    stride = tile_px + 2 * margin_px + 2
    state = np.zeros(stride * stride, np.int32)
    levels = np.zeros(stride * stride, np.uint16)
    links = np.empty(stride * stride, np.int32)
    seeds = np.empty(stride * stride, np.int32)
    queues = np.full((2, NUM_LEVELS), -1, np.int32)
    crossings = np.empty((1024, 5), np.int32)
    num_crossings = 0
    wanted = _tiles_with_wide_runs(runs, is_wide, height, width, origin_y, origin_x, tile_px)
    for tile_y in range(wanted.shape[0]):
        for tile_x in range(wanted.shape[1]):
            if not wanted[tile_y, tile_x]:
                continue
            core_y, core_x = tile_y * tile_px - origin_y % tile_px, tile_x * tile_px - origin_x % tile_px
            # window pixel (y, x) is patch pixel (y - top) * stride + x - left
            top, left = core_y - margin_px - 1, core_x - margin_px - 1
            rows = max(top + 1, 0), min(top + stride - 1, height)
            columns = max(left + 1, 0), min(left + stride - 1, width)
            state[:] = 0
            for y in range(rows[0], rows[1]):
                to = (y - top) * stride - left
                for index in range(row_starts[y], row_starts[y + 1]):
                    first, last = max(runs[index, 1], columns[0]), min(runs[index, 2], columns[1] - 1)
                    for x in range(first, last + 1 if is_wide[index] else first):
                        state[to + x] = labels[y, x] if labels[y, x] > 0 else _UNCLAIMED
                        levels[to + x] = energy[y, x]
            num_seeds = _collect_seeds(state, stride, stride + 1, stride * (stride - 1) - 2, seeds, 0)
            _flood(state, levels, stride, seeds, num_seeds, links, queues)
            core_rows = max(core_y, 0), min(core_y + tile_px, height)
            core_columns = max(core_x, 0), min(core_x + tile_px, width)
            for y in range(core_rows[0], core_rows[1]):
                for x in range(core_columns[0], core_columns[1]):
                    label = state[(y - top) * stride + x - left]
                    if label > 0 and labels[y, x] == 0:
                        labels[y, x] = -label
            if num_crossings + 4 * tile_px > len(crossings):
                larger = np.empty((2 * len(crossings) + 4 * tile_px, 5), np.int32)
                larger[:num_crossings] = crossings[:num_crossings]
                crossings = larger
            num_crossings = _note_crossings(state, tile_px, margin_px, core_y, core_x, crossings, num_crossings)
    return crossings[:num_crossings]


@njit(cache=True, nogil=True)
def _note_crossings(
    state: NDArray[np.int32],
    tile_px: int,
    margin_px: int,
    core_y: int,
    core_x: int,
    crossings: NDArray[np.int32],
    num_crossings: int,
) -> int:
    """Add where a label goes on across the rim of a flooded patch's tile; returns the number of crossings."""
    stride, last = tile_px + 2 * margin_px + 2, tile_px - 1
    for k in range(tile_px):
        for y, x, move_y, move_x in ((0, k, -1, 0), (last, k, 1, 0), (k, 0, 0, -1), (k, last, 0, 1)):
            at = (y + margin_px + 1) * stride + x + margin_px + 1
            label = state[at]
            if label > 0 and state[at + move_y * stride + move_x] == label:
                crossings[num_crossings, 0] = core_y + y
                crossings[num_crossings, 1] = core_x + x
                crossings[num_crossings, 2] = core_y + y + move_y
                crossings[num_crossings, 3] = core_x + x + move_x
                crossings[num_crossings, 4] = label
                num_crossings += 1
    return num_crossings


@njit(cache=True, nogil=True)
def _tiles_with_wide_runs(
    runs: NDArray[np.int32],
    is_wide: NDArray[np.bool_],
    height: int,
    width: int,
    origin_y: int,
    origin_x: int,
    tile_px: int,
) -> NDArray[np.bool_]:
    """Which tiles that meet the window, by row and column, hold wide runs."""
    offset_y, offset_x = origin_y % tile_px, origin_x % tile_px
    wanted = np.zeros(((height - 1 + offset_y) // tile_px + 1, (width - 1 + offset_x) // tile_px + 1), np.bool_)
    for index in range(len(runs)):
        if is_wide[index]:
            row = wanted[(runs[index, 0] + offset_y) // tile_px]
            row[(runs[index, 1] + offset_x) // tile_px : (runs[index, 2] + offset_x) // tile_px + 1] = True
    return wanted
