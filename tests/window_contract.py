"""What every decoder must hold: the cells it finds in a window's core do not depend on the window.

A test module makes its own scenes (maps of a whole slide, decoded whole) and calls `assert_window_agrees` with windows
that hypothesis draws.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from cellmill.grid import Box
from cellmill.instances.decoder import Decoder, Instances

__all__ = ["Scene", "assert_window_agrees", "make_scene", "mask_ids"]


@dataclass(frozen=True)
class Scene:
    """Maps of a whole slide with background beyond its rim, and what the decoder makes of all of them."""

    size: int
    decoder: Decoder[Any]
    maps: Any
    whole: Instances


def make_scene(size: int, maps: Any, decoder: Decoder[Any]) -> Scene:
    return Scene(size, decoder, maps, decoder.decode(maps))


def mask_ids(instances: Instances, box: Box, width_px: int) -> np.ndarray:
    """1 + anchor index of each pixel's cell, 0 for none: labels that mean the same in every window."""
    ids = np.concatenate([[0], 1 + instances.anchors_px[:, 1] * width_px + instances.anchors_px[:, 0]])
    own = instances.box
    return ids[instances.labels[box.y0 - own.y0 : box.y1 - own.y0, box.x0 - own.x0 : box.x1 - own.x0]]


def assert_window_agrees(scene: Scene, data: st.DataObject) -> None:
    """Decode a window around a core drawn from `data`; core and owned cells are those of the whole slide."""
    lengths, extras = st.integers(1, scene.size // 2), st.integers(0, 40)
    x0, y0 = data.draw(st.integers(0, scene.size - 1)), data.draw(st.integers(0, scene.size - 1))
    core = Box(x0, y0, min(scene.size, x0 + data.draw(lengths)), min(scene.size, y0 + data.draw(lengths)))
    window = core.grown(scene.decoder.halo_px)
    window = Box(window.x0 - data.draw(extras), window.y0 - data.draw(extras), window.x1 + data.draw(extras), window.y1)
    part = scene.decoder.decode(scene.maps.window(window.clipped(scene.maps.box)))

    painted, expected = mask_ids(part, core, scene.size), mask_ids(scene.whole, core, scene.size)
    np.testing.assert_array_equal(painted, expected, "painting differs")
    own, same = part.owned_by(core), scene.whole.owned_by(core)
    np.testing.assert_array_equal(part.anchors_px[own], scene.whole.anchors_px[same])
    np.testing.assert_array_equal(part.exceeds_reach[own], scene.whole.exceeds_reach[same])
    reach = core.grown(scene.decoder.reach_px).clipped(part.box)
    owned_ids = 1 + part.anchors_px[own, 1] * scene.size + part.anchors_px[own, 0]
    painted, expected = mask_ids(part, reach, scene.size), mask_ids(scene.whole, reach, scene.size)
    np.testing.assert_array_equal(
        np.where(np.isin(painted, owned_ids), painted, 0), np.where(np.isin(expected, owned_ids), expected, 0)
    )
