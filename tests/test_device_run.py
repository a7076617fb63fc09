"""A run whose maps stay on the device that makes them writes what a run with maps on the host writes.

Shown on CPU tensors, which take the very path of a GPU's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
import zarr
from cohort_helpers import run
from oracle import OracleModel, make_slide, write_tiff
from tiny_models import tiny_config, tiny_model

from cellmill.cohort.engine import serial_engine
from cellmill.cohort.sources import MapSource, NetworkModel, NetworkSource, TileBatch
from cellmill.grid import Box, TileGeometry
from cellmill.instances.flow_decoder import FlowDecoder
from cellmill.models.backends.contract import DeviceMaps, TileMaps
from cellmill.models.backends.torch_cuda import TorchCudaBackend
from cellmill.models.inference import Segmenter
from cellmill.models.loading import load_model
from cellmill.synthetic.tissue import render_region


@dataclass(frozen=True)
class DeviceOracle(OracleModel):
    """The oracle with maps on a device, which hold, as a GPU's do, until the next batch but one is asked for."""

    def open(self, *, device: str, batch_size: int, num_threads: int) -> MapSource:
        return _DeviceSource(super().open(device=device, batch_size=batch_size, num_threads=num_threads))


class _DeviceSource:
    def __init__(self, source: MapSource) -> None:
        self._source = source

    def predict(self, batches: Iterable[TileBatch]) -> Iterator[DeviceMaps]:
        slots: list[DeviceMaps] = []
        for maps in self._source.predict(batches):
            assert isinstance(maps, TileMaps)
            slots.append(DeviceMaps(torch.from_numpy(maps.vectors), torch.from_numpy(maps.prob)))
            yield slots[-1]
            if len(slots) == 2:
                old = slots.pop(0)
                old.vectors.fill_(-1)
                old.prob.fill_(77)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    make_slide(folder / "a.tif", width=620, height=420, glass_from_x=580, corners=256)
    return folder


def _made(out: Path) -> tuple[bytes, np.ndarray]:
    mask = zarr.open_group(out / "masks" / "a.ome.zarr", mode="r")["0"][:]
    return (out / "cells" / "a.parquet").read_bytes(), np.asarray(mask)


@pytest.mark.parametrize(
    ("settings", "num_finishers"),
    [({"field_px": 256, "batch_size": 3}, 2), ({"field_px": 512, "batch_size": 1}, 0)],
    ids=["small fields, finished beside the network", "large fields, finished in turn"],
)
def test_maps_left_on_the_device_make_the_same_records(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], num_finishers: int
) -> None:
    engine = partial(serial_engine, num_finishers=num_finishers)
    assert run(slides, tmp_path / "host", OracleModel(slides), engine=engine, **settings).all_done

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("maps were decoded on the host")

    monkeypatch.setattr(FlowDecoder, "decode", refuse)
    assert run(slides, tmp_path / "device", DeviceOracle(slides), engine=engine, **settings).all_done
    table, mask = _made(tmp_path / "host")
    found, found_mask = _made(tmp_path / "device")
    assert found == table
    assert np.array_equal(found_mask, mask)
    assert mask.any()


@dataclass(frozen=True)
class DeviceNetwork(NetworkModel):
    """`lite` on the path of a GPU; its maps stay there or are fetched."""

    stays: bool = True

    def backend(self, device: str) -> str:
        return "torch"

    def prepared(self, *, device: str, batch_size: int) -> "DeviceNetwork":
        return self

    def open(self, *, device: str, batch_size: int, num_threads: int) -> MapSource:
        backend = TorchCudaBackend(self.loaded, batch_size=batch_size, num_threads=num_threads, device="cpu")
        num_classes = len(self.ontology)
        segmenter = Segmenter(backend, geometry=self.geometry, batch_size=batch_size, num_classes=num_classes)
        return NetworkSource(segmenter, "flows" if self.stays else "hv")


def test_a_network_on_the_path_of_a_gpu_makes_the_same_records_with_maps_there_and_here(tmp_path: Path) -> None:
    tissue = render_region(3, Box(2000, 2000, 2540, 2400)).image
    write_tiff(tmp_path / "slides" / "a.tif", tissue, mpp=(0.5, 0.5))
    for name, stays in (("device", True), ("host", False)):
        model = DeviceNetwork(load_model("lite"), stays)
        report = run(tmp_path / "slides", tmp_path / name, model, field_px=512, batch_size=2, num_workers=1)
        assert report.all_done
        assert report.statuses[0].num_cells > 20
    table, mask = _made(tmp_path / "host")
    found, found_mask = _made(tmp_path / "device")
    assert found == table
    assert np.array_equal(found_mask, mask)


def test_a_network_leaves_flows_on_the_device_and_brings_other_maps_to_the_host() -> None:
    model = tiny_model(tiny_config("lite"))
    config = model.config
    backend = TorchCudaBackend(model, batch_size=2, num_threads=1, device="cpu")
    geometry = TileGeometry(tile_px=config.tile_px, margin_px=config.margin_px)
    segmenter = Segmenter(backend, geometry=geometry, batch_size=2, num_classes=len(config.ontology))
    tiles = np.random.default_rng(0).integers(0, 256, (3, config.tile_px, config.tile_px, 3), np.uint8)
    batch = TileBatch("s", np.array([[0, 0], [1, 0]]), tiles[:2])
    last = replace(batch, indices=batch.indices[:1], pixels=tiles[2:])
    expected = segmenter.predict(tiles)
    start = 0
    for left, brought in zip(
        NetworkSource(segmenter, "flows").predict([batch, last]),
        NetworkSource(segmenter, "hv").predict([batch, last]),
        strict=True,
    ):
        assert isinstance(left, DeviceMaps) and isinstance(brought, TileMaps)
        stop = start + len(brought.prob)
        for maps in (TileMaps(left.vectors.numpy(), left.prob.numpy()), brought):
            assert np.array_equal(maps.vectors, expected.vectors[start:stop])
            assert np.array_equal(maps.prob, expected.prob[start:stop])
        start = stop
    assert start == len(tiles)
