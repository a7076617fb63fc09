"""The one door to MLflow: where the store is, and a client without telemetry and without a global state.

Every import of MLflow in cellmill goes through `open_client`, inside a function: it takes seconds. The client is
`MlflowClient` and not the fluent API, whose active run and tracking URI are process-wide and belong to the caller.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["STORE_NAME", "embedded_store", "open_client", "store_folder", "tracking_uri"]

_SQLITE = "sqlite:///"

STORE_NAME = "mlflow.db"
"""File of the embedded store; the same name that MLflow itself looks for in the current folder."""


def embedded_store(folder: Path) -> str:
    """URI of the SQLite store in `folder`."""
    return f"{_SQLITE}{folder.resolve() / STORE_NAME}"


def store_folder(uri: str) -> Path | None:
    """Folder of a SQLite store's file; None for a server."""
    return Path(uri.removeprefix(_SQLITE)).resolve().parent if uri.startswith(_SQLITE) else None


def tracking_uri(folder: Path | None = None) -> str:
    """Where runs and model versions are kept: `MLFLOW_TRACKING_URI`, otherwise a SQLite file in `folder`.

    Args:
        folder: the working folder; the current one when None.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or embedded_store(folder or Path.cwd())


def open_client(uri: str) -> "MlflowClient":
    """A client of the tracking store and model registry at `uri`, with MLflow's telemetry off.

    An embedded store's file and tables are made at the first call that needs them.

    Raises:
        ValueError: when the folder of an embedded store does not exist.
    """
    folder = store_folder(uri)
    if folder is not None and not folder.is_dir():
        raise ValueError(f"The MLflow store {uri} lies in a folder that does not exist; check MLFLOW_TRACKING_URI.")
    # Read by MLflow once, while it is imported: a run on patient data reports its use to nobody.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # MLflow asks an absent server 7 times over some 4 minutes before it says so.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    # A fresh SQLite store tells of each of its some forty migrations.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)
