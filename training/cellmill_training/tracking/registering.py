"""The registry's side of a promotion: who the champion is, a new version from a plain folder, the alias.

`mlflow.register_model` wants MLflow's own model format; a folder of safetensors becomes a version by
`MlflowClient.create_model_version` (seen in MLflow 3.17).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cellmill.models.registry import RegisteredVersion, RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from cellmill_training.tracking.runs import TrackedRun

__all__ = ["champion_of", "describe_version", "move_alias", "register_version"]


def champion_of(client: "MlflowClient", name: str, alias: str) -> RegisteredVersion | None:
    """The version that has the alias; None where the model or the alias does not exist yet.

    Raises:
        RegistryError: when the registry cannot be asked.
    """
    from mlflow.exceptions import MlflowException

    try:
        aliases = dict(client.get_registered_model(name).aliases)
        if alias not in aliases:
            return None
        found = client.get_model_version(name, aliases[alias])
        source = client.get_model_version_download_uri(name, str(found.version))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise RegistryError(
            f"The MLflow registry cannot be asked for {name}@{alias}: {error.message} Check MLFLOW_TRACKING_URI."
        ) from error
    return RegisteredVersion(str(found.name), str(found.version), str(source), str(found.run_id or ""))


def describe_version(
    client: "MlflowClient", version: RegisteredVersion, *, tags: Mapping[str, str], description: str
) -> None:
    """Write on a version that is registered already how it came about."""
    for tag, value in tags.items():
        client.set_model_version_tag(version.name, version.version, tag, value)
    client.update_model_version(version.name, version.version, description)


def register_version(
    client: "MlflowClient", name: str, run: "TrackedRun", *, tags: Mapping[str, str], description: str
) -> RegisteredVersion:
    """Make the model that `run` has logged a new version of `name`, with tags that say how it came about."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise RegistryError(f"The MLflow registry takes no model {name!r}: {error.message}") from error
    made = client.create_model_version(name, run.model_uri, run_id=run.run_id, tags=dict(tags), description=description)
    return RegisteredVersion(name, str(made.version), run.model_uri, run.run_id)


def move_alias(client: "MlflowClient", version: RegisteredVersion, alias: str) -> None:
    """Let the alias mean this version from now on.

    Raises:
        RegistryError: when the registry does not take the alias.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(version.name, alias, version.version)
    except MlflowException as error:
        raise RegistryError(f"The registry did not give {version.uri} the alias {alias!r}: {error.message}") from error
