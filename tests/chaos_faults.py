"""Faults inside a run's own processes, at the place where they hurt: in Ray's workers, commits and the driver.

The chaos runner arms a fuse: a file named after its kind in a folder that all processes see. The first process that
comes to a place of that kind takes it (a rename: exactly one succeeds), passes as often as the fuse says, and then
strikes: the process ends by SIGKILL there, or is told that the disk is full, or its slide reader ends or stands still.
`bring_along` has every process that works under a run's context install these places when the context arrives.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["DRIVER_FUSES", "HURRY", "WORKER_FUSES", "Fuses", "bring_along", "install"]

WORKER_FUSES = (
    "planner killed",
    "worker killed reading",
    "worker killed segmenting",
    "worker killed before its write",
    "worker killed after its write",
    "commit killed",
    "disk full (told)",
    "reader killed",
    "reader stands still",
)
HURRY = ".hurry"
"""A file among the fuses: from now on tiles take no time."""
DRIVER_FUSES = ("driver killed before its write", "driver killed after its write")


class Fuses:
    """The folder of fuses, as one process sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: dict[str, int] = {}  # kind -> passes left

    def arm(self, kind: str, *, passes: int = 0) -> None:
        """Have the first process that comes to such a place strike after so many passes."""
        hidden = self.folder / f".{kind}"
        hidden.write_text(str(passes), encoding="utf-8")
        hidden.replace(self.folder / kind)

    def disarm(self, kind: str) -> bool:
        """Take a fuse back that nobody took; whether one was there."""
        try:
            (self.folder / kind).unlink()
        except FileNotFoundError:
            return False
        return True

    def struck(self) -> list[str]:
        """Kinds that have struck, one entry a time."""
        return [path.name.rsplit("#", 1)[0] for path in self.folder.glob("*#*")]

    def strikes(self, kind: str) -> bool:
        """Whether a fuse of this kind strikes here and now."""
        if kind not in self._taken:
            mine = self.folder / f".taken-{kind}-{os.getpid()}"
            try:
                (self.folder / kind).rename(mine)
            except FileNotFoundError:
                return False
            self._taken[kind] = int(mine.read_text(encoding="utf-8"))
        if self._taken[kind] > 0:
            self._taken[kind] -= 1
            return False
        del self._taken[kind]
        number = len(list(self.folder.glob("*#*")))
        (self.folder / f"{kind}#{number}-{os.getpid()}").touch()
        return True

    def kill_if(self, kind: str) -> None:
        """End this process if a fuse says so."""
        if self.strikes(kind):
            os.kill(os.getpid(), signal.SIGKILL)


def bring_along(fuses: Path) -> None:
    """Have every process that unpickles a run's context install the fuses first."""
    from cellmill.cohort.context import RunContext

    def reduced(context: RunContext) -> tuple[Callable[..., RunContext], tuple[str, dict[str, Any]]]:
        return _arrive, (str(fuses), dict(vars(context)))

    RunContext.__reduce__ = reduced  # type: ignore[method-assign,assignment]


def _arrive(fuses: str, state: dict[str, Any]) -> Any:
    from cellmill.cohort.context import RunContext

    install(Path(fuses), before_write="worker killed before its write", after_write="worker killed after its write")
    context = object.__new__(RunContext)
    vars(context).update(state)
    return context


_is_installed = False


def install(folder: Path, *, before_write: str, after_write: str) -> None:
    """Lay the places of this process; once."""
    global _is_installed  # noqa: PLW0603 - one process, one set of places
    if _is_installed:
        return
    _is_installed = True
    fuses = Fuses(folder)
    _in_writes(fuses, before_write, after_write)
    if "worker" in before_write:
        _in_stages(fuses)
        _in_readers(fuses)


def _in_writes(fuses: Fuses, before: str, after: str) -> None:
    from cellmill.store import objects
    from cellmill.store.objects import ObjectStore

    temporary, remote_put = objects._local_temporary, ObjectStore.put

    def happening(act: Callable[[], Any]) -> Any:
        """A change to storage: bytes are on their way, and not visible yet."""
        fuses.kill_if(before)
        if _committing:
            fuses.kill_if("commit killed")
        if fuses.strikes("disk full (told)"):
            raise OSError(errno.ENOSPC, "No space left on device")
        result = act()
        fuses.kill_if(after)
        return result

    @contextmanager
    def on_disk(target: Path, *, finish: Callable[[Path, Path], object]) -> Generator[IO[bytes]]:
        with temporary(target, finish=lambda made, name: happening(lambda: finish(made, name))) as file:
            yield file

    def put(store: ObjectStore, key: str, data: bytes) -> None:
        if store.is_local:
            remote_put(store, key, data)
        else:
            happening(lambda: remote_put(store, key, data))

    objects._local_temporary = on_disk
    ObjectStore.put = put  # type: ignore[method-assign]


_committing = False


def _in_stages(fuses: Fuses) -> None:
    from cellmill.cohort import committing, planning, segmenting

    plan, predict, write, commit = (
        planning.plan_slide,
        segmenting.predict_field,
        segmenting.write_part,
        committing.commit_slide,
    )

    def planned(*arguments: Any, **options: Any) -> Any:
        result = plan(*arguments, **options)
        fuses.kill_if("planner killed")
        return result

    def predicted(task: Any, *arguments: Any, **options: Any) -> Any:
        if task.facts.slide_id.startswith("kills_its_worker"):
            os.kill(os.getpid(), signal.SIGKILL)
        result = predict(task, *arguments, **options)
        fuses.kill_if("worker killed segmenting")
        return result

    def written(*arguments: Any, **options: Any) -> Any:
        import ray

        summary = write(*arguments, **options)
        if ray.is_initialized():
            with (fuses.folder / ".fields").open("a", encoding="utf-8") as file:
                context = ray.get_runtime_context()
                gpus = context.get_assigned_resources().get("GPU", 0.0)
                file.write(f"{context.get_node_id()} {os.getpid()} {gpus}\n")
        return summary

    def committed(*arguments: Any, **options: Any) -> Any:
        global _committing  # noqa: PLW0603 - a commit has its process to itself
        _committing = True
        try:
            return commit(*arguments, **options)
        finally:
            _committing = False

    planning.plan_slide = planned
    segmenting.predict_field = predicted
    segmenting.write_part = written
    committing.commit_slide = committed


def _in_readers(fuses: Fuses) -> None:
    from cellmill.slides import isolation

    ask = isolation._ReaderProcess.ask

    def asked(process: Any, message: dict[str, Any], **options: Any) -> dict[str, Any]:
        if message["do"] == "read":
            fuses.kill_if("worker killed reading")
            if fuses.strikes("reader killed"):
                process._child.kill()
            if fuses.strikes("reader stands still"):
                process._child.send_signal(signal.SIGSTOP)
        return ask(process, message, **options)

    isolation._ReaderProcess.ask = asked  # type: ignore[method-assign]


def run_driver() -> int:
    """The driver of one run, as `chaos_ray` starts it: fuses, slides, out, settings, report."""
    import json
    import resource

    from cohort_helpers import run
    from oracle import OracleModel

    from cellmill.cohort.pipeline import ray_engine

    fuses, slides, out, settings, report = sys.argv[1:6]
    bring_along(Path(fuses))
    before, after = DRIVER_FUSES
    install(Path(fuses), before_write=before, after_write=after)
    options = json.loads(settings)
    truths, slow = Path(options.pop("truths")), options.pop("seconds_per_tile")
    model = OracleModel(truths, seconds_per_tile=slow, hurry=Path(fuses) / HURRY)
    ended = run([slides], out, model, engine=ray_engine, **options)
    told = {
        "all_done": ended.all_done,
        "reasons": [reason for status in ended.statuses for reason in status.reasons],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    Path(report).write_text(json.dumps(told), encoding="utf-8")
    return 0 if ended.all_done else 3


if __name__ == "__main__":
    # Under its own name, so that workers find it by that name.
    import chaos_faults

    raise SystemExit(chaos_faults.run_driver())
