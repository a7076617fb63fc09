"""`refit-types`: new types for a cell set from labelled cells and stored embeddings. Parse, fit, report."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmill.arguments import parse_dataclass
from cellmill_training.refit.settings import RefitTypesSettings

if TYPE_CHECKING:
    from cellmill_training.refit.run import Refit

__all__ = ["main"]

FITTED, UNUSABLE = 0, 2
"""Exit codes: the new types are there; nothing was written, because settings, labels or cell set cannot be used."""

_A_HANDFUL = 5
_DESCRIPTION = """Fit a new type head (logistic regression) on the stored embeddings of labelled cells, corrections or a
new ontology, and store what it says of every cell that has one, as retyped/NAME/. No slide is read and no network is
run. Exits 0 when it is done, 2 when settings or labels cannot be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    settings = parse_dataclass(RefitTypesSettings, prog="refit-types", description=_DESCRIPTION, arguments=arguments)
    from cellmill.store.errors import StoreError
    from cellmill_training.refit.run import refit_types

    try:
        found = refit_types(settings)
    except (ValueError, FileNotFoundError, StoreError) as error:
        sys.stderr.write(f"refit-types: {error}\n")
        return UNUSABLE
    sys.stdout.write(_told(found, settings))
    return FITTED


def _told(found: "Refit", settings: RefitTypesSettings) -> str:
    labels = ", ".join(f"{number:,} {name}" for name, number in found.counts.items())
    lines = [f"Labels: {labels}."]
    if found.validated is None:
        lines.append("All labels lie in one place: nothing says how good the head is elsewhere.")
    else:
        few = found.validated.num_groups < _A_HANDFUL
        lines += [
            f"Cross-validated over {found.groups}: accuracy {found.validated.accuracy}, balanced "
            f"{found.validated.balanced_accuracy}; 95 % intervals"
            f"{', too narrow for being drawn over so few' if few else ''}.",
            "Found of each class: "
            + ", ".join(f"{name} {value:.0%}" for name, value in zip(found.counts, found.validated.recall, strict=True))
            + ".",
        ]
    if found.present_accuracy is not None:
        lines.append(f"The cell table's own types are right on {found.present_accuracy:.1%} of the labelled cells.")
    lines.append(
        f"{found.num_cells:,} cells of {found.num_slides} slides have the new types, {found.num_changed:,} of them "
        f"another than before. Fitted in {found.fit_seconds:.1f} s, {found.seconds:.1f} s in all."
    )
    lines.append(f'open_cells("{settings.cells}", scores="retyped/{settings.name}") gives them.')
    return "\n".join([*lines, ""])
