"""Images to cells, one whole image at a time, as a cohort run would find them.

Consumes an image at the network's scale, produces label image and type probabilities. The plain network `lite` takes
the whole image in one pass in eager float32 torch, mirrored at the borders, so that no seam enters its figures.
Networks that look at the whole of what they are given (attention, position embeddings) get their own tiles, with the
margins that they have in a run.
"""

from dataclasses import dataclass
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch

from cellmill.grid import TileGeometry
from cellmill.instances.choosing import make_decoder
from cellmill.instances.decoder import Decoder, Instances
from cellmill.instances.flow_decoder import FlowDecoder
from cellmill.instances.hv_decoder import HvDecoder
from cellmill.instances.maps import ClassMaps, DenseMaps, HvMaps, quantise_flow, quantise_prob
from cellmill.models.config import FLOW_CHANNELS, ModelConfig
from cellmill.models.inference import DeviceKind, Segmenter
from cellmill.models.loading import LoadedModel
from cellmill.models.networks import CellNetwork

__all__ = ["CellPredictor", "PredictedCells", "decoded", "predicted_maps", "tiles_of", "voted_types"]

PixelT = TypeVar("PixelT", np.int16, np.uint8)

_PAD_PX = 32
_MULTIPLE = 64
_WHOLE_IMAGE = ("lite",)
"""Architectures that are convolutions alone."""


@dataclass(frozen=True)
class PredictedCells:
    """Cells of one image at the network's scale."""

    labels: npt.NDArray[np.int32]  # (H, W), 0 background
    type_prob: npt.NDArray[np.float64]  # (m + 1, C), row k is cell k; row 0 is not used


class CellPredictor:
    """A model that is ready to find the cells of whole images."""

    def __init__(self, model: LoadedModel, *, device: DeviceKind = "cpu", num_threads: int = 1) -> None:
        torch.set_num_threads(num_threads)
        self.model = model
        self._network: CellNetwork | None = None
        self._segmenter: Segmenter | None = None
        if device == "cpu" and model.config.architecture in _WHOLE_IMAGE:
            self._network = model.build()
        else:
            backend = "reference" if device == "cpu" else "fast"
            self._segmenter = Segmenter.open(
                model, device=device, batch_size=1, num_threads=num_threads, backend=backend
            )

    def predict(self, image: npt.NDArray[np.uint8]) -> PredictedCells:
        """Cells of an image (H, W, 3) at the model's `target_mpp`."""
        maps = predicted_maps(self._network, image) if self._network is not None else self._tiled_maps(image)
        labels = decoded(maps, self.model.config).labels
        return PredictedCells(labels, voted_types(labels, maps))

    def _tiled_maps(self, image: npt.NDArray[np.uint8]) -> DenseMaps | HvMaps:
        assert self._segmenter is not None
        tiles, columns = tiles_of(image, self._segmenter.geometry)
        found = self._segmenter.predict(tiles)
        vectors = _joined(found.vectors, columns, image.shape[:2])
        prob = _joined(found.prob, columns, image.shape[:2])
        return _decoder(self.model.config).maps(vectors, prob, (0, 0))


def tiles_of(image: npt.NDArray[np.uint8], geometry: TileGeometry) -> tuple[npt.NDArray[np.uint8], int]:
    """Tiles (N, tile, tile, 3) that cover an image row by row, mirrored beyond its borders, and how many make a row."""
    stride, tile, margin = geometry.stride_px, geometry.tile_px, geometry.margin_px
    height, width = image.shape[:2]
    rows, columns = -(-height // stride), -(-width // stride)
    bottom, right = rows * stride - height + margin, columns * stride - width + margin
    padded = cv2.copyMakeBorder(image, margin, bottom, margin, right, cv2.BORDER_REFLECT_101)
    places = [(row * stride, column * stride) for row in range(rows) for column in range(columns)]
    return np.stack([padded[y : y + tile, x : x + tile] for y, x in places]).astype(np.uint8), columns


def _joined(cores: npt.NDArray[PixelT], columns: int, shape: tuple[int, ...]) -> npt.NDArray[PixelT]:
    """Cores (N, K, stride, stride), row by row, as one map (K, H, W)."""
    num_tiles, channels, stride, _ = cores.shape
    grid = cores.reshape(num_tiles // columns, columns, channels, stride, stride)
    whole = grid.transpose(2, 0, 3, 1, 4).reshape(channels, -1, columns * stride)
    return np.ascontiguousarray(whole[:, : shape[0], : shape[1]])


def predicted_maps(network: CellNetwork, image: npt.NDArray[np.uint8]) -> DenseMaps:
    """Maps of a whole image at the network's scale, in one pass, mirrored at its borders."""
    height, width = image.shape[:2]
    bottom, right = (_PAD_PX + -(side + 2 * _PAD_PX) % _MULTIPLE for side in (height, width))
    padded = cv2.copyMakeBorder(image, _PAD_PX, bottom, _PAD_PX, right, cv2.BORDER_REFLECT_101)
    batch = torch.from_numpy(padded).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    with torch.inference_mode():
        outputs = network(batch)[0, :, _PAD_PX : _PAD_PX + height, _PAD_PX : _PAD_PX + width]
        prob = torch.softmax(outputs[FLOW_CHANNELS:], dim=0)
    flow = quantise_flow(outputs[:FLOW_CHANNELS].numpy())
    return DenseMaps(flow, quantise_prob(prob.numpy()), (0, 0))


def decoded(maps: DenseMaps | HvMaps, config: ModelConfig) -> Instances:
    """Instances as a run of the model finds them in these maps of its own."""
    return cast("Decoder[Any]", _decoder(config)).decode(maps)


def _decoder(config: ModelConfig) -> FlowDecoder | HvDecoder:
    return make_decoder(config.decoder, mpp=config.target_mpp, limits=config.mask_limits)


def voted_types(labels: npt.NDArray[np.int32], maps: ClassMaps) -> npt.NDArray[np.float64]:
    """Type probabilities (m + 1, C): the vote of a cell's pixels, background left out and the rest scaled to 1."""
    size = int(labels.max(initial=0)) + 1
    sums = [
        np.bincount(labels.ravel(), weights=plane.ravel().astype(np.float64), minlength=size) for plane in maps.prob[1:]
    ]
    votes = np.stack(sums, axis=1)
    return votes / np.maximum(votes.sum(axis=1, keepdims=True), 1e-9)
