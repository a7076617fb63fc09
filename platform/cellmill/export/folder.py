"""A folder that appears whole: made beside its place, then renamed. What is there already is left alone unless it is
an export that nobody touched.

In: the place of an export. Out: a staging folder to write to, and on success the folder under its name with a record of
every file. The record is how a later `--replace` knows that it removes an export and nothing else.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["RECORD_NAME", "check_target", "publishing_folder", "read_record", "write_record"]

RECORD_NAME = "cellmill_export.json"
_STAGING_SUFFIX = ".cellmill-tmp"
_SHOWN = 5


def check_target(target: Path, *, replace: bool) -> None:
    """Make sure that an export may take this place.

    Raises:
        ValueError: when something is there that is no export, or has been worked on since, or may not be replaced.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(f"--project must name a folder, and {target} is none; choose another place.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / RECORD_NAME).is_file():
        raise ValueError(
            f"{target} holds things that no export wrote, and is left as it is; choose a new or empty folder."
        )
    if not replace:
        raise ValueError(f"{target} holds an export already; give --replace to make it again, or choose another place.")
    foreign = _not_as_written(target)
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise ValueError(
            f"{target} has been worked on since it was exported ({', '.join(foreign[:_SHOWN])}{more}), and --replace "
            "would lose that. Bring corrections back first, then move or delete the folder yourself, or choose another."
        )


@contextmanager
def publishing_folder(target: Path, *, replace: bool = False) -> Generator[Path]:
    """A folder to write to that becomes `target` when the block ends well, and is removed when it does not.

    Raises:
        ValueError: as `check_target`.
    """
    check_target(target, replace=replace)
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f"{target.name}.{secrets.token_hex(4)}{_STAGING_SUFFIX}")
    staging.mkdir()
    try:
        yield staging
        check_target(target, replace=replace)  # the export may have taken long
        _move_into_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_record(folder: Path, document: Mapping[str, Any]) -> None:
    """Write the record of an export: `document`, and the digest of every file in the folder. Comes last."""
    digests = {name: _sha256(folder / name) for name in _files(folder) if name != RECORD_NAME}
    text = json.dumps({**document, "files": digests}, indent=1, ensure_ascii=False)
    (folder / RECORD_NAME).write_text(text, encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an export.

    Raises:
        ValueError: when the folder is no export.
    """
    try:
        document = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no export of cellmill: {RECORD_NAME} cannot be read ({error}).") from error
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        raise ValueError(f"{folder / RECORD_NAME} is no record of an export: it lists no files.")
    return document


def _not_as_written(folder: Path) -> list[str]:
    """Files that the export did not write, or that changed since; without those that are only gone."""
    digests: dict[str, str] = read_record(folder)["files"]
    return [name for name in _files(folder) if name != RECORD_NAME and digests.get(name) != _sha256(folder / name)]


def _move_into_place(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = target.with_name(f"{target.name}.{secrets.token_hex(4)}.old{_STAGING_SUFFIX}")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _files(folder: Path) -> list[str]:
    """All files, and links to folders, which are somebody's too."""
    found = [
        path
        for top, folders, names in os.walk(folder)
        for path in (*(Path(top) / name for name in names), *(Path(top) / name for name in folders))
        if path.is_symlink() or not path.is_dir()
    ]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _sha256(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
