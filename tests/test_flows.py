"""Flow targets: the definition is Cellpose's, and the flow of a mask depends on that mask alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.instances.targets import masks_to_flows
from cellmill.instances.testing import crowded_nuclei


@pytest.fixture(scope="module")
def nuclei() -> np.ndarray:
    return crowded_nuclei(200, 220, num_nuclei=40, seed=3)


def test_flow_of_a_lone_mask_is_that_of_cellpose(nuclei: np.ndarray) -> None:
    dynamics = pytest.importorskip("cellpose.dynamics")
    for label in (1, 7, 23):
        lone = (nuclei == label).astype(np.int32)
        expected, _ = dynamics.masks_to_flows_gpu(lone.astype(np.int64))
        np.testing.assert_allclose(masks_to_flows(lone), expected, atol=1e-3)


def test_flow_is_of_unit_length_inside_and_zero_outside(nuclei: np.ndarray) -> None:
    flow = masks_to_flows(nuclei)
    length = np.hypot(*flow)
    assert not length[nuclei == 0].any()
    inside = length[nuclei > 0]
    # all but a few centres, where the gradient is exactly zero
    assert np.isclose(inside, 1, atol=1e-5).mean() > 0.995


def test_flow_of_a_mask_depends_on_that_mask_alone(nuclei: np.ndarray) -> None:
    together = masks_to_flows(nuclei)
    for label in np.unique(nuclei[nuclei > 0])[::7]:
        alone = masks_to_flows(np.where(nuclei == label, 1, 0).astype(np.int32))
        np.testing.assert_array_equal(together[:, nuclei == label], alone[:, nuclei == label])


@settings(max_examples=25, deadline=None)
@given(top=st.integers(0, 40), left=st.integers(0, 40))
def test_flow_does_not_depend_on_where_the_image_starts(nuclei: np.ndarray, top: int, left: int) -> None:
    moved = np.pad(nuclei, ((top, 3), (left, 5)))
    height, width = nuclei.shape
    np.testing.assert_array_equal(
        masks_to_flows(moved)[:, top : top + height, left : left + width], masks_to_flows(nuclei)
    )


def test_label_values_do_not_matter(nuclei: np.ndarray) -> None:
    renamed = np.where(nuclei > 0, nuclei * 30_000_000, -1)
    np.testing.assert_array_equal(masks_to_flows(renamed.astype(np.int32)), masks_to_flows(nuclei))


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (5, 5)])
def test_empty_images_have_no_flow(shape: tuple[int, int]) -> None:
    flow = masks_to_flows(np.zeros(shape, np.int32))
    assert flow.shape == (2, *shape)
    assert not flow.any()
