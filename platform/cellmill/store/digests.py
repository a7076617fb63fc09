"""The digest of every object of a committed slide, in the form that `sha256sum --check` reads.

In: SHA-256 by key, as a commit gathered them while it read and wrote. Out: `slides/<slide_id>.sha256`, one line an
object, sorted by key, paths relative to the cell set's root; the slide's status holds the SHA-256 of this list. So a
lab can check bytes with what every system has: `cd OUT && sha256sum --check --quiet slides/*.sha256`.
"""

import hashlib
import re
from collections.abc import Mapping

from cellmill.store.layout import digests_key
from cellmill.store.objects import ObjectStore

__all__ = ["parse_digests", "write_digests"]

_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def write_digests(store: ObjectStore, slide_id: str, digests: Mapping[str, str]) -> str:
    """Write the list; returns its own SHA-256, for the status."""
    text = "".join(f"{digests[key]}  {key}\n" for key in sorted(digests)).encode()
    store.put(digests_key(slide_id), text)
    return hashlib.sha256(text).hexdigest()


def parse_digests(data: bytes) -> dict[str, str]:
    """SHA-256 by key.

    Raises:
        ValueError: when a line is not a digest and a key.
    """
    digests: dict[str, str] = {}
    for number, line in enumerate(data.decode("ascii").splitlines(), start=1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} is not 64 hexadecimal digits, two spaces and a key")
        digests[found[2]] = found[1]
    return digests
