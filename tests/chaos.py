"""A cohort run under fire: by seed, drivers die between any two writes, disks fill, readers are killed.

In: a seed and a number of faults. Out: a cell set that must be, byte for byte, what a quiet run leaves. A driver that
dies here dies in this process, in the serial engine: from that moment on not one of its writes happens, its clean-up's
included, as after a kill -9. `chaos_ray.py` kills real processes on a Ray cluster; `make chaos` runs both long.
"""

import argparse
import errno
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
from chaos_checks import assert_as_quiet, assert_visible_is_whole, lasting_objects
from cohort_helpers import run
from oracle import OracleModel, make_slide

from cellmill.slides import isolation
from cellmill.store import claims, objects
from cellmill.store.objects import ObjectStore

FAULTS = ("driver dies before a write", "driver dies after a write", "disk full", "reader killed")
FIELD_PX = 256
NAMES = ("a", "b", "c")


class Killed(BaseException):
    """Stands for kill -9: no clean-up may rely on catching it."""


@dataclass
class Fire:
    """What will go wrong, and what has."""

    rng: random.Random
    happened: Counter[str] = field(default_factory=Counter)
    kind: str = ""
    left: int = 0
    """Changes to storage, or questions to a reader, until it happens."""
    is_dead: bool = False

    def load(self) -> None:
        """The next fault, somewhere in the next run."""
        self.kind = self.rng.choice(FAULTS)
        self.left = self.rng.randrange(12 if self.kind == "reader killed" else 70)
        self.is_dead = False

    def strikes(self, *kinds: str) -> bool:
        """Whether the loaded fault happens now."""
        if self.kind not in kinds:
            return False
        self.left -= 1
        if self.left >= 0:
            return False
        self.happened[self.kind] += 1
        self.kind = ""
        return True

    def change(self, act: Callable[[], Any]) -> Any:
        """A change to storage."""
        if self.is_dead:
            raise Killed
        if self.strikes("driver dies before a write"):
            self.is_dead = True
            raise Killed
        result = act()
        if self.strikes("driver dies after a write"):
            self.is_dead = True
            raise Killed
        return result


@contextmanager
def under(fire: Fire) -> Generator[None]:
    """Have storage and readers fail as `fire` says."""
    put, create, delete, publishing = (getattr(ObjectStore, name) for name in ("put", "create", "delete", "publishing"))
    fsync, ask = objects.os.fsync, isolation._ReaderProcess.ask

    @contextmanager
    def published(store: ObjectStore, key: str) -> Generator[IO[bytes]]:
        with publishing(store, key) as file:
            yield file
            if fire.is_dead or fire.strikes("driver dies before a write"):
                fire.is_dead = True
                raise Killed
        if fire.strikes("driver dies after a write"):
            fire.is_dead = True
            raise Killed

    def synced(descriptor: int) -> None:
        if fire.strikes("disk full"):
            raise OSError(errno.ENOSPC, "No space left on device")

    def asked(process: Any, message: dict[str, Any], **options: Any) -> dict[str, Any]:
        if fire.strikes("reader killed"):
            process._child.kill()
        return ask(process, message, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectStore, "put", lambda s, k, d: fire.change(lambda: put(s, k, d)))
        patch.setattr(ObjectStore, "create", lambda s, k, d: fire.change(lambda: create(s, k, d)))
        patch.setattr(ObjectStore, "delete", lambda s, k: fire.change(lambda: delete(s, k)))
        patch.setattr(ObjectStore, "publishing", published)
        patch.setattr(objects.os, "fsync", synced)
        patch.setattr(isolation._ReaderProcess, "ask", asked)
        patch.setattr(claims.Owner, "_runs_here", lambda _: False)  # the process of a driver that died is gone
        patch.setattr(claims, "HEARTBEAT_SECONDS", 1e6)
        yield
    objects.os.fsync = fsync


def chaos(folder: Path, *, seed: int, num_faults: int) -> Counter[str]:
    """Run a small cohort again and again until so many faults have happened, then let it finish.

    Every time it finishes in between, it is begun anew. Returns how often each fault happened.

    Raises:
        AssertionError: when anything a reader can see is not what a quiet run leaves.
    """
    slides = folder / "slides"
    for number, name in enumerate(NAMES):
        make_slide(slides / f"{name}.tif", seed=number, width=500, height=300)
    model = OracleModel(slides)
    settings = {"field_px": FIELD_PX, "max_attempts": 1_000_000}
    assert run(slides, folder / "quiet", model, **settings).all_done
    quiet = lasting_objects(str(folder / "quiet"))
    fire = Fire(random.Random(seed))
    out, number = folder / "out-0", 0
    while fire.happened.total() < num_faults:
        fire.load()
        with under(fire):
            try:
                whole = run(slides, out, model, **settings).all_done
            except (Killed, objects.OutputError):
                whole = False
        assert_visible_is_whole(str(out), quiet)
        if whole:
            # What a full disk kept from being tidied up (the table of slides, a work folder) the same command does.
            assert run(slides, out, model, **settings).all_done
            assert_as_quiet(str(out), quiet)
            number += 1
            out = folder / f"out-{number}"
    with under(Fire(random.Random(0))):
        assert run(slides, out, model, **settings).all_done
    assert_as_quiet(str(out), quiet)
    return fire.happened


def main() -> int:
    """Run long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="faults to inject")
    parser.add_argument("--seed", type=int, default=0, help="which faults, and where")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what goes wrong is meant to
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        happened = chaos(Path(folder), seed=arguments.seed, num_faults=arguments.faults)
    sys.stdout.write(f"{happened.total()} faults, tables and masks as in a quiet run: {dict(happened)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
