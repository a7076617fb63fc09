"""`import-annotations`: what a pathologist corrected in QuPath comes back as a data set.

In: a cell set, its slides, one GeoJSON file a slide with all objects of the image. Out: a labelled data set whose
labels say who gave them, and `corrections.parquet` in it: every nucleus that was confirmed, changed, added or deleted.
"""

import io
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.arguments import parse_dataclass

if TYPE_CHECKING:
    from cellmill.store.identity import CellSetIdentity
    from cellmill_training.corrections.comparing import Change
    from cellmill_training.datasets.labelled_image import LabelledImage

__all__ = ["CORRECTIONS_KEY", "ImportAnnotationsSettings", "import_annotations", "main"]

logger = logging.getLogger(__name__)

UNUSABLE = 2
"""Exit code: nothing was written, because settings or files cannot be used."""

CORRECTIONS_KEY = "corrections.parquet"

_ENDINGS = (".geojson", ".geojson.gz")


@dataclass(frozen=True)
class ImportAnnotationsSettings:
    """Settings of one import.

    Args:
        cells: the cell set that was exported and corrected.
        slides: the slides it was made from: files, globs, folders, URLs or one manifest.
        corrections: folder with one file a slide, <slide_id>.geojson or .geojson.gz: all objects of the image, as
            QuPath's File > Export objects as GeoJSON writes them.
        out: folder or URL of the new data set.
        annotator: who corrected; recorded as the origin of each label the person gave.
        window_px: side of the images that are cut out, px of the cell set's model grid.
        pseudonymize: the key file that the cell set was made with, if one was used.
    """

    cells: str = ""
    slides: tuple[str, ...] = ()
    corrections: str = ""
    out: str = ""
    annotator: str = ""
    window_px: int = 512
    pseudonymize: str | None = None

    def __post_init__(self) -> None:
        if not self.cells or not self.slides or not self.out:
            raise ValueError("--cells, --slides and --out are needed: the cell set, its slides, the new data set.")
        if not Path(self.corrections or "/nowhere").is_dir():
            raise ValueError(f"--corrections must be a folder with <slide_id>.geojson files, got {self.corrections!r}.")
        if not self.annotator:
            raise ValueError("--annotator must say who corrected: a name or initials; it is the labels' lineage.")
        if self.window_px < 64:
            raise ValueError(f"--window-px must be 64 or more, got {self.window_px}.")


@dataclass
class _Import:
    """What the slides had in them, gathered while images are written."""

    rows: list[dict[str, object]] = field(default_factory=list[dict[str, object]])

    def add(self, slide_id: str, changes: "Sequence[Change]", path: Path) -> None:
        changed_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        rows: list[dict[str, object]] = [
            {
                "slide_id": slide_id,
                "cell_id": change.cell_id,
                "change": change.kind,
                "type_before": change.type_before,
                "type_after": change.type_after,
                "confidence_before": change.confidence,
                "iou": change.iou,
                "is_complete": change.is_complete,
                "file_changed_at": changed_at,
            }
            for change in changes
        ]
        self.rows += rows

    def table(self, identity: "CellSetIdentity", annotator: str) -> pa.Table:
        schema = pa.schema(
            [
                pa.field("slide_id", pa.string()),
                pa.field("cell_id", pa.int64()),
                pa.field("change", pa.string()),
                pa.field("type_before", pa.string()),
                pa.field("type_after", pa.string()),
                pa.field("confidence_before", pa.float32()),
                pa.field("iou", pa.float32()),
                pa.field("is_complete", pa.bool_()),
                pa.field("file_changed_at", pa.timestamp("s", tz="UTC")),
            ],
            metadata={
                "annotator": annotator,
                "model_name": identity.model_name,
                "model_version": identity.model_version,
                "model_digest": identity.model_digest,
                "config_digest": identity.config_digest,
            },
        )
        return pa.Table.from_pylist(self.rows, schema=schema)


def main(arguments: Sequence[str] | None = None) -> int:
    """Import and print what was changed; 0 when the data set is whole."""
    settings = parse_dataclass(
        ImportAnnotationsSettings,
        prog="import-annotations",
        description="Turn corrections made in QuPath into a data set that training takes.",
        arguments=arguments,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        counts = import_annotations(settings)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"import_annotations: {error}\n")
        return UNUSABLE
    for kind, number in sorted(counts.items()):
        print(f"{kind:>10} {number:>10,}")  # noqa: T201
    print(f"Data set: {settings.out}")  # noqa: T201
    return 0


def import_annotations(settings: ImportAnnotationsSettings) -> dict[str, int]:
    """Make the data set; returns how many nuclei were confirmed, changed and so on.

    Raises:
        ValueError: when a file or slide cannot be used, naming it, or nothing in the files was said by a person.
    """
    from cellmill.store.identity import read_identity
    from cellmill.store.objects import ObjectStore
    from cellmill_training.datasets.store import write_dataset

    identity = read_identity(ObjectStore(settings.cells))
    found = _Import()
    images = _images(settings, identity, found)
    first = next(images, None)
    if first is None:
        raise ValueError(
            f"The files in {settings.corrections} hold the cells as they were exported and no complete region: draw "
            "annotations of class Complete around what was looked at, or change a cell."
        )
    dataset = write_dataset(settings.out, _chained(first, images), ontology=identity.ontology)
    sink = io.BytesIO()
    pq.write_table(found.table(identity, settings.annotator), sink, compression="zstd")
    dataset.store.put(CORRECTIONS_KEY, sink.getvalue())
    return dict(Counter(str(row["change"]) for row in found.rows))


def _chained(first: "LabelledImage", rest: "Iterator[LabelledImage]") -> "Iterator[LabelledImage]":
    yield first
    yield from rest


def _images(
    settings: ImportAnnotationsSettings, identity: "CellSetIdentity", found: _Import
) -> "Iterator[LabelledImage]":
    from cellmill.slides.isolated_slide import IsolatedSlide
    from cellmill_training.corrections.comparing import changes_of
    from cellmill_training.corrections.exported import corrected_slides, exported_cells
    from cellmill_training.corrections.imaging import Provenance, corrected_images
    from cellmill_training.corrections.objects import read_corrected

    model = identity.model_version or f"{identity.model_name} {identity.model_digest[:12]}"
    files = {
        path.name.removesuffix(ending): path
        for ending in _ENDINGS
        for path in sorted(Path(settings.corrections).glob(f"*{ending}"))
    }
    if not files:
        raise ValueError(f"{settings.corrections} holds no <slide_id>.geojson; export the objects of each image there.")
    for slide in corrected_slides(settings.cells, settings.slides, files, pseudonymize=settings.pseudonymize):
        path = files[slide.slide_id]
        with (
            slide.staged() as copy,
            IsolatedSlide(
                copy.path, target_mpp=slide.target_mpp, mpp=slide.mpp, reader=str(identity.config["reader"])
            ) as opened,
        ):
            slide.require_same_file(opened.info.fingerprint)
            corrected = read_corrected(
                path,
                slide_id=slide.slide_id,
                ontology=identity.ontology,
                origin_level0_px=opened.info.bounds_level0_px,
            )
            changes = changes_of(exported_cells(settings.cells, slide.slide_id), corrected)
            found.add(slide.slide_id, changes, path)
            yield from corrected_images(
                opened,
                corrected,
                changes,
                provenance=Provenance(settings.annotator, model),
                window_px=settings.window_px,
                source=Path(settings.cells).name,
            )
