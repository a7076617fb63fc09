"""Any network on CPUs through OpenVINO, float32.

Turning a network into OpenVINO's graph takes seconds (14 s for `lite` on a busy core, most of it torch's export), so it
can be done once, by `convert`, and its bytes handed to every worker.
"""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from cellmill.models.backends.contract import Backend, TileMaps
from cellmill.models.loading import ConvertedGraph, LoadedModel

__all__ = ["OpenVinoBackend", "convert"]


def convert(model: LoadedModel, *, batch_size: int) -> ConvertedGraph:
    """OpenVINO's graph of the quantising network for one batch shape."""
    # Only here, so that a worker that is handed the graph does without torch.
    import torch

    from cellmill.models.backends.quantising import QuantisingNetwork

    tile_px = model.config.tile_px
    example = torch.zeros((batch_size, tile_px, tile_px, 3), dtype=torch.uint8)
    graph = ov.convert_model(torch.export.export(QuantisingNetwork(model), (example,)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        ov.save_model(graph, path, compress_to_fp16=False)
        return ConvertedGraph(tile_px, batch_size, path.read_bytes(), path.with_suffix(".bin").read_bytes())


class OpenVinoBackend(Backend):
    """A network compiled by OpenVINO for this machine; converted first unless the model brings its graph."""

    def __init__(self, model: LoadedModel, *, batch_size: int, num_threads: int) -> None:
        graph = model.converted
        if graph is None or (graph.tile_px, graph.batch_size) != (model.config.tile_px, batch_size):
            graph = convert(model, batch_size=batch_size)
        core = ov.Core()
        options = {
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        read = core.read_model(graph.topology, ov.Tensor(np.frombuffer(graph.weights, np.uint8)))
        self._compiled = core.compile_model(read, "CPU", options)

    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of one full batch (B, tile, tile, 3)."""
        outputs = self._compiled([np.ascontiguousarray(batch)])
        return TileMaps(vectors=np.asarray(outputs[0], np.int16), prob=np.asarray(outputs[1], np.uint8))
