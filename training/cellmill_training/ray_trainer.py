"""The Ray Train shell: one function that runs a worker on 1 to N workers, and what a worker may ask of Ray.

In: a worker (plain training code), its config as plain values, a folder and a `WorkerPlan`. Out: Ray's result; whatever
files the worker wrote are where the worker put them. A worker that dies is replaced and finds the last checkpoint by
`take_last_checkpoint`; so does a run that is started again on the same folder. Nothing here knows what is trained.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cellmill.cohort.session import joins_cluster, ray_session

if TYPE_CHECKING:
    import ray.train
    import torch

__all__ = [
    "Device",
    "WorkerPlan",
    "clock_of_first",
    "data_parallel",
    "fit",
    "rank_and_world",
    "report",
    "take_last_checkpoint",
    "torch_device",
    "uses_gpu",
]

Device = Literal["auto", "cpu", "cuda"]

_STORE_BYTES = 256 << 20
_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers train, and with what each."""

    num_workers: int = 1
    """Ray Train workers; each step they average their gradients. 0 is Ray Train's local mode: this process trains, and
    nothing replaces it."""
    cpus_per_worker: int = 2
    """CPU cores, and torch threads, of a worker."""
    device: Device = "auto"
    """Where workers train; `auto` takes one CUDA device each where torch sees one."""
    max_failures: int = 3
    """How often a dead worker is replaced before the run gives up."""

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.cpus_per_worker < 1 or self.max_failures < 0:
            raise ValueError(
                "--num-workers and --max-failures must not be negative and --cpus-per-worker positive, got "
                f"{self.num_workers}, {self.max_failures} and {self.cpus_per_worker}."
            )


def uses_gpu(device: Device) -> bool:
    """Whether workers train on CUDA.

    Raises:
        ValueError: when `cuda` is asked for and torch sees none.
    """
    if device == "cpu":
        return False
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but torch sees no CUDA device here; use --device cpu or auto.")
    return torch.cuda.is_available()


def torch_device(device: Device) -> "torch.device":
    """The device a worker trains on; Ray shows each worker its own GPU only."""
    import torch

    return torch.device("cuda" if uses_gpu(device) else "cpu")


def fit(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    out: Path,
    plan: WorkerPlan,
    show_workers: bool = True,
) -> "ray.train.Result":
    """Run `worker(config)` on every worker of the plan until it returns.

    Args:
        worker: what each worker runs, an importable function.
        config: plain values; paths absolute, because a worker has a working folder of its own.
        out: folder for Ray's checkpoints (`out/train`); a run started again on it goes on from the last one. Workers
            on other machines need it on shared storage.
        plan: workers and what each gets.
        show_workers: whether what workers and Ray's own processes log is shown here.

    Raises:
        ValueError: when this machine has fewer cores than the plan asks for.
        Exception: what a worker raised, as it raised it, when it did so more often than `max_failures`.
        ray.train.TrainingFailedError: when workers died more often than that, or Ray failed.
    """
    # Ray Train gives a group of workers 60 s to start, which importing torch alone takes on a busy laptop.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    if not joins_cluster():
        # Ray takes in one report of each worker a look, every 2 s: short runs would mostly wait for that.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
        # A process beside every group of workers that asks whether a cloud takes the machine away.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray.train
    from ray.train.torch import TorchTrainer

    use_gpu = uses_gpu(plan.device)
    resources = {"CPU": float(plan.cpus_per_worker), **({"GPU": 1.0} if use_gpu else {})}
    starts_workers = plan.num_workers > 0
    with ray_session(object_store_bytes=_STORE_BYTES, show_workers=show_workers) if starts_workers else nullcontext():
        _require_room(plan)
        trainer = TorchTrainer(
            _with_threads(worker, plan.cpus_per_worker),
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=plan.num_workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(out.resolve()),
                failure_config=ray.train.FailureConfig(max_failures=plan.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS),
            ),
        )
        try:
            return trainer.fit()
        except ray.train.WorkerGroupError as error:
            raise _what_a_worker_raised(error) from error


def _what_a_worker_raised(error: "ray.train.WorkerGroupError") -> Exception:
    """The worker's own exception: whoever started the run needs its sentence, not which worker said it."""
    import ray.exceptions

    for failure in error.worker_failures.values():
        raised = getattr(failure, "_base_exc", failure)  # Ray wraps some of what a worker's code raised
        if isinstance(raised, Exception) and not isinstance(raised, ray.exceptions.RayError):
            return raised
    return error


def _with_threads(worker: Callable[[dict[str, Any]], None], num_threads: int) -> Callable[[dict[str, Any]], None]:
    def train(config: dict[str, Any]) -> None:
        import torch

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        torch.set_num_threads(num_threads)
        worker(config)

    return train


def _require_room(plan: WorkerPlan) -> None:
    import ray

    if joins_cluster() or plan.num_workers == 0:  # a cluster may grow
        return
    needed, cores = plan.num_workers * plan.cpus_per_worker, ray.cluster_resources().get("CPU", 0.0)
    if needed > cores:
        raise ValueError(
            f"{plan.num_workers} workers of {plan.cpus_per_worker} CPUs need {needed} CPUs, this machine grants "
            f"{cores:.0f}: lower --num-workers or --cpus-per-worker, or set RAY_ADDRESS to a cluster."
        )


def rank_and_world() -> tuple[int, int]:
    """This worker's rank, and how many workers there are."""
    import ray.train

    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def report(metrics: dict[str, float], checkpoint_files: Sequence[Path] = ()) -> None:
    """Hand metrics to Ray, and from rank 0 the files to resume from; every worker must call it equally often.

    Args:
        metrics: of this moment.
        checkpoint_files: copied into Ray's storage; those of other ranks are ignored.
    """
    import ray.train

    rank, _ = rank_and_world()
    if rank or not checkpoint_files:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="cellmill-checkpoint-") as folder:
        for path in checkpoint_files:
            shutil.copyfile(path, Path(folder) / path.name)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def take_last_checkpoint(folder: Path) -> None:
    """Copy the files last reported into `folder`, each whole or not at all; nothing where there are none."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.as_directory() as reported:
        for path in sorted(Path(reported).iterdir()):
            if path.name.startswith("."):  # Ray's own notes
                continue
            partial = folder / f"{path.name}.partial"
            shutil.copyfile(path, partial)
            partial.replace(folder / path.name)


def data_parallel(network: "torch.nn.Module") -> "torch.nn.Module":
    """The network with its gradients averaged over workers; as it is where there is one worker."""
    import torch

    if rank_and_world()[1] == 1:
        return network
    wrapped = torch.nn.parallel.DistributedDataParallel(network, forward_sync_buffers=False)
    return cast(torch.nn.Module, wrapped)


def clock_of_first(seconds: float, device: "torch.device | None" = None) -> float:
    """Rank 0's seconds, on every worker.

    Workers that judged a time budget by their own clocks would end, and report, at different steps and wait for each
    other for ever.
    """
    import torch

    if rank_and_world()[1] == 1:
        return seconds
    shared = torch.tensor([seconds], dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared)
