"""Ray for the length of a run: the cluster there is, or a local one started and stopped here.

Inside a Ray job, or with RAY_ADDRESS set, the run joins that cluster. Otherwise Ray starts on this machine with the
CPUs granted to this process, on loopback, quiet, without dashboard and what else only clusters need.

A local Ray does not outlive its driver, even one that is killed: its servers and workers end at once, and two idle
agents of Ray's a minute later.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from cellmill.cohort.granted import granted_cpus, granted_memory_bytes

__all__ = ["inside_ray_job", "joins_cluster", "ray_session"]

_MIN_STORE_BYTES = 256 << 20
_MAX_STARTS = 4


def inside_ray_job() -> bool:
    """Whether this process is the entrypoint of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def joins_cluster() -> bool:
    """Whether a session joins a cluster there is, instead of starting Ray on this machine."""
    return inside_ray_job() or bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def ray_session(*, object_store_bytes: int, show_workers: bool = False) -> Generator[None]:
    """Connect to Ray and leave it as it was found.

    Args:
        object_store_bytes: what pixels under way need; a local Ray gets that, within a third of the memory granted.
        show_workers: whether what workers print and log is shown here.
    """
    joins = joins_cluster()
    if not joins:
        # Read when Ray is imported: say nothing to outside servers, and leave C++ messages in Ray's log files.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # The process that planned commits later: Ray would end it after a second and start another, for seconds.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
        # A busy laptop takes more than Ray's 60 s to start a worker, and Ray would start another and another.
        os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
        _keep_to_loopback()
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": show_workers, "logging_level": logging.ERROR}
    if joins:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **quiet)
    else:
        store_bytes = max(_MIN_STORE_BYTES, min(object_store_bytes, granted_memory_bytes() // 3))
        with _few_servers(shows_workers=show_workers):
            _start(num_cpus=granted_cpus(), object_store_memory=store_bytes, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _keep_to_loopback() -> None:
    """Ray started from here listens on loopback alone: no firewall question, nothing to reach from outside.

    Ray has one switch for that, a variable it reads when it is imported; `ray.init(_node_ip_address=...)` binds to
    every interface all the same (Ray 2.60). A notebook may have imported Ray before: then its copy is set as well.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if "ray" in sys.modules and os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0":
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = False


@contextmanager
def _few_servers(*, shows_workers: bool) -> Generator[None]:
    """Ray started inside takes up less of a small machine, where each of its servers imports for a second or two.

    Left out are the monitor, which asks a cloud for more machines, and, where nobody sees what workers print, the log
    monitor that brings it here. The servers that stay leave out what the dashboard would ask of them, as they do where
    Ray is installed without its dashboard. `ray start` has options for the first two; `ray.init` has none (Ray 2.60).
    """
    from ray._private import parameter, utils

    whole, error = parameter.RayParams, utils.get_dashboard_dependency_error
    left_out: dict[str, Any] = {"no_monitor": True, "include_log_monitor": shows_workers}
    parameter.RayParams = partial(whole, **left_out)
    utils.get_dashboard_dependency_error = lambda: ImportError("no dashboard is wanted")
    try:
        yield
    finally:
        parameter.RayParams, utils.get_dashboard_dependency_error = whole, error


def _start(**settings: Any) -> None:
    """Start Ray on this machine. It gives its own processes 30 s, which a busy machine exceeds: then start again."""
    import ray

    for attempt in range(_MAX_STARTS):
        try:
            with _stderr_kept_back():
                ray.init(address="local", include_dashboard=False, **settings)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == _MAX_STARTS - 1 or "timed out during startup" not in str(error):
                raise


@contextmanager
def _stderr_kept_back() -> Generator[None]:
    """Ray's C++ side greets on file descriptor 2 while it starts; show that only where starting fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
