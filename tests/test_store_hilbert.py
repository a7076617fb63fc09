"""The order of rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellmill.grid import SlideGrid
from cellmill.store.hilbert import hilbert_keys, hilbert_order


def test_the_curve_visits_every_pixel_once_and_steps_to_a_neighbour() -> None:
    order = 5
    y, x = np.mgrid[: 1 << order, : 1 << order].reshape(2, -1)
    keys = hilbert_keys(x, y, order=order)
    assert np.array_equal(np.sort(keys), np.arange(1 << 2 * order))
    path = np.stack([x, y])[:, np.argsort(keys)]
    assert (np.abs(np.diff(path)).sum(axis=0) == 1).all()


@given(st.integers(1, 31), st.integers(0, 12), st.data())
def test_keys_of_an_aligned_block_are_consecutive(order: int, bits: int, data: st.DataObject) -> None:
    bits = min(bits, order)
    side = st.integers(0, (1 << order) - 1)
    x, y = (np.array([data.draw(side)]) for _ in range(2))
    block = [np.array([value]) << bits for value in (x[0] >> bits, y[0] >> bits)]
    key, first = hilbert_keys(x, y, order=order), hilbert_keys(*block, order=order)
    assert key >> 2 * bits == first >> 2 * bits


def test_the_order_follows_the_slide_alone() -> None:
    assert hilbert_order(SlideGrid(1, 1, 1.0, 1.0, 0.5)) == 1
    assert hilbert_order(SlideGrid(1024, 3, 1.0, 1.0, 0.5)) == 10
    assert hilbert_order(SlideGrid(1025, 3, 1.0, 1.0, 0.5)) == 11
