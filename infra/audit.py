"""Look up known vulnerabilities of every pinned dependency: `make audit`.

In: constraints.txt. Out: exit code 1 when one is known, 0 otherwise. Where the database cannot be reached nothing was
audited: that is said in words that cannot be taken for a success, and fails only with `AUDIT_MUST_RUN=1`, which a CI
that has a network should set. (pip-audit itself calls it a success when an index knows no vulnerabilities of any
package, as mirrors of PyPI do.)
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

AUDIT = ("tool", "run", "--quiet", "pip-audit==2.10.1")
_NO_NETWORK = ("ConnectionError", "NameResolutionError", "Max retries exceeded", "Timeout", "error sending request")


def verdict(report: dict[str, Any]) -> tuple[bool | None, list[str]]:
    """Whether the dependencies are clean, None where nothing was audited; and lines that say so."""
    entries: list[dict[str, Any]] = report["dependencies"]
    audited = [entry for entry in entries if "vulns" in entry]
    skipped = [entry["name"] for entry in entries if "vulns" not in entry]
    if not audited:
        return None, ["NOT AUDITED: the package index knows no vulnerabilities of any package; use one that does."]
    lines = [
        f"{entry['name']} {entry['version']}: {found['id']}, fixed in {found['fix_versions'] or 'no version'}"
        for entry in audited
        for found in entry["vulns"]
    ]
    clean = not lines
    if skipped:
        lines.append(f"Could not be audited: {', '.join(skipped)}.")
    return clean, [
        *lines,
        f"{len(audited)} dependencies audited, {'none' if clean else 'some'} with known vulnerabilities.",
    ]


def main(uv: str = "uv", constraints: str = "constraints.txt") -> int:
    """Audit; returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = (
            "--no-deps",
            "--disable-pip",
            "--progress-spinner",
            "off",
            "--format",
            "json",
            "--output",
            str(report),
        )
        ended = subprocess.run(
            [uv, *AUDIT, "--requirement", constraints, *options], capture_output=True, text=True, check=False
        )
        if report.exists():
            clean, lines = verdict(json.loads(report.read_text(encoding="utf-8")))
        elif any(word in ended.stderr for word in _NO_NETWORK):
            clean, lines = None, ["NOT AUDITED: the vulnerability database cannot be reached from here."]
        else:
            clean, lines = False, [ended.stderr]
    sys.stdout.write("\n".join(lines) + "\n")
    if clean is None:
        return int(os.environ.get("AUDIT_MUST_RUN", "") == "1")
    return int(not clean)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
