"""The compiled resampler does what a plain NumPy one does, bit for bit, at every scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.slides.resample import axis_taps, resample_into

SCALES = [
    0.26,
    0.5,
    0.7,
    0.998,
    1.0,
    1.002,
    1.1035,
    1.25,
    1.5,
    1.75,
    1.9,
    1.9786,
    2.0,
    2.0568,
    2.207,
    2.5,
    3.3,
    4.0,
    5.1,
]


def plain(native, origin, taps_x, taps_y):
    """Rows, then columns; 14 bit weights, 6 bits kept between."""
    rows = taps_y.starts[:, None] - origin[1] + np.arange(taps_y.weights.shape[1])
    columns = taps_x.starts[:, None] - origin[0] + np.arange(taps_x.weights.shape[1])
    middle = (np.einsum("yk,ykxc->yxc", taps_y.weights.astype(np.int64), native.astype(np.int64)[rows]) + 128) >> 8
    assert np.abs(middle).max() < 1 << 15
    ends = (np.einsum("xk,yxkc->yxc", taps_x.weights.astype(np.int64), middle[:, columns]) + (1 << 19)) >> 20
    return np.clip(ends, 0, 255).astype(np.uint8)


def check(*, first, count, scale, size, seed):
    (first_x, first_y), (num_x, num_y), (scale_x, scale_y) = first, count, scale
    taps_x = axis_taps(first_x, first_x + num_x, scale=scale_x, native_size=size[0])
    taps_y = axis_taps(first_y, first_y + num_y, scale=scale_y, native_size=size[1])
    (x0, x1), (y0, y1) = taps_x.native_range, taps_y.native_range
    rng = np.random.default_rng(seed)
    # Black and white besides noise: the cubic overshoots most there.
    native = rng.choice(np.array([0, 255, 255, 77, 130], np.uint8), (y1 - y0, x1 - x0, 3))
    pixels = np.full((num_y + 5, num_x + 9, 3), 9, np.uint8)
    resample_into(pixels, (4, 2), native, (x0, y0), taps_x=taps_x, taps_y=taps_y)
    inside = (slice(2, 2 + num_y), slice(4, 4 + num_x))
    np.testing.assert_array_equal(pixels[inside], plain(native, (x0, y0), taps_x, taps_y))
    pixels[inside] = 9
    assert (pixels == 9).all()


@pytest.mark.parametrize("scale", SCALES)
def test_pixels_are_those_of_plain_sums(scale):
    check(first=(1000, 31), count=(256, 40), scale=(scale, scale), size=(9000, 3000), seed=0)


@given(
    scale_x=st.one_of(st.sampled_from(SCALES), st.floats(0.06, 9)),
    scale_y=st.floats(0.06, 9),
    width=st.integers(1, 400),
    height=st.integers(1, 100),
    data=st.data(),
)
def test_pixels_are_those_of_plain_sums_at_the_slides_edges_too(scale_x, scale_y, width, height, data):
    across, down = max(1, int(width / scale_x)), max(1, int(height / scale_y))
    first = data.draw(st.integers(0, across - 1)), data.draw(st.integers(0, down - 1))
    count = data.draw(st.integers(1, min(80, across - first[0]))), data.draw(st.integers(1, min(20, down - first[1])))
    check(first=first, count=count, scale=(scale_x, scale_y), size=(width, height), seed=1)
