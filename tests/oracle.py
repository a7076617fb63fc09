"""Slides with known cells, and a model that knows them: what the engine does is then all there is to see.

The oracle computes dense maps from the truth by a tile's place in the slide, not from its pixels. It is a
`CohortModel` like any network, and travels to Ray's workers the same way.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile

from cellmill.grid import TileGeometry
from cellmill.instances.mask_limits import MaskLimits
from cellmill_schemas.ontology import Ontology, get_ontology

GEOMETRY = TileGeometry(tile_px=192, margin_px=32)


@dataclass(frozen=True)
class Truth:
    """What is on a slide: labels (H, W) with cell k at label k + 1, and each cell's class index."""

    labels: np.ndarray
    types: np.ndarray  # (n,)

    @property
    def num_cells(self) -> int:
        return len(self.types)


def make_slide(
    path: Path,
    *,
    width: int = 1300,
    height: int = 900,
    seed: int = 0,
    mpp: tuple[float, float] | None = (0.5, 0.5),
    spacing: int = 34,
    corners: int = 512,
    glass_from_x: int | None = None,
) -> Truth:
    """Write a tiled TIFF of dark discs on pink, and its truth beside it (`<stem>.truth.npz`).

    Discs lie on a jittered grid, and exactly on every corner of fields of `corners` px. Nothing lies right of
    `glass_from_x`, which is white.
    """
    rng = np.random.default_rng(seed)
    right = width if glass_from_x is None else glass_from_x
    on_corners = [(x, y) for x in range(corners, right - 20, corners) for y in range(corners, height - 20, corners)]
    centres = list(on_corners)
    for y in range(spacing // 2, height - spacing // 2, spacing):
        for x in range(spacing // 2, right - spacing // 2, spacing):
            here = (x + int(rng.integers(-5, 6)), y + int(rng.integers(-5, 6)))
            if all(max(abs(here[0] - cx), abs(here[1] - cy)) > 26 for cx, cy in on_corners):
                centres.append(here)
    labels = np.zeros((height, width), np.int32)
    rows, columns = np.mgrid[:height, :width]
    for index, (cx, cy) in enumerate(centres):
        a, b = rng.uniform(7, 11, size=2)
        box = (slice(max(0, cy - 12), cy + 13), slice(max(0, cx - 12), cx + 13))
        inside = ((columns[box] - cx) / a) ** 2 + ((rows[box] - cy) / b) ** 2 <= 1
        labels[box][inside & (labels[box] == 0)] = index + 1
    types = rng.integers(0, 7, size=len(centres))
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = (225, 170, 205)
    pixels[labels > 0] = (90, 60, 140)
    pixels = np.clip(pixels.astype(np.int16) + rng.integers(-12, 13, size=pixels.shape), 0, 255).astype(np.uint8)
    pixels[:, right:] = 255
    write_tiff(path, pixels, mpp=mpp)
    np.savez(path.parent / f"{path.stem}.truth.npz", labels=labels, types=types)
    return Truth(labels, types)


def write_tiff(path: Path, pixels: np.ndarray, *, mpp: tuple[float, float] | None) -> None:
    """A tiled TIFF that OpenSlide opens; `mpp` becomes its resolution tags."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"}
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="zlib", **resolution)


def load_truth(folder: Path, slide_id: str) -> Truth:
    """The truth of a slide; one that has none holds no cells."""
    if not (folder / f"{slide_id}.truth.npz").exists():
        return Truth(np.zeros((4096, 4096), np.int32), np.zeros(0, np.int64))
    with np.load(folder / f"{slide_id}.truth.npz") as file:
        return Truth(file["labels"], file["types"])


@dataclass(frozen=True)
class OracleModel:
    """A model that knows the slides of `folder`; slide ids are their file stems."""

    folder: Path
    seconds_per_tile: float = 0.0
    hurry: Path | None = None
    """Tiles take no time once this file is there."""
    name: str = "oracle"
    digest: str = "oracle-1"
    version: str = ""
    ontology: Ontology = field(default_factory=lambda: get_ontology("refined7"))
    geometry: TileGeometry = GEOMETRY
    target_mpp: float = 0.5
    decoder: str = "flows"
    mask_limits: MaskLimits = field(default_factory=MaskLimits)

    def backend(self, device: str) -> str:
        return "oracle"

    def prepared(self, *, device: str, batch_size: int) -> "OracleModel":
        return self

    def open(self, *, device: str, batch_size: int, num_threads: int) -> "OracleSource":
        return OracleSource(self)


class OracleSource:
    """The oracle in a worker."""

    def __init__(self, model: OracleModel) -> None:
        self._model = model
        self._maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def predict(self, batches):
        for batch in batches:
            yield self._maps_of(batch.slide_id, batch.indices)

    def _maps_of(self, slide_id: str, tile_indices: np.ndarray):
        import time

        from cellmill.models.inference import TileMaps

        if self._model.hurry is None or not self._model.hurry.exists():
            time.sleep(self._model.seconds_per_tile * len(tile_indices))
        if slide_id not in self._maps:
            self._maps[slide_id] = oracle_maps(load_truth(self._model.folder, slide_id), len(self._model.ontology))
        flow, prob = self._maps[slide_id]
        stride = self._model.geometry.stride_px
        cores = [(slice(j * stride, (j + 1) * stride), slice(i * stride, (i + 1) * stride)) for i, j in tile_indices]
        return TileMaps(
            vectors=np.stack([_padded(flow[:, *core], stride, 0) for core in cores]),
            prob=np.stack([_padded(prob[:, *core], stride, 0) for core in cores]),
        )


def oracle_maps(truth: Truth, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantised maps of a whole slide: flow (2, H, W) and prob (C + 1, H, W)."""
    from cellmill.instances.maps import quantise_flow
    from cellmill.instances.targets import masks_to_flows

    classes = np.concatenate([[0], truth.types + 1])[truth.labels]  # (H, W)
    prob = np.stack([np.where(classes == index, 255, 0) for index in range(num_classes + 1)]).astype(np.uint8)
    return quantise_flow(masks_to_flows(truth.labels)), prob


def _padded(array: np.ndarray, stride: int, value: int) -> np.ndarray:
    missing = ((0, 0), (0, stride - array.shape[1]), (0, stride - array.shape[2]))
    return np.pad(array, missing, constant_values=value)
