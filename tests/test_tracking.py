"""Runs in MLflow: what goes in comes out, nothing is pickled, nothing is reported to anyone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cellmill.models.loading import load_model, model_folder
from cellmill.models.mlflow_client import embedded_store, open_client, tracking_uri
from cellmill_training.tracking.revision import git_revision
from cellmill_training.tracking.runs import TrackedRun, flattened, tracked_run


@dataclass(frozen=True)
class _Loop:
    lr: float = 0.1
    steps: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class _Recipe:
    name: str = "tiny"
    loop: _Loop = _Loop()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an embedded store, and no server named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def run(store: Path) -> TrackedRun:
    """A finished run with one of everything."""
    with tracked_run(
        experiment="tests", name="one", config=_Recipe(), data_digests={"refined7": "a" * 64}, folder=store
    ) as opened:
        for step in range(3):
            opened.log_metrics({"loss": 1.0 / (step + 1), "types/cancer cell/f1": 0.5}, step=step)
        opened.log_image(np.full((4, 6, 3), (200, 100, 50), np.uint8), "overlays/a.png")
        opened.log_text("| a |", "tables/types.md")
        with model_folder("lite") as (folder, _):
            opened.log_model(folder)
    return opened


def test_a_run_keeps_config_digests_curves_pictures_and_how_it_ended(run: TrackedRun, store: Path) -> None:
    import cv2

    client = open_client(run.uri)
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["config.loop.lr"] == "0.1"
    assert found.data.params["config.loop.steps"] == "[1, 2]"
    assert found.data.params["data_digest.refined7"] == "a" * 64
    assert [(one.step, one.value) for one in client.get_metric_history(run.run_id, "loss")] == [
        (0, 1.0),
        (1, 0.5),
        (2, 1 / 3),
    ]
    assert found.inputs.dataset_inputs[0].dataset.name == "refined7"
    assert found.data.tags["model_digest"] == load_model("lite").digest
    artifacts = store / "mlartifacts" / run.run_id / "artifacts"
    assert cv2.imread(str(artifacts / "overlays" / "a.png"))[0, 0].tolist() == [50, 100, 200]
    assert (artifacts / "tables" / "types.md").read_text() == "| a |"


def test_a_logged_model_is_a_plain_folder_that_load_model_reads(run: TrackedRun, store: Path) -> None:
    import json

    from mlflow.models.signature import ModelSignature

    folder = store / "mlartifacts" / run.run_id / "artifacts" / "model"
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md"}
    assert load_model(folder).digest == load_model("lite").digest
    signature = ModelSignature.from_dict(json.loads((folder / "signature.json").read_text()))
    assert signature.inputs.inputs[0].shape == (-1, 3, -1, -1)
    assert signature.outputs.inputs[0].shape == (-1, 2 + 1 + 7, -1, -1)


def test_a_folder_with_anything_that_could_run_code_is_refused(run: TrackedRun, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights\.pt"):
        run.log_model(tmp_path)


@pytest.mark.parametrize("path", ["/etc/a.png", "../a.png", "x/../../a.png"])
def test_artifacts_stay_inside_the_run(run: TrackedRun, path: str) -> None:
    with pytest.raises(ValueError, match="stays inside"):
        run.log_image(np.zeros((2, 2, 3), np.uint8), path)


def test_a_run_that_raises_ends_failed_and_can_be_gone_on_with(store: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        tracked_run(experiment="tests", name="two", config={}, data_digests={}, folder=store) as run,
    ):
        raise ZeroDivisionError
    client = open_client(run.uri)
    assert client.get_run(run.run_id).info.status == "FAILED"
    with tracked_run(
        experiment="tests", name="two", config={}, data_digests={}, folder=store, run_id=run.run_id
    ) as again:
        again.log_metrics({"loss": 0.25}, step=7)
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert client.get_metric_history(run.run_id, "loss")[0].step == 7


def test_settings_are_flattened_to_dotted_names() -> None:
    assert flattened(_Recipe()) == {"name": "tiny", "loop.lr": "0.1", "loop.steps": "[1, 2]"}


def test_the_store_is_the_working_folders_unless_a_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == embedded_store(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking_uri(tmp_path) == "http://tracker:5000"


def test_artifacts_lie_beside_the_store_wherever_its_file_is(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", embedded_store(store))
    with tracked_run(experiment="elsewhere", name="one", config={}, data_digests={}, folder=tmp_path) as run:
        run.log_text("1", "a.txt")
    assert (store / "mlartifacts" / run.run_id / "artifacts" / "a.txt").exists()
    assert not list(tmp_path.iterdir())


def test_a_store_in_a_folder_that_is_not_there_is_an_error_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
        open_client(embedded_store(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_the_revision_is_that_of_the_repository_that_tracks_the_file(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("1")

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    assert git_revision(file) == ""  # lies in a repository that does not know it
    git("add", "code.py")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert git_revision(file) == commit
    file.write_text("2")
    assert git_revision(file) == f"{commit}-dirty"


def test_a_client_warns_of_nothing_and_reports_to_nobody() -> None:
    """In a process of its own: under pytest MLflow is silent anyway."""
    code = (
        "from cellmill.models.mlflow_client import open_client, embedded_store; from pathlib import Path;"
        "open_client('http://127.0.0.1:9');"
        "from mlflow.telemetry import get_telemetry_client; assert get_telemetry_client() is None"
    )
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=kept, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
