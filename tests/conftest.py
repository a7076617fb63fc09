"""Fixtures shared by all tests: the real data, and one Ray session for the whole run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before numba, torch or OpenMP load: tests run beside other things on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

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
    """One local Ray of two CPUs on loopback, started by the first test that needs it."""
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        object_store_memory=512 * 1024**2,
    )
    yield
    ray.shutdown()
