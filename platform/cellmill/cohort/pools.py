"""How a cluster is shared out: which device workers take, how many there are, and what each is booked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cellmill.cohort.session import joins_cluster

if TYPE_CHECKING:
    from cellmill.models.inference import DeviceKind

__all__ = ["PoolSizes", "cluster_shape", "device_of_workers", "pool_sizes", "pools_of_cluster"]

_MAX_READERS_PER_GPU = 8
_CPUS_PER_GPU = 8.0
"""Taken to come with a GPU while the cluster has none yet: an autoscaler adds nodes when a worker asks for one."""


def device_of_workers(wanted: Literal["auto", "cpu", "cuda"]) -> "DeviceKind":
    """The kind of device that workers take; on a cluster its nodes have the GPUs, and the driver's need not.

    Raises:
        ValueError: when CUDA is asked for on this machine and torch sees none.
    """
    from cellmill.models.inference import choose_device  # torch comes with it

    if wanted == "cuda" and joins_cluster():
        return wanted
    return choose_device(wanted)


@dataclass(frozen=True)
class PoolSizes:
    """How many workers each stage has and what share of a CPU each is booked for, so that all always fit."""

    num_planners: int
    num_segmenters: int
    planner_cpus: float
    segmenter_cpus: float
    segmenter_gpus: float
    num_readers: int
    """Fields that a segmenter reads ahead."""
    num_finishers: int
    """Threads of a segmenter that decode and measure beside the network."""


def pool_sizes(
    *, num_workers: int, threads_per_worker: int, cluster_cpus: float, cluster_gpus: float, device: str
) -> PoolSizes:
    """Split a cluster between the stages.

    On CPUs the network takes nearly all the time, so one reader keeps up and fields are finished in turn. A GPU is fed
    by the CPUs that come with it: half of them read, half finish.

    Args:
        num_workers: segmenters; 0 for as many as there are CPUs or GPUs.
        threads_per_worker: CPU threads of each.
        cluster_cpus: CPUs that segmenters can take, see `cluster_shape`.
        cluster_gpus: GPUs; 0 with `cuda` where nodes that have some are still to come.
        device: `cpu` or `cuda`.
    """
    num_readers, num_finishers = 1, min(1, threads_per_worker // 4)
    if device == "cuda":
        if not cluster_gpus:
            cluster_gpus = float(num_workers or 1)
            cluster_cpus = _CPUS_PER_GPU * cluster_gpus
        num_segmenters = num_workers or max(1, int(cluster_gpus))
        beside = int(cluster_cpus / num_segmenters) // 2
        num_readers, num_finishers = (max(1, min(beside, _MAX_READERS_PER_GPU)) for _ in range(2))
    else:
        num_segmenters = num_workers or max(1, int(cluster_cpus) // threads_per_worker)
    num_planners = -(-num_segmenters // 4)
    at_most = cluster_cpus if device == "cuda" else threads_per_worker
    return PoolSizes(
        num_planners=num_planners,
        num_segmenters=num_segmenters,
        # A tenth of a CPU is what segmenters leave on a node of one; more would never fit on small nodes.
        planner_cpus=_booking(0.1 * cluster_cpus / num_planners, 0.1),
        segmenter_cpus=_booking(0.9 * cluster_cpus / num_segmenters, at_most),
        segmenter_gpus=min(1.0, cluster_gpus / num_segmenters) if device == "cuda" else 0.0,
        num_readers=num_readers,
        num_finishers=num_finishers,
    )


def cluster_shape(nodes: Sequence[Mapping[str, Any]], *, device: str) -> tuple[float, float]:
    """CPUs and GPUs that segmenters can take; a worker has to fit on one node.

    For CUDA only CPUs beside GPUs count, as many for each as the node with the fewest has: a share of all the
    cluster's CPUs may be more than any node with a GPU holds.

    Args:
        nodes: as `ray.nodes()` tells them.
        device: `cpu` or `cuda`.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    cpus, gpus = (sum(float(node.get(kind, 0.0)) for node in resources) for kind in ("CPU", "GPU"))
    if device == "cuda" and gpus:
        cpus = gpus * min(float(node.get("CPU", 0.0)) / node["GPU"] for node in resources if node.get("GPU"))
    return cpus or 1.0, gpus


def pools_of_cluster(*, num_workers: int, threads_per_worker: int, device: str) -> PoolSizes:
    """The split of the cluster that this process is connected to."""
    import ray

    cpus, gpus = cluster_shape(ray.nodes(), device=device)
    return pool_sizes(
        num_workers=num_workers,
        threads_per_worker=threads_per_worker,
        cluster_cpus=cpus,
        cluster_gpus=gpus,
        device=device,
    )


def _booking(cpus: float, at_most: float) -> float:
    """What Ray accepts: four decimals below one CPU, whole CPUs above."""
    cpus = min(cpus, at_most)
    return float(int(cpus)) if cpus >= 1 else max(0.0001, int(cpus * 10_000) / 10_000)
