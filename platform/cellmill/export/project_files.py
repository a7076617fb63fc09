"""A QuPath project as plain files, and reading one: `project.qpproj`, classes, scripts.

In: images and classes. Out: what QuPath core 0.5.1, 0.6.0 and 0.7.0 open. `data/<entry>/data.qpdata` is Java's own
serialization and is never written here: an image without it opens empty, and a script brings the objects in.

`project.qpproj` as read in QuPath's `DefaultProject.java`: version, createTimestamp, modifyTimestamp, uri, lastID,
images [{serverBuilder {builderType "uri", uri, args, providerClassName?}, entryID, randomizedName, imageName,
metadata}].
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from cellmill.export.object_ids import area_uuid
from cellmill_schemas.ontology import Ontology

__all__ = [
    "AREA_CLASSES",
    "PROJECT_NAME",
    "ProjectImage",
    "argb_of",
    "read_project",
    "set_project_uri",
    "write_classes",
    "write_project",
    "write_script",
    "write_segment_script",
]

PROJECT_NAME = "project.qpproj"
_FORMAT_VERSION = "0.5.1"
"""Of the file's form; QuPath asks for one, and 0.5.1 is the oldest that opened such a project."""

AREA_CLASSES: dict[str, tuple[int, int, int]] = {
    "Analysed area": (90, 90, 200),
    "Excluded area": (150, 150, 150),
}
"""Classes of the locked annotations that exports make; no run starts from them."""

_OPENSLIDE_PROVIDERS = ("openslide",)


@dataclass(frozen=True)
class ProjectImage:
    """An image of a project."""

    entry_id: str
    name: str
    uri: str
    args: tuple[str, ...] = ()
    provider: str | None = None
    """Class that reads it; None lets QuPath choose."""
    problem: str | None = None
    """Why the image cannot be used outside QuPath."""

    @property
    def path(self) -> Path:
        """The image file, for a `file:` URI."""
        return Path(url2pathname(unquote(urlsplit(self.uri).path)))

    @property
    def is_cropped_to_bounds(self) -> bool:
        """Whether QuPath's origin is the scanned area's rather than the slide's.

        QuPath's OpenSlide reader subtracts `openslide.bounds-x` and `-y` unless told `--no-crop`.
        """
        return "--no-crop" not in self.args

    @property
    def may_be_openslide(self) -> bool:
        """Whether OpenSlide reads it in QuPath, as far as the project says."""
        return self.provider is None or any(name in self.provider.lower() for name in _OPENSLIDE_PROVIDERS)


def argb_of(color_rgb: Sequence[int]) -> int:
    """A colour as QuPath's signed 32-bit ARGB integer."""
    red, green, blue = color_rgb
    return (255 << 24 | red << 16 | green << 8 | blue) - (1 << 32)


def write_project(
    folder: Path, images: Sequence[tuple[str, str, Path, Mapping[str, str]]], *, final_folder: Path
) -> tuple[ProjectImage, ...]:
    """Write `project.qpproj`.

    Args:
        folder: where to write it.
        images: slide id, name, file and metadata of each image.
        final_folder: where the project will lie; its URI is in the file.
    """
    made = [
        ProjectImage(entry_id=str(number), name=name, uri=path.absolute().as_uri())
        for number, (_, name, path, _) in enumerate(images, start=1)
    ]
    now_ms = int(time.time() * 1000)
    document: dict[str, Any] = {
        "version": _FORMAT_VERSION,
        "createTimestamp": now_ms,
        "modifyTimestamp": now_ms,
        "uri": (final_folder.absolute() / PROJECT_NAME).as_uri(),
        "lastID": len(made),
        "images": [
            {
                "serverBuilder": {"builderType": "uri", "uri": image.uri, "args": []},
                "entryID": int(image.entry_id),
                "randomizedName": str(area_uuid(slide_id, "randomized name")),
                "imageName": image.name,
                "metadata": dict(metadata),
            }
            for image, (slide_id, _, _, metadata) in zip(made, images, strict=True)
        ],
    }
    (folder / PROJECT_NAME).write_text(json.dumps(document, indent=2), encoding="utf-8")
    return tuple(made)


def set_project_uri(folder: Path, *, final_folder: Path) -> None:
    """Make a project that was made in `folder` one of `final_folder`, where it will be moved to."""
    document = json.loads((folder / PROJECT_NAME).read_text(encoding="utf-8"))
    document["uri"] = (final_folder.absolute() / PROJECT_NAME).as_uri()
    (folder / PROJECT_NAME).write_text(json.dumps(document, indent=2), encoding="utf-8")


def write_classes(folder: Path, ontology: Ontology, *, more: Mapping[str, tuple[int, int, int]] | None = None) -> None:
    """Write `classifiers/classes.json`: the ontology's classes in its colours, those of areas, and `more`."""
    colors = {cell_class.name: cell_class.color_rgb for cell_class in ontology.classes}
    colors |= {**AREA_CLASSES, **(more or {})}
    document = {"pathClasses": [{"name": name, "color": argb_of(color)} for name, color in colors.items()]}
    path = folder / "classifiers" / "classes.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")


def write_script(project: Path, name: str) -> None:
    """Put a script of this package where QuPath lists the project's scripts."""
    text = resources.files("cellmill.export").joinpath("scripts", name).read_text(encoding="utf-8")
    (project / "scripts").mkdir(exist_ok=True)
    (project / "scripts" / name).write_text(text, encoding="utf-8")


def write_segment_script(project: Path) -> None:
    """Let a pathologist start cellmill from QuPath's menu: the script, and the command of this installation."""
    write_script(project, "cellmill_segment_annotations.groovy")
    command = project / "cellmill" / "command.json"
    command.parent.mkdir(exist_ok=True)
    document = {"command": [sys.executable, "-m", "cellmill.export.segment_job"]}
    command.write_text(json.dumps(document, indent=2), encoding="utf-8")


def read_project(folder: Path) -> tuple[ProjectImage, ...]:
    """The images of a QuPath project.

    Raises:
        ValueError: when there is no project that can be read.
    """
    path = folder / PROJECT_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return tuple(_read_image(entry) for entry in document["images"])
    except OSError as error:
        raise ValueError(f"--project {folder}: there is no {PROJECT_NAME} to read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no project file of QuPath 0.2 or later: {error!r}.") from error


def _read_image(entry: Mapping[str, Any]) -> ProjectImage:
    builder = entry["serverBuilder"]
    entry_id, name = str(entry["entryID"]), str(entry.get("imageName", ""))
    if not entry_id.isdecimal():
        raise ValueError(f"entryID must be a number, got {entry_id!r}")
    kind, uri = builder.get("builderType"), str(builder.get("uri", ""))
    problem = None
    if kind != "uri":
        problem = f"QuPath shows it through a {kind!r} builder (rotated, cropped or joined), whose frame is its own"
    elif urlsplit(uri).scheme != "file":
        problem = "it is no file on this computer"
    return ProjectImage(
        entry_id=entry_id,
        name=name,
        uri=uri,
        args=tuple(str(argument) for argument in builder.get("args") or ()),
        provider=builder.get("providerClassName"),
        problem=problem,
    )
