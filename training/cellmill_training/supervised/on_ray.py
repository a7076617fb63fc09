"""A supervised run on Ray Train, and its record in MLflow: what the jobs put around `fit_network`."""

import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

from cellmill_training.ray_trainer import (
    Device,
    WorkerPlan,
    clock_of_first,
    data_parallel,
    fit,
    rank_and_world,
    report,
    take_last_checkpoint,
    torch_device,
)
from cellmill_training.run import RunPlace
from cellmill_training.supervised.history import followed
from cellmill_training.supervised.run import InWorker
from cellmill_training.tracking.runs import TrackedRun, tracked_run

__all__ = ["fit_tracked", "join_workers"]


@contextmanager
def join_workers(out: str, device: Device) -> Generator[tuple[RunPlace, InWorker]]:
    """What a Ray Train worker needs: a place with the last checkpoint in it, and the way to the others.

    Workers may be on other machines: the checkpoint travels through Ray, all other files are the first worker's.
    """
    rank, _ = rank_and_world()
    chosen = torch_device(device)
    with tempfile.TemporaryDirectory(prefix="cellmill-train-") as own:
        place = RunPlace(Path(out) if rank == 0 else Path(own))
        take_last_checkpoint(place.folder)
        yield (
            place,
            InWorker(
                rank=rank,
                device=chosen,
                wrap=data_parallel,
                agree=lambda seconds: clock_of_first(seconds, chosen),
                report=lambda metrics, checkpoint: report(metrics, [checkpoint]),
            ),
        )


def fit_tracked(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    out: Path,
    plan: WorkerPlan,
    experiment: str,
    name: str,
    about: Mapping[str, object],
    data_digests: Mapping[str, str],
    tracking_folder: Path | None = None,
) -> tuple[RunPlace, TrackedRun]:
    """Train on Ray, following the history into one MLflow run that gets pictures and the model in the end.

    Args:
        worker: what each worker runs.
        config: its plain values.
        out: folder of checkpoints, history, examples and model.
        plan: workers.
        experiment: MLflow experiment.
        name: of the run.
        about: the run's parameters: settings and recipe.
        data_digests: digest of each data set.
        tracking_folder: where the embedded MLflow store is; `out` unless given.
    """
    place = RunPlace(out)
    out.mkdir(parents=True, exist_ok=True)
    with tracked_run(
        experiment=experiment, name=name, config=about, data_digests=data_digests, folder=tracking_folder or out
    ) as run:
        with followed(place.history, run):
            fit(worker, config, out=out, plan=plan, show_workers=False)  # the history tells
        run.log_file(place.history)
        for path in sorted(place.examples.glob("example_*.png")):
            image = cv2.imread(str(path))
            assert image is not None, "this run wrote it"
            run.log_image(image[..., ::-1].astype("uint8"), f"examples/{path.name}")
        run.log_model(place.model)
    return place, run
