"""What a cell set must be after any number of faults: exactly what a quiet run leaves, and nothing besides.

In: where a cell set lies, on a disk or in a bucket, and the objects of a quiet run. Both chaos suites ask here.
"""

import json

from cellmill.store.objects import ObjectStore
from cellmill.verify import verify_cellset

__all__ = ["assert_as_quiet", "assert_visible_is_whole", "lasting_objects"]


def lasting_objects(out: str) -> dict[str, bytes]:
    """Every object of tables and masks by key: what has to be the same in every run, byte for byte."""
    store = ObjectStore(out)
    return store.get_many([key for folder in ("cells", "masks") for key in store.list_keys(folder)])


def assert_visible_is_whole(out: str, quiet: dict[str, bytes]) -> None:
    """At any time, also while a run is under way or just died: tables there are whole, and done slides have all."""
    store = ObjectStore(out)
    for key in store.list_keys("cells"):
        found = store.get_many([key])
        assert found.get(key, quiet[key]) == quiet[key], f"{key} is visible and not whole"
    for key, data in store.get_many([key for key in store.list_keys("slides") if key.endswith(".json")]).items():
        status = json.loads(data)
        if status["outcome"] == "done":
            slide_id = status["slide_id"]
            wanted = {key for key in quiet if key.split("/")[1].split(".")[0] == slide_id}
            found = {key for key in lasting_objects(out) if key.split("/")[1].split(".")[0] == slide_id}
            assert found == wanted, f"{key} says done; missing {sorted(wanted - found)}"


def assert_as_quiet(out: str, quiet: dict[str, bytes]) -> None:
    """After a run: nothing lost, nothing twice, nothing changed, nothing left over."""
    found = lasting_objects(out)
    assert found.keys() == quiet.keys(), sorted(found.keys() ^ quiet.keys())
    changed = [key for key in quiet if found[key] != quiet[key]]
    assert not changed, changed
    findings = verify_cellset(out).findings
    assert not findings, findings
    store = ObjectStore(out)
    left = store.list_keys("_work")
    if store.is_local:
        from pathlib import Path

        left += [str(path) for path in Path(out).rglob("*.tmp")]
    assert not left, left
