"""MoNuSAC as published: images of 71 patients, four kinds of nuclei outlined. CC BY-NC-SA 4.0 (Verma et al. 2021).

In: a folder a patient with `<image>.tif` or `<image>.svs` and `<image>.xml` of Aperio's form (Annotation > Attributes >
Attribute Name, Annotation > Regions > Region > Vertices > Vertex X Y). Regions called Ambiguous are unknown, those with
NegativeROA="1" are holes.
"Epithelial" covers benign and malignant. Stroma is not outlined, so where `dark_is_unknown`, a pixel that is neither
pale nor right around a nucleus is unknown and not background.
Scale: `MicronsPerPixel` of the XML, else 0.25 um/px (40x by the source).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import numpy.typing as npt
import tifffile
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from shapely.geometry import Polygon

from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.patching import patches_of
from cellmill_training.datasets.readers.building import ImageSource, build_image
from cellmill_training.datasets.readers.polygons import Shape, paint_polygons, repaired
from cellmill_training.datasets.unlabelled import surely_background

__all__ = ["MONUSAC_MPP", "read_monusac", "read_monusac_images"]

MONUSAC_MPP = 0.25
_CLASSES = ("epithelial", "lymphocyte", "macrophage", "neutrophil")
_AMBIGUOUS = "ambiguous"
_HOLE = "hole"
_IMAGE_ENDINGS = (".tif", ".tiff", ".svs")


def read_monusac(folder: Path, *, dark_is_unknown: bool = True) -> Iterator[LabelledImage]:
    """Patches of 256 px of all images, see `patches_of`."""
    for image in read_monusac_images(folder, dark_is_unknown=dark_is_unknown):
        yield from patches_of(image)


def read_monusac_images(folder: Path, *, dark_is_unknown: bool = True) -> Iterator[LabelledImage]:
    """All images, whole; the patient is the split group.

    Raises:
        ValueError: when a file is missing or damaged, a polygon broken or a class unknown, naming file and region.
    """
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise ValueError(f"{folder} holds no .xml file; give the folder with MoNuSAC's patient folders.")
    for path in files:
        yield _read_image(path, dark_is_unknown=dark_is_unknown)


def _read_image(path: Path, *, dark_is_unknown: bool) -> LabelledImage:
    root = _root(path)
    image = _pixels(path)
    shapes, names = _regions(root, path)
    size = (image.shape[0], image.shape[1])
    cells = [(shape, name) for shape, name in zip(shapes, names, strict=True) if name in _CLASSES]
    unknown, holes = (
        paint_polygons([s for s, name in zip(shapes, names, strict=True) if name == kind], size, where=str(path)) > 0
        for kind in (_AMBIGUOUS, _HOLE)
    )
    instances = paint_polygons([shape for shape, _ in cells], size, where=str(path))
    instances[holes] = 0
    if dark_is_unknown:
        unknown |= ~surely_background(image, instances > 0) & (instances == 0)
    patient = path.stem[:12] if path.stem.startswith("TCGA-") else path.parent.name
    return build_image(
        ImageSource(f"monusac-{path.stem}", "monusac", f"monusac-{patient}", _mpp(root, path)),
        image,
        instances,
        {number: (name,) for number, (_, name) in enumerate(cells, start=1)},
        unknown=unknown,
    )


def _root(path: Path) -> Element:
    try:
        root = parse(path).getroot()
    except (ParseError, DefusedXmlException, OSError, ValueError) as error:
        raise ValueError(f"{path} is no XML that may be read ({error}); download it again.") from error
    if root is None or root.tag != "Annotations":
        raise ValueError(f"{path} must hold Aperio's Annotations, got {root.tag if root is not None else 'nothing'}.")
    return root


def _mpp(root: Element, path: Path) -> float:
    stated = root.get("MicronsPerPixel", "")
    try:
        mpp = float(stated or MONUSAC_MPP)
    except ValueError as error:
        raise ValueError(f"{path}: MicronsPerPixel must be a number, got {stated!r}.") from error
    if not 0.05 < mpp < 5:
        raise ValueError(f"{path}: MicronsPerPixel must be 0.05 to 5, got {mpp}.")
    return mpp


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    files = [path.with_suffix(ending) for ending in _IMAGE_ENDINGS if path.with_suffix(ending).exists()]
    if not files:
        raise ValueError(f"{path} has no image beside it: {path.stem} with {', '.join(_IMAGE_ENDINGS)}.")
    try:
        pixels = np.asarray(tifffile.imread(files[0], key=0))
    except Exception as error:  # tifffile meets damaged files with any type of exception
        raise ValueError(f"{files[0]} cannot be read ({error}); download it again.") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ValueError(f"{files[0]} must be 8-bit RGB, got {pixels.dtype} {pixels.shape}.")
    return np.ascontiguousarray(pixels[..., :3])


def _regions(root: Element, path: Path) -> tuple[list[Shape], list[str]]:
    """Polygons with an area, and the class of each."""
    shapes: list[Shape] = []
    names: list[str] = []
    for place, annotation in enumerate(root.iter("Annotation")):
        regions = list(annotation.iter("Region"))
        if not regions:
            continue
        name = _class_name(annotation, where=f"{path}, annotation {place}")
        for number, region in enumerate(regions):
            where = f"{path}, annotation {place} ({name}), region {region.get('Id', number)}"
            shape = _polygon(region, where=where)
            if shape is not None:
                shapes.append(shape)
                names.append(_HOLE if region.get("NegativeROA") == "1" else name)
    return shapes, names


def _class_name(annotation: Element, *, where: str) -> str:
    given = [attribute.get("Name", "") for attribute in annotation.iter("Attribute")]
    for text in given:
        name = text.strip().lower()
        for known in (*_CLASSES, _AMBIGUOUS):
            # "Lymphocytes", "Macrophages" and "Neutrophils" occur too.
            if name in (known, f"{known}s"):
                return known
    known = ", ".join((*_CLASSES, _AMBIGUOUS))
    raise ValueError(f"{where}: its Attribute Name must be one of {known}, got {given}. Correct the file.")


def _polygon(region: Element, *, where: str) -> Shape | None:
    """The region's polygon, valid; None for a click or a line, which encloses nothing."""
    try:
        points = [(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{where}: a vertex must have numbers X and Y; got {error}. Correct the file.") from error
    if not all(math.isfinite(value) for point in points for value in point):
        raise ValueError(f"{where}: a vertex is not finite. Correct the file.")
    return repaired(Polygon(points)) if len(points) >= 3 else None
