"""A Ray cluster of several real nodes on this machine: raylets with object stores of their own, on loopback.

Nodes are added and taken away while runs go on. `leaks` says what an idle cluster still holds.
"""

import contextlib
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["STORE_BYTES", "TESTS", "Leaks", "Nodes", "fill_object_stores", "leaks"]

TESTS = Path(__file__).resolve().parent
STORE_BYTES = 80 << 20
_MAX_STARTS = 6
_RAY_DATAS_OWN = ("ray::ActorLocationTracker", "ray::_AutoscalingCoordinatorActor", "ray::_StatsActor")
"""One of each stays with a cluster as long as the cluster lives, whatever runs on it."""


class Nodes:
    """The cluster: a head that stays, and worker nodes that come and go."""

    def __init__(self, folder: Path) -> None:
        from cellmill.cohort import session

        session._keep_to_loopback()
        # A worker may take its time on a busy machine, and is as nice as we are, not nicer by Ray's 15; and no other
        # Ray of this machine should find this one.
        calm = {"RAY_worker_register_timeout_seconds": "300", "RAY_worker_niceness": "0", "RAY_TMPDIR": str(folder)}
        os.environ.update(calm, RAY_USAGE_STATS_ENABLED="0", RAY_BACKEND_LOG_LEVEL="fatal")
        (folder / "ray").mkdir()
        os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        import ray
        from ray.cluster_utils import Cluster

        self._common = {"node_ip_address": "127.0.0.1", "object_store_memory": STORE_BYTES}
        self.cluster = Cluster()
        self._start({"num_cpus": 0, "include_dashboard": False, **self._common})
        with _quiet():
            ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    @property
    def address(self) -> str:
        return self.cluster.address

    @property
    def workers(self) -> list[Any]:
        """By age."""
        return sorted(self.cluster.worker_nodes, key=lambda node: node.all_processes["raylet"][0].process.pid)

    def add(self, **resources: Any) -> Any:
        """Another node of one CPU, there when this returns."""
        return self._start({"num_cpus": 1, **self._common, **resources})

    def _start(self, arguments: dict[str, Any]) -> Any:
        """Start a node. Ray gives that 30 s, which a busy machine exceeds: then start it again."""
        for attempt in range(_MAX_STARTS):
            nodes, processes = set(self.cluster.worker_nodes), set(psutil.Process().children())
            try:
                with _quiet():
                    return self.cluster.add_node(**arguments)
            except Exception as error:
                if attempt == _MAX_STARTS - 1 or "timed out" not in str(error).lower():
                    raise
                self.cluster.worker_nodes = nodes
                if not arguments["num_cpus"]:
                    self.cluster.head_node = None
                for process in set(psutil.Process().children()) - processes:
                    process.kill()
        raise AssertionError

    def processes(self, node: Any) -> list[psutil.Process]:
        """All that a node runs: raylet, agents, workers, their readers."""
        tops = [psutil.Process(info.process.pid) for infos in node.all_processes.values() for info in infos]
        below = [child for top in tops for child in top.children(recursive=True)]
        return tops + below

    def kill(self, node: Any, *, notice_seconds: float = 0.0) -> None:
        """Take a node away, all of it at once; with notice, its raylet is told so before."""
        if notice_seconds:
            node.all_processes["raylet"][0].process.terminate()
            time.sleep(notice_seconds)
        for process in self.processes(node):
            with contextlib.suppress(psutil.Error):
                process.kill()
        with _quiet():
            self.cluster.remove_node(node, allow_graceful=False)

    def restore(self, num_nodes: int) -> None:
        """Have so many worker nodes."""
        while len(self.workers) > num_nodes:
            self.kill(self.workers[0])
        while len(self.workers) < num_nodes:
            self.add()

    def close(self) -> None:
        """End all of it."""
        import ray

        with _quiet():
            ray.shutdown()
            self.cluster.shutdown()


def fill_object_stores(nodes: Nodes, *, num_bytes: int) -> list[Any]:
    """Objects of that size in every worker node's store, pinned there as long as the list is held."""
    import numpy as np
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0, max_retries=0)
    def fill() -> list[Any]:
        return [ray.put(np.ones(8 << 20, np.uint8)) for _ in range(num_bytes >> 23)]

    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    fills = [
        fill.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=True)).remote()
        for node_id in alive
    ]
    ready, _ = ray.wait(fills, num_returns=len(fills), timeout=20)
    return [ray.get(reference) for reference in ready]


@dataclass(frozen=True)
class Leaks:
    """What a cluster holds that is idle."""

    processes: tuple[str, ...]
    """Workers and readers that are still at work."""
    cpus: float
    """Booked."""
    object_bytes: float
    """In object stores."""
    cluster_mib: int
    """Of the head's and nodes' own servers."""


def leaks(nodes: Nodes, *, within_seconds: float = 60.0) -> Leaks:
    """What is still held, after waiting for Ray to let go of it."""
    deadline = time.monotonic() + within_seconds
    while True:
        found = _held(nodes)
        if not (found.processes or found.cpus or found.object_bytes) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _held(nodes: Nodes) -> Leaks:
    import ray

    names, rays_own = list[str](), set[str]()
    servers = 0
    for node in nodes.cluster.list_all_nodes():
        for process in nodes.processes(node):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline()).strip()
                is_busy = line.startswith("ray::") and "IDLE" not in line and "Agent" not in line
                if line in _RAY_DATAS_OWN and line not in rays_own:
                    rays_own.add(line)
                elif "reader_process" in line or is_busy:
                    names.append(line[:60])
                elif "gcs_server" in line or "raylet" in line.split(" ")[0]:
                    servers += process.memory_info().rss >> 20
    total, free = ray.cluster_resources(), ray.available_resources()
    return Leaks(
        processes=tuple(names),
        cpus=round(total.get("CPU", 0) - free.get("CPU", 0), 4),
        object_bytes=max(0.0, total.get("object_store_memory", 0) - free.get("object_store_memory", 0)),
        cluster_mib=servers,
    )


@contextmanager
def _quiet() -> Generator[None]:
    """Ray's servers greet on file descriptors 1 and 2."""
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with Path(os.devnull).open("wb") as null:
        for descriptor in (1, 2):
            os.dup2(null.fileno(), descriptor)
        try:
            yield
        finally:
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
