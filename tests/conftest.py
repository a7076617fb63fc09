"""Fixtures shared by all tests: the real data, and one Ray session for the whole run."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Before numba, torch or OpenMP load: tests run beside other things on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

# No deadline: an example that compiles a kernel takes seconds. In CI the examples are the same in every run, so that a
# red run means a change and not a new example.
hypothesis.settings.register_profile("cellmill", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("cellmill")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides and nuclei; the test is skipped where it is absent."""
    folder = Path(os.environ.get("CELLMILL_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "slides").is_dir():
        pytest.skip(f"real test data not found at {folder}; set CELLMILL_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray on loopback, started by the first test that needs it, as the jobs themselves start it."""
    from cellmill.cohort import session

    with session.ray_session(object_store_bytes=512 << 20):
        yield
