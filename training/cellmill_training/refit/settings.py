"""What a refit is told. The text under `Args` is the help of each setting."""

from dataclasses import dataclass
from typing import Literal

from cellmill.store.errors import UnsafeNameError
from cellmill.store.layout import check_slide_id

__all__ = ["RefitTypesSettings"]


@dataclass(frozen=True)
class RefitTypesSettings:
    """Settings of `refit_types`.

    Args:
        cells: the cell set, with embeddings: what segment_cohort --embeddings was given as --out.
        labels: types of some of its cells: a CSV or Parquet file with the columns cell_id, type and (where ids of two
            slides are alike) slide_id, or the folder of a data set that import_annotations made.
        name: what to call the new types; open_cells(..., scores="retyped/NAME") gives them.
        ontology: the classes: a builtin ontology, a JSON file, or labels for just the types that occur in --labels.
            Default: those of the cell set.
        embedded_by: whose embeddings: student (segment_cohort --embeddings) or teacher (rescore_cohort --embeddings).
        min_cells: labelled cells that each class must have at least.
        replace: put the new head in the place of another of that name.
        seed: of folds and of the draws of intervals.
    """

    cells: str = ""
    labels: str = ""
    name: str = ""
    ontology: str = ""
    embedded_by: Literal["student", "teacher"] = "student"
    min_cells: int = 5
    replace: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value in (("--cells", self.cells), ("--labels", self.labels), ("--name", self.name)):
            if not value:
                raise ValueError(f"{flag} is missing; give --cells, --labels and --name.")
        try:
            check_slide_id(self.name)
        except UnsafeNameError:
            raise ValueError(
                f"--name must be 1 to 128 letters, digits, '.', '_' or '-' and not start with '.', got {self.name!r}."
            ) from None
        if self.min_cells < 2:
            raise ValueError(f"--min-cells must be 2 or more, got {self.min_cells}.")
