"""A small labelled data set for tests of training: made-up tissue, all seven types, exact masks; and killed workers."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellmill.grid import Box
from cellmill.synthetic.cell_types import TYPE_NAMES
from cellmill.synthetic.tissue import render_region
from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.store import LabelledDataset, write_dataset
from cellmill_training.ray_trainer import WorkerPlan, fit
from cellmill_training.supervised import on_ray

FOLDS = ("fold1", "fold2", "fold3")


def labelled_image(number: int, *, side_px: int = 192, types: Sequence[str] = TYPE_NAMES) -> LabelledImage:
    """One region of a slide of its own, at 0.5 um/px; cells of other types than `types` are unknown pixels."""
    corner = 600 + 100 * number
    region = render_region(5_000 + number, Box(corner, corner, corner + side_px, corner + side_px))
    kept = np.isin(np.array(TYPE_NAMES)[region.types], list(types))
    shown = np.concatenate([[False], kept])[region.labels]
    instances, numbers = densely_numbered(np.where(shown, region.labels, 0))
    origin = LabelOrigin("dataset", "synthetic")
    return LabelledImage(
        image_id=f"image{number}",
        source="synthetic",
        tissue="",
        split_group=f"slide{number}",
        fold=FOLDS[number % 3],
        mpp=0.5,
        image=region.image,
        instances=instances,
        labels=tuple(CellLabel((TYPE_NAMES[region.types[label - 1]],), origin) for label in numbers),
        unknown=(region.labels > 0) & ~shown,
    )


def small_dataset(
    folder: Path, *, num_images: int = 4, side_px: int = 192, types: Sequence[str] = TYPE_NAMES
) -> LabelledDataset:
    """A data set whose last image validates and whose others train."""

    def images() -> Iterator[LabelledImage]:
        return (labelled_image(number, side_px=side_px, types=types) for number in range(num_images))

    splits: dict[str, Split] = {f"slide{n}": "train" if n < num_images - 1 else "validation" for n in range(num_images)}
    return write_dataset(folder, images(), ontology=get_ontology("refined7"), splits=splits)


class Killed(BaseException):
    """Stands for kill -9: no clean-up may rely on catching it."""


def fit_killed_once(worker: Callable[[dict[str, Any]], None], config: dict[str, Any], *, out: Path) -> None:
    """Run a job's worker here until `Killed`, then again on a machine that has only what Ray carries there.

    Real workers are killed, and replaced by Ray, in `test_teacher_job.py`. All workers ask Ray by `join_workers`: here
    a folder stands for it, which takes in what is reported and gives it to whoever comes next.
    """
    ray = out / "carried"
    ray.mkdir(parents=True)

    def report(metrics: dict[str, float], files: Sequence[Path]) -> None:
        for path in files:
            shutil.copy(path, ray)

    def take_last_checkpoint(folder: Path) -> None:
        shutil.copytree(ray, folder, dirs_exist_ok=True)

    plan = WorkerPlan(num_workers=0, cpus_per_worker=1, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "report", report)
        patch.setattr(on_ray, "take_last_checkpoint", take_last_checkpoint)
        with pytest.raises(Killed):
            fit(worker, config, out=out, plan=plan)
        assert list(ray.iterdir()), "killed before its first checkpoint"
        for name in {path.name for path in ray.iterdir()}:
            (out / name).unlink()
        fit(worker, config, out=out, plan=plan)
