"""How a job ends: the exit codes that jobs share, and errors that people can mend told in one line, not as a traceback.

What a job was given decides which errors those are; all others are our own mistakes and keep their traceback.
"""

import sys
from collections.abc import Callable, Mapping

__all__ = ["BROKE_OFF", "DONE", "INTERRUPTED", "SOME_FAILED", "UNUSABLE", "exit_code"]

DONE = 0
BROKE_OFF = 1
"""The workers could not go on."""
UNUSABLE = 2
"""Settings, input or output cannot be used."""
SOME_FAILED = 3
"""Done, but for some slides, which are listed."""
INTERRUPTED = 130
"""Stopped by Ctrl-C."""


def exit_code(
    work: Callable[[], int], *, prog: str, errors: Mapping[type[Exception], int], stopped: str = "stopped."
) -> int:
    """Do a job's work; returns its exit code, or that of the error or the Ctrl-C that ended it, told on stderr.

    Args:
        work: returns an exit code.
        prog: name of the job.
        errors: errors that are told, and the code of each; the first that fits counts.
        stopped: what to say after Ctrl-C.
    """
    try:
        return work()
    except KeyboardInterrupt:
        message, code = stopped, INTERRUPTED
    except tuple(errors) as error:
        message, code = str(error), next(code for kind, code in errors.items() if isinstance(error, kind))
    sys.stderr.write(f"{prog}: {message}\n")
    return code
