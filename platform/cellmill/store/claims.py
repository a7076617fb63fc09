"""Who works on a slide: one driver at a time.

In: a slide id. Out: a claim, kept alive by a heartbeat, or an error naming the holder. A claim is the highest-numbered
object under `_work/<slide_id>/claims/`. To take a stale one over, a driver creates the next number exclusively, so of
two that want to exactly one wins, and the old holder finds a number above its own.

A holder is gone when its heartbeat is older than `STALE_SECONDS`, or at once when it ran on this machine (same boot,
same process namespace) and its process, known by id and start time, no longer does.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from cellmill.store.errors import ClaimLostError, OutputError, SlideClaimedError
from cellmill.store.layout import claims_prefix
from cellmill.store.objects import ObjectStore

__all__ = ["HEARTBEAT_SECONDS", "STALE_SECONDS", "ClaimBook", "Owner"]

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """A driver process, and one claim of it."""

    host: str
    machine: str
    """Boot and process namespace: within one machine a process id means one process."""
    pid: int
    started_at: float
    """Start of the process; ids are reused."""
    token: str
    heartbeat_at: float
    released: bool = False

    @staticmethod
    def this_process() -> "Owner":
        """This process, with a token of its own."""
        return Owner(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started_at=psutil.Process().create_time(),
            token=secrets.token_hex(16),
            heartbeat_at=time.time(),
        )

    def is_gone(self) -> bool:
        """Whether the claim may be taken over."""
        if self.released or time.time() - self.heartbeat_at > STALE_SECONDS:
            return True
        return self.machine == _machine() and not self._runs_here()

    def is_same_process(self, other: "Owner") -> bool:
        """Whether both are claims of one process."""
        return (self.machine, self.pid) == (other.machine, other.pid) and self._started_at(other.started_at)

    def _started_at(self, moment: float) -> bool:
        # The clock may be stepped between two readings of the start time, which are relative to it.
        return abs(moment - self.started_at) < 5

    def _runs_here(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return self._started_at(process.create_time()) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class ClaimBook:
    """The claims this driver holds, kept alive by one background thread."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._held: dict[str, tuple[str, Owner]] = {}  # slide_id -> (key, owner)
        self._lost: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def claim(self, slide_id: str) -> None:
        """Take the slide.

        Raises:
            SlideClaimedError: when a live driver (this one included) holds it.
        """
        prefix = claims_prefix(slide_id)
        while True:
            names = self._store.list_names(prefix)
            number = int(names[-1].removesuffix(".json")) if names else -1
            if names:
                self._refuse_if_held(slide_id, f"{prefix}/{names[-1]}")
            key = f"{prefix}/{number + 1:06d}.json"
            owner = Owner.this_process()
            if self._create(key, owner):
                break
        with self._lock:
            self._held[slide_id] = (key, owner)
            self._lost.discard(slide_id)
        self._start_heartbeat()
        for name in names:
            self._store.delete(f"{prefix}/{name}")

    def release(self, slide_id: str) -> None:
        """Let the slide go; a no-op when it is not held."""
        with self._lock:
            held = self._held.pop(slide_id, None)
            lost = slide_id in self._lost
            if held is not None and not lost and self._store.exists(held[0]):
                try:
                    self._store.put(held[0], _encode(replace(held[1], released=True)))
                except OutputError:
                    self._store.delete(held[0])  # a full disk still lets go

    def drop(self, slide_id: str) -> None:
        """Stop the heartbeat and remove the slide's claims: its last trace in the work folder."""
        with self._lock:
            self._held.pop(slide_id, None)
            self._store.delete_tree(claims_prefix(slide_id))

    def check(self, slide_id: str) -> None:
        """Make sure the slide is still held; call before what must not be done twice at once.

        Raises:
            ClaimLostError: when another driver took it over.
        """
        with self._lock:
            held = self._held.get(slide_id)
        if held is None or not self._is_latest(slide_id, *held):
            raise ClaimLostError(
                f"This driver no longer holds slide {slide_id} on {self._store.url}: another took it over after "
                f"{STALE_SECONDS:.0f} s without heartbeat. Leave it to that driver."
            )

    def close(self) -> None:
        """Release everything and end the heartbeat."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for slide_id in list(self._held):
            self.release(slide_id)

    def _is_latest(self, slide_id: str, key: str, owner: Owner) -> bool:
        names = self._store.list_names(claims_prefix(slide_id))
        if not names or not key.endswith("/" + names[-1]):
            return False
        # Some object stores ignore "only if there is none": then the last writer holds the slide, and the token tells.
        data = self._store.get_many([key]).get(key)
        return data is not None and json.loads(data)["token"] == owner.token

    def _create(self, key: str, owner: Owner) -> bool:
        data = _encode(owner)
        if self._store.create(key, data):
            return True
        # A client that repeats a put whose answer got lost is told that the object exists: it is our own.
        return self._store.get_many([key]).get(key) == data

    def _refuse_if_held(self, slide_id: str, key: str) -> None:
        data = self._store.get_many([key]).get(key)
        if data is None:
            return  # removed since it was listed
        owner = Owner(**json.loads(data))
        if not owner.is_gone():
            raise SlideClaimedError(
                f"Slide {slide_id} on {self._store.url} is being worked on by process {owner.pid} on {owner.host} "
                f"(last heartbeat {max(0.0, time.time() - owner.heartbeat_at):.0f} s ago). Let that run finish or stop "
                f"it; a stopped run on another machine frees the slide after {STALE_SECONDS:.0f} s."
            )

    def _start_heartbeat(self) -> None:
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._beat, name="cellmill-claims", daemon=True)
            self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            for slide_id in list(self._held):
                try:
                    self._beat_once(slide_id)
                except OutputError as error:
                    _logger.warning("Heartbeat for slide %s failed, will try again: %s", slide_id, error)

    def _beat_once(self, slide_id: str) -> None:
        with self._lock:  # not between a release and its last write
            if slide_id not in self._held or slide_id in self._lost:
                return
            key, owner = self._held[slide_id]
            if not self._is_latest(slide_id, key, owner):
                self._lost.add(slide_id)
                _logger.warning("Slide %s was taken over by another driver.", slide_id)
                return
            owner = replace(owner, heartbeat_at=time.time())
            self._store.put(key, _encode(owner))
            self._held[slide_id] = (key, owner)


def _encode(owner: Owner) -> bytes:
    return json.dumps(asdict(owner), indent=2).encode()


def _machine() -> str:
    """Identity of the boot and process namespace, as far as the system tells it."""
    parts = [socket.gethostname()]
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    parts.append(boot_id.read_text(encoding="ascii").strip() if boot_id.exists() else f"{psutil.boot_time():.0f}")
    namespace = Path("/proc/self/ns/pid")
    if namespace.is_symlink():
        parts.append(str(namespace.readlink()))  # containers share boot and perhaps name, not process ids
    return " ".join(parts)
