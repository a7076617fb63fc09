"""`segment_project`: a model inside the annotations of a QuPath project. Parse, run, report."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmill.arguments import parse_dataclass
from cellmill.export.segment_config import SegmentProjectConfig

if TYPE_CHECKING:
    from cellmill.export.segmenting import ImageResult

__all__ = ["main"]

_DESCRIPTION = """Find the cells of a QuPath project's images, inside the annotations drawn there or in all tissue, and
bring them back to the images. The same command does only what is missing. Exits 0 when every image is done or has no
annotations, 3 when some failed, 2 when the settings cannot be used, 1 when the run or QuPath broke off."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse_dataclass(
        SegmentProjectConfig, prog="segment_project", description=_DESCRIPTION, arguments=arguments
    )
    # Only now: --help and a wrong flag need no torch.
    from cellmill.cohort.engine import EngineError
    from cellmill.cohort.progress import open_progress
    from cellmill.cohort.sources import NetworkModel
    from cellmill.export.qupath import QuPathError
    from cellmill.export.segmenting import segment_project
    from cellmill.models.loading import load_model
    from cellmill.store.errors import StoreError

    try:
        results = segment_project(config, NetworkModel(load_model(config.model)), progress=open_progress())
    except (ValueError, StoreError) as error:
        sys.stderr.write(f"segment_project: {error}\n")
        return 2
    except (EngineError, QuPathError) as error:
        sys.stderr.write(f"segment_project: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("segment_project: stopped. Finished fields are kept; the same command goes on from there.\n")
        return 130
    sys.stdout.write(_told(results))
    return 3 if any(result.outcome == "failed" for result in results) else 0


def _told(results: Sequence["ImageResult"]) -> str:
    lines = [
        f"image {result.image.entry_id} ({result.image.name}): "
        + (f"{result.num_cells:,} cells" if result.outcome == "done" else f"{result.outcome}, {result.reason}")
        for result in results
    ]
    if any(result.outcome == "done" and not result.inserted for result in results):
        lines.append(
            "The cells are in cellmill/results/ of the project. Unless QuPath's own script started this, bring them "
            "in: Automate > Project scripts > cellmill_import_results, then Run > Run for project."
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
