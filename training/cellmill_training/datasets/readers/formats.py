"""The formats by name: what a folder must look like, which reader takes it, which ontology its labels are in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cellmill_schemas.ontology import Ontology, get_ontology
from cellmill_training.datasets.labelled_image import LabelledImage, LabelOrigin
from cellmill_training.datasets.readers.conic import read_conic
from cellmill_training.datasets.readers.dsb import read_dsb
from cellmill_training.datasets.readers.matlab import read_consep, read_lizard
from cellmill_training.datasets.readers.monusac import read_monusac
from cellmill_training.datasets.readers.pannuke import read_pannuke
from cellmill_training.datasets.readers.qupath import read_puma, read_qupath
from cellmill_training.datasets.readers.synthetic import render_images

__all__ = ["FormatName", "ReadOptions", "native_ontology", "read_images"]

FormatName = Literal["pannuke", "monusac", "consep", "conic", "lizard", "dsb", "puma", "qupath", "synthetic"]


@dataclass(frozen=True)
class ReadOptions:
    """What some formats need to be told; None and empty leave a format's own value."""

    mpp: float | None = None
    ontology: Ontology | None = None
    """Of a format without one of its own (qupath)."""
    source: str = ""
    tissue: str = ""
    annotator: str = ""
    dark_is_unknown: bool = True
    num_images: int = 100
    seed: int = 0


_NATIVE: dict[FormatName, str] = {
    "pannuke": "pannuke5",
    "monusac": "monusac4",
    "consep": "consep7",
    "conic": "conic6",
    "lizard": "conic6",
    "puma": "puma10",
    "synthetic": "refined7",
}


def native_ontology(name: FormatName, options: ReadOptions) -> Ontology:
    """The ontology that a format's labels come in.

    Raises:
        ValueError: when the format has none and the options name none.
    """
    if name in _NATIVE:
        return get_ontology(_NATIVE[name])
    if name == "dsb":
        return options.ontology or get_ontology("refined7")  # its nuclei have no type: any ontology will do
    if options.ontology is None:
        raise ValueError(f"Format {name} has class names of its own making: name the ontology that has them.")
    return options.ontology


def read_images(name: FormatName, folder: Path, options: ReadOptions) -> Iterator[LabelledImage]:
    """The images of a data set, labels in its native ontology.

    Raises:
        ValueError: when the folder is not in that format, naming file and record; while iterating, too.
    """
    return _READERS[name](folder, options)


def _read_qupath(folder: Path, options: ReadOptions) -> Iterator[LabelledImage]:
    if options.mpp is None:
        raise ValueError("Format qupath needs the images' um/px: GeoJSON does not state it.")
    return read_qupath(
        folder,
        ontology=native_ontology("qupath", options),
        mpp=options.mpp,
        source=options.source or folder.resolve().name,
        tissue=options.tissue,
        origin=LabelOrigin("annotator", options.annotator) if options.annotator else None,
    )


def _render(options: ReadOptions) -> Iterator[LabelledImage]:
    return render_images(range(options.seed, options.seed + options.num_images))


_READERS: dict[FormatName, Callable[[Path, ReadOptions], Iterator[LabelledImage]]] = {
    "pannuke": lambda folder, _: read_pannuke(folder),
    "monusac": lambda folder, options: read_monusac(folder, dark_is_unknown=options.dark_is_unknown),
    "consep": lambda folder, _: read_consep(folder),
    "conic": lambda folder, _: read_conic(folder),
    "lizard": lambda folder, _: read_lizard(folder),
    "dsb": lambda folder, options: read_dsb(folder, mpp=options.mpp),
    "puma": lambda folder, _: read_puma(folder),
    "qupath": _read_qupath,
    "synthetic": lambda _, options: _render(options),
}
assert set(_READERS) == set(get_args(FormatName))
