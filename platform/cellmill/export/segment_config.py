"""What a run inside a QuPath project is told: one typed configuration, from the command line or Python."""

from dataclasses import dataclass
from typing import Literal

from cellmill.cohort.config import DEFAULT_FIELD_PX

__all__ = ["SegmentProjectConfig"]


@dataclass(frozen=True)
class SegmentProjectConfig:
    """Settings of `segment_project`."""

    project: str = ""
    """Folder of an existing QuPath project (with its project.qpproj). Save it in QuPath first."""

    annotations: bool = False
    """Work inside the annotations that people drew; images without any are left out. Otherwise the tissue of each image
    is found and all of it is done."""

    annotation_class: tuple[str, ...] = ()
    """With --annotations, only inside annotations of these classes. Default: all, apart from the areas that
    export_qupath marks."""

    image: tuple[str, ...] = ()
    """Only these images: names or entry ids of the project. Default: all."""

    model: str = "lite"
    """Packaged name (lite), folder with model.json and weights.safetensors, or MLflow URI (models:/name@champion)."""

    mpp: float | None = None
    """Scale of the images' finest pixels, in um/px, in place of what their files state."""

    as_: Literal["detections", "cells"] = "detections"
    """What a cell becomes in QuPath: a detection, or a cell object, whose nucleus and boundary are both the outline."""

    insert: Literal["auto", "files"] = "auto"
    """How results reach the images: auto puts them in through QuPath where PAQUO_QUPATH_DIR names it (close the project
    in QuPath first), files leaves GeoJSON and a script that brings it in."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs: auto takes CUDA where there is one."""

    field_px: int = DEFAULT_FIELD_PX
    """Side of a field, the unit of work, in px of the model grid. Does not change results."""

    num_workers: int = 0
    """Fields segmented at the same time. Default (0): the CPUs granted to this process, or its GPUs with CUDA."""

    replace: bool = False
    """Make the results of an image again where some are there already."""

    def __post_init__(self) -> None:
        for name in ("annotation_class", "image"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.project:
            raise ValueError("--project is missing; give the folder of a QuPath project.")
        if self.annotation_class and not self.annotations:
            raise ValueError("--annotation-class belongs to --annotations; give both.")
