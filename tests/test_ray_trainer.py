"""The Ray Train shell: what comes out of it when workers fail."""

from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

from cellmill_training.loop import LossIsNotFiniteError
from cellmill_training.ray_trainer import WorkerPlan, fit


def nothing(_: dict[str, Any]) -> None:
    """A worker."""


def failing_with(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: TorchTrainer) -> None:
        raise ray.train.WorkerGroupError("worker 0 failed", {0: failure})

    monkeypatch.setattr(TorchTrainer, "fit", fail)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_what_a_worker_raised_comes_out_as_it_raised_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(LossIsNotFiniteError("Lower --learning-rate"), monkeypatch)
    with pytest.raises(LossIsNotFiniteError, match="Lower --learning-rate") as raised:
        fit(nothing, {}, out=tmp_path, plan=WorkerPlan(num_workers=0, device="cpu"))
    assert isinstance(raised.value.__cause__, ray.train.WorkerGroupError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_worker_that_died_is_told_of_by_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(ray.exceptions.WorkerCrashedError(), monkeypatch)
    with pytest.raises(ray.train.WorkerGroupError):
        fit(nothing, {}, out=tmp_path, plan=WorkerPlan(num_workers=0, device="cpu"))
