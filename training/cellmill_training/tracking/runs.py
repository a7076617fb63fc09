"""One run in MLflow as a context manager: config and data digests first, figures on the way, the model at the end.

    with tracked_run(experiment="student", name="t14", config=recipe, data_digests=digests, folder=out) as run:
        run.log_metrics({"loss": 0.3}, step=100)
        run.log_model(out / "model")

The store is a server where `MLFLOW_TRACKING_URI` names one, otherwise `<folder>/mlflow.db` with artifacts in
`<folder>/mlartifacts`. Models are logged as the plain folder that `load_model` reads, so nothing is ever pickled. In a
run of several workers, only the first opens it.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from cellmill.models.mlflow_client import embedded_store, open_client, store_folder, tracking_uri
from cellmill_training.tracking.revision import git_revision

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from cellmill.models.config import ModelConfig

__all__ = ["ARTIFACTS_NAME", "MODEL_FOLDER", "SIGNATURE_FILE", "TrackedRun", "flattened", "tracked_run"]

ARTIFACTS_NAME = "mlartifacts"
"""Folder of artifacts beside a store that is an SQLite file; a server has a place of its own."""
MODEL_FOLDER = "model"
"""Where a run keeps its model folder."""
SIGNATURE_FILE = "signature.json"
"""What the network takes and gives, in the form of an MLflow signature, inside the model folder."""

_MODEL_SUFFIXES = (".json", ".safetensors", ".md")
# Limits of MLflow's stores on one request and one value.
_PARAMS_A_REQUEST, _METRICS_A_REQUEST, _PARAM_CHARACTERS, _DIGEST_CHARACTERS = 100, 1000, 6000, 36


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """An open run; what it is told is written at once."""

    run_id: str
    uri: str
    """Of the store that holds it."""
    artifact_uri: str
    """Where its artifacts are."""
    _client: "MlflowClient"

    @property
    def model_uri(self) -> str:
        """Where `log_model` puts the model; the source of a registered version."""
        return f"{self.artifact_uri.rstrip('/')}/{MODEL_FOLDER}"

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Add figures; figures of one name and several steps make a curve.

        Args:
            metrics: by name; letters, digits, spaces and `_ - . : /` only.
            step: of training, or the epoch; 0 for a figure that is no curve.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        for part in _parts(entries, _METRICS_A_REQUEST):
            self._client.log_batch(self.run_id, metrics=part)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Add settings that were not known at the start; nested ones get dotted names."""
        from mlflow.entities import Param

        entries = [Param(name, value[:_PARAM_CHARACTERS]) for name, value in flattened(params).items()]
        for part in _parts(entries, _PARAMS_A_REQUEST):
            self._client.log_batch(self.run_id, params=part)

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self._client.set_tag(self.run_id, name, value)

    def log_text(self, text: str, path: str) -> None:
        """Keep `text` as the artifact `path`, such as `tables/types.md`."""
        self._log_bytes(text.encode("utf-8"), path)

    def log_image(self, image: npt.NDArray[np.uint8], path: str) -> None:
        """Keep an image (H, W, 3) uint8 RGB as the artifact `path`, which ends in `.png`.

        Raises:
            ValueError: when it is no such image or the path no such name.
        """
        import cv2

        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not path.endswith(".png"):
            raise ValueError(
                "log_image takes (H, W, 3) uint8 RGB and a path that ends in .png, got "
                f"{image.shape} {image.dtype} and {path!r}."
            )
        self._log_bytes(cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes(), path)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file, under its own name, in the artifact folder `folder`."""
        self._client.log_artifact(self.run_id, str(path), _inside(folder) if folder else None)

    def log_model(self, folder: Path) -> None:
        """Keep a model folder as the artifact `model`, with its signature and its digest as the tag `model_digest`.

        Raises:
            ValueError: when the folder is no model, or holds anything but JSON, safetensors and Markdown.
        """
        from cellmill.models.loading import load_model

        strange = sorted(
            path.name for path in folder.iterdir() if path.is_file() and path.suffix not in _MODEL_SUFFIXES
        )
        if strange:
            raise ValueError(
                f"A model folder holds {', '.join(_MODEL_SUFFIXES)} files only, because nothing in it may run code "
                f"when it is loaded; {folder} has {', '.join(strange)}. Save it with save_model into a fresh folder."
            )
        model = load_model(folder.resolve())
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name != SIGNATURE_FILE:
                self.log_file(path, MODEL_FOLDER)
        self.log_text(json.dumps(_signature(model.config), indent=2), f"{MODEL_FOLDER}/{SIGNATURE_FILE}")
        self.set_tag("model_digest", model.digest)
        self.set_tag("model_name", model.config.name)

    def _log_bytes(self, content: bytes, path: str) -> None:
        place = PurePosixPath(_inside(path))
        with tempfile.TemporaryDirectory(prefix="cellmill-artifact-") as folder:
            file = Path(folder) / place.name
            file.write_bytes(content)
            parent = str(place.parent)
            self._client.log_artifact(self.run_id, str(file), None if parent == "." else parent)


@contextmanager
def tracked_run(
    *,
    experiment: str,
    name: str,
    config: object,
    data_digests: Mapping[str, str],
    folder: Path,
    run_id: str | None = None,
) -> Generator[TrackedRun]:
    """Open a run; it ends FINISHED, FAILED when the block raises, or KILLED when it is interrupted.

    Args:
        experiment: of runs that are compared with each other; made when it is new.
        name: of this run.
        config: a dataclass or mapping; logged as parameters with dotted names, and whole as `config.json`.
        data_digests: digest of each data set by its name; what the figures hold for.
        folder: the working folder, where the embedded store is made when no server is named.
        run_id: a run of this store to go on with, after a resume; config and digests are then as they were.
    """
    uri = tracking_uri(folder)
    if uri == embedded_store(folder):
        folder.mkdir(parents=True, exist_ok=True)
    place = store_folder(uri)
    client = open_client(uri)
    if run_id is None:
        experiment_id = _experiment_id(client, experiment, place / ARTIFACTS_NAME if place else None)
        opened = client.create_run(experiment_id, run_name=name, tags=_tags())
        run = TrackedRun(str(opened.info.run_id), uri, str(opened.info.artifact_uri), client)
        _describe(run, client, config, data_digests)
    else:
        client.update_run(run_id, status="RUNNING")
        run = TrackedRun(run_id, uri, str(client.get_run(run_id).info.artifact_uri), client)
    try:
        yield run
    except (KeyboardInterrupt, SystemExit):
        client.set_terminated(run.run_id, "KILLED")
        raise
    except BaseException:
        client.set_terminated(run.run_id, "FAILED")
        raise
    client.set_terminated(run.run_id, "FINISHED")


def flattened(config: object, prefix: str = "") -> dict[str, str]:
    """A dataclass or mapping as dotted names and texts; sequences become JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        flat: dict[str, str] = {}
        for key, value in cast("Mapping[str, object]", config).items():
            flat |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
        return flat
    text = json.dumps(config, default=_plain) if isinstance(config, (list, tuple)) else str(config)
    return {prefix or "value": text}


def _describe(run: TrackedRun, client: "MlflowClient", config: object, data_digests: Mapping[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput

    run.log_params({"config": config, "data_digest": dict(data_digests)} if data_digests else {"config": config})
    run.log_text(json.dumps(config, default=_plain, indent=2), "config.json")
    inputs = [
        DatasetInput(Dataset(name=name, digest=digest[:_DIGEST_CHARACTERS], source_type="cellmill", source=name))
        for name, digest in data_digests.items()
    ]
    if inputs:
        client.log_inputs(run.run_id, inputs)


def _tags() -> dict[str, str]:
    from cellmill import __version__

    revision = git_revision()
    tags = {"cellmill_version": __version__}
    # MLflow's own name, which its pages show as the run's version.
    return {**tags, "mlflow.source.git.commit": revision} if revision else tags


def _experiment_id(client: "MlflowClient", name: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifacts.resolve().as_uri() if artifacts else None))
        except MlflowException:
            # Another process made it in between; anything else is raised by the second look or is None again.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise ValueError(f"Experiment {name!r} was deleted in MLflow; restore it there or give another name.")
    return str(found.experiment_id)


def _signature(config: "ModelConfig") -> dict[str, str]:
    """MLflow's form of a signature: two JSON texts of named tensors."""

    def tensor(name: str, channels: int) -> dict[str, Any]:
        spec = {"dtype": "float32", "shape": [-1, channels, -1, -1]}
        return {"name": name, "type": "tensor", "tensor-spec": spec}

    return {
        "inputs": json.dumps([tensor("rgb_0_255", 3)]),
        "outputs": json.dumps([tensor("maps", config.num_outputs)]),
    }


def _inside(path: str) -> str:
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or not place.parts:
        raise ValueError(f"An artifact's path is relative and stays inside the run, got {path!r}.")
    return str(place)


def _parts(entries: "Sequence[Any]", size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def _plain(value: object) -> object:
    """What JSON has no form for."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    return str(value)
