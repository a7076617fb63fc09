"""QuPath itself, where it is installed: tasks for it, each in a process of its own.

In: what to create, insert or read. Out: the answer of `cellmill.export.qupath_worker`. QuPath is present when
PAQUO_QUPATH_DIR points at an installation.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["QuPathError", "ask_qupath", "qupath_is_present"]

_SHOWN_LINES = 15


class QuPathError(RuntimeError):
    """QuPath could not do what it was asked, with its own last words."""


def qupath_is_present() -> bool:
    """Whether QuPath can be asked.

    Raises:
        ValueError: when PAQUO_QUPATH_DIR is set and cannot be used.
    """
    folder = os.environ.get("PAQUO_QUPATH_DIR")
    if not folder:
        return False
    if not Path(folder).is_dir():
        raise ValueError(f"PAQUO_QUPATH_DIR must name QuPath's folder, and there is none at {folder!r}.")
    if find_spec("paquo") is None:
        raise ValueError("PAQUO_QUPATH_DIR is set, but paquo is not installed; install cellmill[qupath], or unset it.")
    return True


def ask_qupath(task: dict[str, Any]) -> dict[str, Any]:
    """Have a task of `qupath_worker` done.

    Raises:
        QuPathError: when it could not be.
    """
    with tempfile.TemporaryDirectory(prefix="cellmill-qupath-") as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "cellmill.export.qupath_worker"],
            input=json.dumps({**task, "answer": str(answer)}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not answer.is_file():
            last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_SHOWN_LINES:])
            raise QuPathError(
                f"QuPath could not {task['do']} (exit code {done.returncode}):\n{last}\n"
                "More memory for Java: PAQUO_JAVA_OPTS='[\"-Xmx12g\"]'. To do without QuPath: unset PAQUO_QUPATH_DIR."
            )
        return json.loads(answer.read_text(encoding="utf-8"))
