"""Which code ran: the git revision of the checkout that this package is read from."""

import subprocess
from pathlib import Path

__all__ = ["git_revision"]


def git_revision(file: Path | None = None) -> str:
    """The commit of the repository that tracks `file`, with `-dirty` where tracked files differ from it.

    Empty where the file is tracked by no repository: an installed package that happens to lie in a folder of somebody
    else's repository must not claim its revision.

    Args:
        file: a source file; this one when None.
    """
    source = (file or Path(__file__)).resolve()
    if _git(source, "ls-files", "--error-unmatch", source.name) is None:
        return ""
    commit = _git(source, "rev-parse", "HEAD")
    if commit is None:
        return ""
    return commit + ("-dirty" if _git(source, "status", "--porcelain", "--untracked-files=no") else "")


def _git(file: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=file.parent, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
