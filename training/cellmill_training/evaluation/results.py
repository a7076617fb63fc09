"""An evaluation as files: `evaluation.json`, `images.parquet` (one row an image) and `evaluation.html`.

The Parquet holds each image's own figures and, as lists, every count that pooled figures are made of, so that another
pooling needs no second run.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill import __version__
from cellmill.metrics.figures import PER_IMAGE, POOLED
from cellmill.metrics.tally import ImageTally
from cellmill.models.loading import LoadedModel
from cellmill_training.evaluation.evaluating import Evaluation
from cellmill_training.evaluation.page import write_page
from cellmill_training.evaluation.references import ReferenceSet
from cellmill_training.tracking.revision import git_revision

__all__ = ["Resampling", "describe", "flat_metrics", "write_results"]

_NOT_IN_METRICS = re.compile(r"[^\w\-. :/]")
"""Characters that MLflow takes in no metric's name, and data sets may have in theirs."""


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn."""

    replicates: int = 1000
    by_group: bool = False
    seed: int = 0


def describe(
    evaluation: Evaluation,
    *,
    model: LoadedModel,
    references: ReferenceSet,
    resampling: Resampling,
    origins: tuple[str, ...] = (),
    mapping: str = "",
) -> dict[str, Any]:
    """What `evaluation.json` holds: what was measured on what, and every figure of every source and reading."""
    sets = {
        source: {
            reading: evaluation.figures(
                source,
                reading,
                by_group=resampling.by_group,
                num_replicates=resampling.replicates,
                seed=resampling.seed,
            ).to_json()
            for reading in evaluation.readings(source)
        }
        for source in evaluation.sources
    }
    return {
        "model": {
            "name": model.config.name,
            "source": model.source,
            "digest": model.digest,
            "ontology": model.config.ontology.name,
            "classes": list(model.config.ontology.names),
            "colors_rgb": [list(one.color_rgb) for one in model.config.ontology.classes],
            "target_mpp": model.config.target_mpp,
        },
        "dataset": {
            "name": references.name,
            "split": references.split,
            "digest": references.digest,
            "num_images": len(evaluation.images),
            "origins": list(origins),
            "mapping": mapping,
        },
        "settings": {
            "replicates": resampling.replicates,
            "resample": "groups" if resampling.by_group else "images",
            "seed": resampling.seed,
        },
        "cellmill_version": __version__,
        "git_revision": git_revision(),
        "sets": sets,
    }


def write_results(
    folder: Path,
    evaluation: Evaluation,
    document: Mapping[str, Any],
    pictures: Mapping[str, npt.NDArray[np.uint8]],
) -> list[Path]:
    """Write the three files, each whole or not at all; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(_table(evaluation), sink)
    contents = {
        "evaluation.json": (json.dumps(document, indent=2, allow_nan=False) + "\n").encode(),
        "images.parquet": sink.getvalue().to_pybytes(),
        "evaluation.html": write_page(document, pictures).encode("utf-8"),
    }
    for name, content in contents.items():
        partial = folder / (name + ".partial")
        partial.write_bytes(content)
        partial.replace(folder / name)
    return [folder / name for name in contents]


def flat_metrics(document: Mapping[str, Any]) -> dict[str, float]:
    """Defined figures by names that MLflow takes: `dsb18/strict/pq`, `all/strict/types/dead/f1`."""
    flat: dict[str, float] = {}

    def add(prefix: str, figures: Mapping[str, Any]) -> None:
        for name, figure in figures.items():
            if isinstance(figure, Mapping) and figure.get("value") is not None:
                flat[_NOT_IN_METRICS.sub("_", f"{prefix}/{name}")] = float(figure["value"])

    for source, readings in document["sets"].items():
        for reading, figures in readings.items():
            prefix = f"{source}/{reading}"
            add(prefix, figures["pooled"])
            add(f"{prefix}/per_image", figures["per_image"])
            add(f"{prefix}/mean_over_types", figures["means_over_types"])
            for name, one in figures["types"].items():
                if one["num_reference"]:
                    add(f"{prefix}/types/{name}", one)
    return flat


def _table(evaluation: Evaluation) -> pa.Table:
    """One row an image and reading."""
    columns: dict[str, list[Any]] = {}
    for one in evaluation.images:
        for reading in ("strict", "known") if one.has_unknown else ("strict",):
            tally: ImageTally = one.strict if reading == "strict" else one.known
            row: dict[str, Any] = {
                "image_id": one.image_id,
                "source": one.source,
                "group": one.group,
                "reading": reading,
                "num_reference": int(tally.cells[-1, 0]),
                "num_predicted": int(tally.cells[-1, 1]),
            }
            row |= {name: float(POOLED[name](tally)) for name in PER_IMAGE}
            row |= {f"count_{item.name}": getattr(tally, item.name).ravel().tolist() for item in fields(tally)}
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return pa.table(columns)
