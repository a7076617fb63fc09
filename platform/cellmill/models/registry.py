"""Model versions in MLflow's registry: which version a `models:/` URI means, and its files.

An alias moves; a version does not. So an alias is turned into its version first, and everything that is recorded
afterwards (a cell set above all) names the version.
"""

import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellmill.models.mlflow_client import STORE_NAME, embedded_store, open_client, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["RegisteredVersion", "RegistryError", "find_version", "is_registry_uri", "version_folder"]

_FORM = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")


class RegistryError(ValueError):
    """The registry cannot be asked, or has no such model, version or alias."""


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model."""

    name: str
    version: str
    source: str
    """Where its files are."""
    run_id: str = ""

    @property
    def uri(self) -> str:
        """What names it for good: `models:/<name>/<version>`."""
        return f"models:/{self.name}/{self.version}"


def is_registry_uri(text: str) -> bool:
    """Whether `text` is meant to be a model of the registry."""
    return text.startswith("models:/")


def find_version(uri: str, *, client: "MlflowClient | None" = None) -> RegisteredVersion:
    """The version that `models:/<name>/<version>` or `models:/<name>@<alias>` means now.

    Args:
        uri: of the registry.
        client: of the store; that of `MLFLOW_TRACKING_URI`, or of the current folder, when None.

    Raises:
        RegistryError: when it is no such URI, the store is not there, or it has no such model, version or alias.
    """
    form = _FORM.fullmatch(uri)
    if form is None:
        raise RegistryError(f"A registered model is models:/<name>/<version> or models:/<name>@<alias>, got {uri!r}.")
    name, version, alias = form["name"], form["version"], form["alias"]
    client = client or _client_of_existing_store(uri)
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, version) if version else client.get_model_version_by_alias(name, alias)
        source = client.get_model_version_download_uri(name, str(found.version))
    except MlflowException as error:
        raise RegistryError(f"{uri!r}: {error.message} {_known(client, name)}") from error
    return RegisteredVersion(str(found.name), str(found.version), str(source), str(found.run_id or ""))


@contextmanager
def version_folder(version: RegisteredVersion) -> Generator[Path]:
    """Folder with the version's files, for as long as the block runs; in place where the store is on this machine.

    Raises:
        RegistryError: when they cannot be fetched.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="cellmill-model-") as folder:
        try:
            if version.source.startswith(("file:", "/")):
                place = mlflow.artifacts.download_artifacts(artifact_uri=version.source)
            else:
                place = mlflow.artifacts.download_artifacts(
                    artifact_uri=version.source, dst_path=folder, tracking_uri=tracking_uri()
                )
        except (MlflowException, OSError) as error:
            raise RegistryError(
                f"The files of {version.uri} at {version.source} cannot be fetched: {error}. Was the artifact folder "
                "moved or deleted?"
            ) from error
        yield Path(place)


def _client_of_existing_store(uri: str) -> "MlflowClient":
    """A client; an embedded store that is not there is not made by looking for a model in it."""
    store = tracking_uri()
    if store == embedded_store(Path.cwd()) and not Path(STORE_NAME).exists():
        raise RegistryError(
            f"{uri!r} is a model of an MLflow registry, but MLFLOW_TRACKING_URI is not set and this folder has no "
            f"{STORE_NAME}. Set the variable to the server or to sqlite:///<path>/{STORE_NAME}, or run in the folder "
            "where promote-model ran."
        )
    return open_client(store)


def _known(client: "MlflowClient", name: str) -> str:
    """What there is instead."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
        aliases = ", ".join(f"{alias} (version {version})" for alias, version in sorted(model.aliases.items()))
        return f"Model {name!r} has the aliases: {aliases or 'none'}."
    except MlflowException:
        pass
    try:
        names = sorted(model.name for model in client.search_registered_models(max_results=20))
    except MlflowException:
        return "Is the MLflow server of MLFLOW_TRACKING_URI up?"
    return f"The registry has the models: {', '.join(names) or 'none'}."
