"""Bytes of an object that carries its own seal.

In: its key. Out: the bytes, counted, and whether the seal holds; a finding where it does not. What to do with damaged
bytes is for the caller: a status is still read as far as it can be, a table is not.
"""

from cellmill.store.objects import ObjectStore
from cellmill.store.seal import is_sealed
from cellmill.verify.findings import Findings

__all__ = ["read_sealed"]


def read_sealed(store: ObjectStore, key: str, findings: Findings, *, slide_id: str = "") -> tuple[bytes, bool]:
    """The object's bytes, and whether they are those that were sealed.

    Args:
        store: the cell set's storage.
        key: of the object.
        findings: takes the count, and the damage.
        slide_id: the slide that the object is of, if any.

    Raises:
        FileNotFoundError: when it is not there.
    """
    data = store.get(key)
    findings.count(objects=1, num_bytes=len(data))
    is_intact = is_sealed(data)
    if not is_intact:
        findings.add("damaged", key, "its bytes are not those that were sealed", slide_id=slide_id)
    return data, is_intact
