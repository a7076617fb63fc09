"""`import-dataset`: a published data set, or annotated images of one's own, into a store that training jobs take.

Consumes a folder in one of the formats of `readers/formats.py`; produces a data set (`store.py`) and prints what it
holds.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from cellmill.arguments import parse_dataclass
from cellmill_schemas.ontology import Ontology, get_ontology, load_ontology
from cellmill_training.datasets.splitting import Split, SplitPlan

if TYPE_CHECKING:
    from cellmill_training.datasets.store import LabelledDataset

__all__ = ["ImportDatasetSettings", "import_dataset", "main"]

UNUSABLE = 2
"""Exit code: nothing was written, because settings or data cannot be used."""

_ONLY_FOR = {"mpp": ("dsb", "qupath"), "source": ("qupath",), "tissue": ("qupath",), "annotator": ("qupath",)}
"""Formats that take a setting; the others state the value themselves."""

_DESCRIPTION = """Read a data set of labelled nuclei into one typed store with splits by patient or slide, where known,
and the origin of every label. The folder layouts are in docs/datasets.md."""


@dataclass(frozen=True)
class ImportDatasetSettings:
    """Settings of one import.

    Args:
        format: layout of the data; qupath is GeoJSON beside images, synthetic needs no data.
        data: folder with the data set, unpacked.
        out: folder or URL of the new data set.
        ontology: name, or JSON file, of the ontology to store labels in. Default: the format's own.
        name: what the data set is called. Default: the last part of --out.
        fractions: shares of train, validation and test, by whole split groups.
        folds: the source's folds instead of fractions, as in --folds fold1=train fold2=validation fold3=test.
        seed: of the splits; for synthetic, also the first slide.
        mpp: um/px of the images, where the format does not fix it (qupath needs it, dsb estimates it).
        source: name of the source in a qupath import. Default: the folder's name.
        tissue: tissue of the images of a qupath import.
        annotator: who drew the outlines of a qupath import; recorded as their origin.
        unlabelled: what monusac's pixels outside outlines are; with unknown, those that are neither pale nor right
            beside a nucleus, because stroma was not outlined.
        num_images: images to render for synthetic.
    """

    format: Literal["pannuke", "monusac", "consep", "conic", "lizard", "dsb", "puma", "qupath", "synthetic"] = "pannuke"
    data: str = ""
    out: str = ""
    ontology: str = ""
    name: str = ""
    fractions: tuple[str, ...] = ("0.7", "0.2", "0.1")
    folds: tuple[str, ...] = ()
    seed: int = 0
    mpp: float | None = None
    source: str = ""
    tissue: str = ""
    annotator: str = ""
    unlabelled: Literal["unknown", "background"] = "unknown"
    num_images: int = 100

    def __post_init__(self) -> None:
        if self.format != "synthetic" and not Path(self.data or "/nowhere").is_dir():
            raise ValueError(f"--data must be the folder with the {self.format} data set, got {self.data!r}.")
        if not self.out:
            raise ValueError("--out must be a folder or URL for the new data set, got nothing.")
        for name, formats in _ONLY_FOR.items():
            if getattr(self, name) not in ("", None) and self.format not in formats:
                raise ValueError(f"--{name} is for {' and '.join(formats)}; {self.format} has its own, leave it out.")
        if self.mpp is not None and not 0.05 <= self.mpp <= 5:
            raise ValueError(f"--mpp must be 0.05 to 5 um/px, got {self.mpp}.")
        if self.num_images < 1:
            raise ValueError(f"--num-images must be at least 1, got {self.num_images}.")
        self.split_plan()

    def split_plan(self) -> SplitPlan:
        """The splits asked for.

        Raises:
            ValueError: when they are no shares, or a fold is not given as fold=split.
        """
        try:
            train, validation, test = (float(fraction) for fraction in self.fractions)
        except ValueError as error:
            raise ValueError(f"--fractions must be three numbers, got {' '.join(self.fractions)}.") from error
        pairs = [text.partition("=") for text in self.folds]
        if not all(separator for _, separator, _ in pairs):
            raise ValueError(f"--folds must be pairs as in fold1=train, got {' '.join(self.folds)}.")
        folds = cast(dict[str, Split], {fold: split for fold, _, split in pairs})
        return SplitPlan((train, validation, test), seed=self.seed, folds=folds)

    def chosen_ontology(self) -> Ontology | None:
        """The ontology asked for.

        Raises:
            ValueError: when there is none of that name, or the file holds none.
        """
        if not self.ontology:
            return None
        if self.ontology.endswith(".json"):
            return load_ontology(Path(self.ontology))
        try:
            return get_ontology(self.ontology)
        except KeyError as error:
            raise ValueError(f"--ontology: {error.args[0]} A file of your own must end in .json.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Import and print counts; returns the exit code."""
    settings = parse_dataclass(
        ImportDatasetSettings, prog="import-dataset", description=_DESCRIPTION, arguments=arguments
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Only now: --help and a wrong flag need none of the readers' libraries.
    from cellmill.store.errors import StoreError
    from cellmill_training.datasets.counts import print_counts

    try:
        dataset = import_dataset(settings)
    except (ValueError, KeyError, StoreError) as error:
        sys.stderr.write(f"import-dataset: {error.args[0] if error.args else error}\n")
        return UNUSABLE
    print_counts(dataset)
    return 0


def import_dataset(settings: ImportDatasetSettings) -> "LabelledDataset":
    """Read, map to the ontology asked for, split and write.

    Raises:
        ValueError: when data, settings or ontology do not fit, naming file and record; nothing is visible then.
        KeyError: when there is no mapping to the ontology.
    """
    from cellmill_schemas.ontology_mappings import get_mapping
    from cellmill_training.datasets.mapping import mapped
    from cellmill_training.datasets.readers.formats import ReadOptions, native_ontology, read_images
    from cellmill_training.datasets.store import write_dataset

    wanted = settings.chosen_ontology()
    options = ReadOptions(
        mpp=settings.mpp,
        ontology=wanted,
        source=settings.source,
        tissue=settings.tissue,
        annotator=settings.annotator,
        dark_is_unknown=settings.unlabelled == "unknown",
        num_images=settings.num_images,
        seed=settings.seed,
    )
    native = native_ontology(settings.format, options)
    mapping = get_mapping(native, wanted or native)
    images = read_images(settings.format, Path(settings.data), options)
    return write_dataset(
        settings.out,
        (mapped(image, mapping) for image in images),
        ontology=mapping.target,
        splits=settings.split_plan(),
        name=settings.name,
    )
