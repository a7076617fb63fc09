"""What a verification found, and what it looked at."""

import threading
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "FindingKind", "Findings", "VerifyReport"]

FindingKind = Literal["missing", "damaged", "contradiction", "unfinished", "stray"]
"""missing: an object is not there. damaged: its bytes are not those that were committed. contradiction: the bytes are,
but say something that cannot be, or that another object denies. unfinished: a slide that a run began and did not end.
stray: something that does not belong in a cell set."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: FindingKind
    where: str
    """Key of the object, relative to the cell set's root."""
    says: str
    """What is wrong, for people."""
    slide_id: str = ""


@dataclass
class Findings:
    """Collects findings and counts, from any thread."""

    found: list[Finding] = field(default_factory=list[Finding])
    num_objects: int = 0
    num_bytes: int = 0
    num_cells: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: FindingKind, where: str, says: str, *, slide_id: str = "") -> None:
        """Write down something wrong."""
        with self._lock:
            self.found.append(Finding(kind, where, says, slide_id))

    def count(self, *, objects: int = 0, num_bytes: int = 0, cells: int = 0) -> None:
        """Write down what was looked at."""
        with self._lock:
            self.num_objects += objects
            self.num_bytes += num_bytes
            self.num_cells += cells


@dataclass(frozen=True)
class VerifyReport:
    """How a cell set stands."""

    url: str
    findings: tuple[Finding, ...]
    """By object."""
    num_slides_by_outcome: dict[str, int]
    num_objects: int
    """Objects whose bytes were checked."""
    num_bytes: int
    num_cells: int
    """Rows whose content was checked; 0 where only bytes were."""
    seconds: float

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def mb_per_second(self) -> float:
        """Bytes checked a second, in 1e6."""
        return self.num_bytes / 1e6 / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"is_whole": self.is_whole, "mb_per_second": round(self.mb_per_second, 1), **asdict(self)}
