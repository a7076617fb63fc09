"""What a second opinion is told: one typed configuration. The sentence under each field is its help text."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["RescoreCohortConfig"]


@dataclass(frozen=True)
class RescoreCohortConfig:
    """Settings of `rescore_cohort`."""

    cells: str = ""
    """The cell set: what segment_cohort was given as --out."""

    slides: tuple[str, ...] = ()
    """The slides it was made from: files, globs, folders, URLs or one manifest."""

    model: str = ""
    """The heavy model: folder, packaged name, or MLflow URI (models:/teacher@champion). Its classes must be the cell
    set's."""

    where: str = ""
    """Which cells, as SQL over the columns of the cell table: "confidence < 0.6 OR cell_type = 'macrophage'"."""

    slide_id: tuple[str, ...] = ()
    """Only these slides. Default: every finished slide that --slides holds."""

    budget_mm2: float | None = None
    """Most tissue to look at, mm2 over the cohort, shared evenly between slides; the tiles with most of the cells
    first. Default: all tiles that hold one."""

    embeddings: bool = False
    """Store a vector for each of these cells, too, in embeddings/teacher/: a layer of the heavy model, averaged over
    the cell's pixels."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs: auto takes CUDA where there is one."""

    batch_size: int = 0
    """Tiles a forward pass. Default (0): 1 on a CPU, 16 with CUDA."""

    num_workers: int = 0
    """Slides scored at the same time. Default (0): the CPUs granted to this process or cluster, or its GPUs."""

    threads_per_worker: int = 1
    """CPU threads of each worker."""

    replace: bool = False
    """Put new scores in the place of others that a slide has."""

    pseudonymize: str | None = None
    """The key file that the cell set was made with, if one was used."""

    slide_cache: str = ""
    """Folder on each node's own disk for slides behind URLs. Default: one of this user's for temporary files."""

    slide_cache_gib: float = 0.0
    """Most that it may hold, in GiB. Default (0): half of the disk space that is free there."""

    def __post_init__(self) -> None:
        for name in ("slides", "slide_id"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for name, wanted in (
            ("cells", "the cell set"),
            ("slides", "its slides"),
            ("model", "the heavy model"),
            ("where", "a condition on cells"),
        ):
            if not getattr(self, name):
                raise ValueError(f"--{name} must be {wanted}, got nothing.")
        if self.budget_mm2 is not None and self.budget_mm2 <= 0:
            raise ValueError(f"--budget-mm2 must be more than 0 mm2, got {self.budget_mm2:g}; leave it out for all.")
        if min(self.batch_size, self.num_workers) < 0 or self.threads_per_worker < 1:
            raise ValueError("--batch-size, --num-workers and --threads-per-worker must be positive; leave them out.")
