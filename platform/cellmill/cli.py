"""The `cellmill` command: its subcommands are the jobs, found by the entry-point group `cellmill.jobs`.

For people who have the package and no checkout: `cellmill segment-cohort ...` is `python jobs/segment_cohort.py ...`.
"""

import sys
from importlib.metadata import EntryPoint, entry_points

__all__ = ["main"]


def main() -> int:
    """Run the job named by the first argument with the rest; without one, list the jobs."""
    jobs = {entry.name: entry for entry in entry_points(group="cellmill.jobs")}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        _list_jobs(jobs)
        return 0
    if name == "--version":
        from cellmill import __version__

        sys.stdout.write(f"cellmill {__version__}\n")
        return 0
    if name not in jobs:
        sys.stderr.write(f"cellmill: there is no job {name!r}; there are {', '.join(sorted(jobs))}.\n")
        return 2
    sys.argv = [f"cellmill {name}", *sys.argv[2:]]
    return int(jobs[name].load()() or 0)


def _list_jobs(jobs: dict[str, EntryPoint]) -> None:
    lines = ["usage: cellmill JOB [settings]", "", "Jobs (cellmill JOB --help tells the settings of each):"]
    sys.stdout.write("\n".join([*lines, *(f"  {name}" for name in sorted(jobs)), ""]))
