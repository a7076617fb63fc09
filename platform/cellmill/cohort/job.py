"""`segment_cohort`: slides in, tables of cells out. Parse, run, report."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmill.arguments import parse_dataclass
from cellmill.cohort.config import SegmentCohortConfig
from cellmill.ending import BROKE_OFF, DONE, SOME_FAILED, UNUSABLE, exit_code

if TYPE_CHECKING:
    from cellmill.cohort.run import RunReport
    from cellmill.embedding.slide import EmbeddedSlide
    from cellmill.embedding.sources import EmbeddingModel

__all__ = ["main", "report_and_code"]

_DESCRIPTION = """Segment the cells of H&E slides: one table of cells, one label mask and one status a slide. The same
command on the same --out does only what is missing. Exits 0 when every slide is done, 3 when some failed (the others
are done, and the reasons are listed), 2 when the settings cannot be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_dataclass(SegmentCohortConfig, prog="segment_cohort", description=_DESCRIPTION, arguments=arguments)
    # Only now: --help and a wrong flag need no torch.
    from cellmill.cohort.engine import EngineError
    from cellmill.cohort.progress import open_progress, print_slides
    from cellmill.cohort.run import run_cohort
    from cellmill.embedding.sources import NetworkEmbeddings
    from cellmill.models.loading import load_model
    from cellmill.store.cellset import CellSet
    from cellmill.store.errors import StoreError

    def work() -> int:
        if config.forget is not None:
            print_slides([CellSet(config.out).forget(config.forget)], out=config.out, seconds=0.0)
            return DONE
        model = NetworkEmbeddings(load_model(config.model))
        if config.embeddings:
            _ = model.layer  # raises before hours are spent
        report = run_cohort(config, model, progress=open_progress())
        all_embedded = not config.embeddings or _embed(config, model)
        code = report_and_code(report)
        return code if all_embedded else SOME_FAILED

    return exit_code(
        work,
        prog="segment_cohort",
        errors={ValueError: UNUSABLE, StoreError: UNUSABLE, EngineError: BROKE_OFF},
        stopped="stopped. Finished fields are kept; the same command goes on from there.",
    )


def _embed(config: SegmentCohortConfig, model: "EmbeddingModel") -> bool:
    """Store embeddings of all slides that are done, saying how each went; whether all have them."""
    from cellmill.embedding.run import embed_cohort

    def say(slide: "EmbeddedSlide") -> None:
        told = slide.problem and f"no embeddings. {slide.problem}"
        told = told or f"embeddings of {slide.num_cells:,} cells, {slide.num_tiles:,} tiles in {slide.seconds:.1f} s"
        sys.stdout.write(f"{slide.slide_id}: {told}\n")

    return not any(slide.problem for slide in embed_cohort(config, model, say=say))


def report_and_code(report: "RunReport") -> int:
    """Print how each slide ended; returns the exit code that says so too."""
    from cellmill.cohort.progress import print_slides

    print_slides(report.statuses, out=report.out, seconds=report.seconds)
    return DONE if report.all_done else SOME_FAILED
