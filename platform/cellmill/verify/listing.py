"""What lies under the root of a cell set, strays and leftovers included: what `ObjectStore`'s own listings pass over.

In: an `ObjectStore`. Out: names and keys. On a local disk symbolic links are told apart, because a cell set has none:
what a link shows is not in the folder that is copied or backed up.
"""

import os
from pathlib import Path
from typing import Any

from cellmill.store.objects import ObjectStore

__all__ = ["keys_below", "symbolic_links", "top_names"]


def top_names(store: ObjectStore) -> list[str]:
    """Names directly under the root, sorted; none where the root is not there."""
    root = _root(store)
    try:
        if store.is_local:
            return sorted(entry.name for entry in Path(root).iterdir())
        found: list[Any] = store.filesystem.ls(root, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted({str(path).rstrip("/").rsplit("/", 1)[-1] for path in found} - {""})


def keys_below(store: ObjectStore, prefix: str) -> list[str]:
    """Keys of everything below a folder, temporary files of killed writers included, sorted."""
    if not store.is_local:
        return store.list_keys(prefix)  # uploads of killed writers are not visible in a bucket
    top = Path(store.path(prefix))
    found = [Path(folder) / name for folder, _, names in os.walk(top) for name in names]
    return sorted(path.relative_to(_root(store)).as_posix() for path in found)


def symbolic_links(store: ObjectStore) -> list[str]:
    """Keys under the root that are symbolic links, on a local disk."""
    if not store.is_local:
        return []
    root = _root(store)
    found = [Path(folder) / name for folder, folders, names in os.walk(root) for name in (*folders, *names)]
    return sorted(path.relative_to(root).as_posix() for path in found if path.is_symlink())


def _root(store: ObjectStore) -> str:
    return store.path("x").removesuffix("/x") or "/"
