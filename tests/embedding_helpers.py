"""A model that knows cells and tells features by place, for tests of what is made of features."""

from dataclasses import dataclass, field

import numpy as np
from oracle import OracleModel

from cellmill.models.features import FeatureLayer, TileFeatures


@dataclass(frozen=True)
class FeatureOracle(OracleModel):
    """Its features are two numbers a position: where the position's middle lies, x and y in 1/16 px."""

    layer: FeatureLayer = field(default_factory=lambda: FeatureLayer("place", 4))

    def features_backend(self, device: str, *, with_maps: bool) -> str:
        return "oracle"

    def open_features(self, *, device: str, batch_size: int, num_threads: int, with_maps: bool) -> "PlaceSource":
        return PlaceSource(self)


class PlaceSource:
    num_tiles = 0

    def __init__(self, model: FeatureOracle) -> None:
        self._model = model
        self._maps = model.open(device="cpu", batch_size=1, num_threads=1)

    def features(self, batches):
        geometry, stride = self._model.geometry, self._model.layer.stride_px
        for batch in batches:
            PlaceSource.num_tiles += len(batch.indices)
            places = [
                np.stack(
                    np.meshgrid(
                        np.arange(geometry.core(i, j).x0, geometry.core(i, j).x1, stride) + stride / 2,
                        np.arange(geometry.core(i, j).y0, geometry.core(i, j).y1, stride) + stride / 2,
                    ),
                    axis=-1,
                )
                for i, j in batch.indices
            ]
            (maps,) = self._maps.predict([batch])
            yield TileFeatures((np.stack(places) / 16).astype(np.float32), maps)
