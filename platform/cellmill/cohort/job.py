"""`segment_cohort`: slides in, tables of cells out. Parse, run, report."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmill.arguments import parse_dataclass
from cellmill.cohort.config import SegmentCohortConfig

if TYPE_CHECKING:
    from cellmill.cohort.run import RunReport
    from cellmill.embedding.slide import EmbeddedSlide
    from cellmill.embedding.sources import EmbeddingModel

__all__ = ["main", "report_and_code"]

DONE, BROKE_OFF, UNUSABLE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: every slide done; the workers could not go on; nothing was run, because settings or output cannot be
used; some slides failed; stopped by Ctrl-C."""

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

    try:
        if config.forget is not None:
            print_slides([CellSet(config.out).forget(config.forget)], out=config.out, seconds=0.0)
            return DONE
        model = NetworkEmbeddings(load_model(config.model))
        if config.embeddings:
            _ = model.layer  # raises before hours are spent
        report = run_cohort(config, model, progress=open_progress())
        all_embedded = not config.embeddings or _embed(config, model)
    except (ValueError, StoreError) as error:
        sys.stderr.write(f"segment_cohort: {error}\n")
        return UNUSABLE
    except EngineError as error:
        sys.stderr.write(f"segment_cohort: {error}\n")
        return BROKE_OFF
    except KeyboardInterrupt:
        sys.stderr.write("segment_cohort: stopped. Finished fields are kept; the same command goes on from there.\n")
        return INTERRUPTED
    code = report_and_code(report)
    return code if all_embedded else SOME_FAILED


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
