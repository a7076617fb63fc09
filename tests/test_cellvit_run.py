"""A network of the hv family through a whole cohort run: tiles, maps, watershed, votes, tables and masks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
import torch
import zarr
from cohort_helpers import run
from oracle import load_truth, make_slide
from tiny_models import tiny_config
from torch.nn import functional

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.context import make_context
from cellmill.cohort.sources import NetworkModel
from cellmill.instances.flow_decoder import FlowDecoder
from cellmill.instances.hv_decoder import HvDecoder
from cellmill.instances.targets import masks_to_hv
from cellmill.instances.testing import matched_fraction
from cellmill.models.loading import load_model, save_model
from cellmill.models.networks import CellNetwork, build_model

NUM_STEPS = 160


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    make_slide(folder / "a.tif", width=700, height=500)
    make_slide(folder / "learnt.tif", width=700, height=700, seed=1)
    return folder


@pytest.fixture(scope="module")
def cellvit(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> NetworkModel:
    """A tiny CellViT that has seen one slide for some seconds, saved and loaded as any other."""
    config = replace(tiny_config("cellvit", tile_px=128, margin_px=24), name="tiny")
    torch.manual_seed(0)
    network = build_model(config)
    truth = load_truth(slides, "learnt")
    _fit(network, tifffile.imread(slides / "learnt.tif"), truth.labels, truth.types)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(config, network.state_dict(), folder)
    return NetworkModel(load_model(folder)).prepared(device="cpu", batch_size=1)


def _fit(network: CellNetwork, image: np.ndarray, labels: np.ndarray, types: np.ndarray) -> None:
    """CellViT's tasks with the plainest losses: cross-entropy for nuclei and types, squared error for distances."""
    hv = torch.from_numpy(masks_to_hv(labels))
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    wanted = torch.from_numpy(np.concatenate([[0], types + 1])[labels]).long()
    channels, random = network.config.channels, np.random.default_rng(0)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=3e-3)
    network.train()
    for _ in range(NUM_STEPS):
        places = [(slice(y, y + 64), slice(x, x + 64)) for y, x in random.integers(0, 600, size=(4, 2))]
        outputs = network(torch.stack([pixels[:, *place] for place in places]))
        target = torch.stack([wanted[place] for place in places])
        away = (outputs[:, channels["hv"]] - torch.stack([hv[:, *place] for place in places])) ** 2
        loss = functional.cross_entropy(outputs[:, channels["nucleus"]], (target > 0).long())
        loss = loss + 0.1 * functional.cross_entropy(outputs[:, channels["type"]], target)
        loss = loss + 2.0 * (away.sum(dim=1) * (target > 0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.slow
def test_a_cellvit_finds_the_nuclei_of_a_slide_it_has_not_seen(
    slides: Path, cellvit: NetworkModel, tmp_path: Path
) -> None:
    report = run(slides / "a.tif", tmp_path, cellvit, tissue="none")
    assert report.all_done, [status.reasons for status in report.statuses]
    cells = pl.read_parquet(tmp_path / "cells/a.parquet")
    mask = np.asarray(zarr.open_group(tmp_path / "masks/a.ome.zarr", mode="r")["0"][:])
    truth = load_truth(slides, "a")
    ids = np.unique(mask[mask > 0])
    assert set(ids.tolist()) == set(cells["mask_id"].to_list())
    numbered = np.searchsorted(np.concatenate([[0], ids]), mask)
    assert matched_fraction(numbered, truth.labels, iou_min=0.6) > 0.9
    assert cells["detection_prob"].min() > 0.5  # type: ignore[operator]
    sums = np.array(cells["type_prob"].to_list()).sum(axis=1)
    assert abs(sums - 1).max() < 0.02
    settings = json.loads((tmp_path / "cellset.json").read_text())["config"]
    assert settings["decoder"]["kind"] == "hv"
    assert (settings["decoder"]["sobel_px"], settings["decoder"]["min_marker_px"]) == (11, 3)


@pytest.mark.slow
def test_its_cells_do_not_depend_on_field_size_or_strips(slides: Path, cellvit: NetworkModel, tmp_path: Path) -> None:
    tables, masks = [], []
    for name, settings in (("whole", {"field_px": 1024}), ("parts", {"field_px": 256, "num_workers": 3})):
        assert run(slides / "a.tif", tmp_path / name, cellvit, tissue="none", **settings).all_done  # type: ignore[arg-type]
        tables.append((tmp_path / name / "cells/a.parquet").read_bytes())
        masks.append(np.asarray(zarr.open_group(tmp_path / name / "masks/a.ome.zarr", mode="r")["0"][:]))
    assert tables[0] == tables[1]
    assert np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize(("architecture", "kind"), [("cellvit", HvDecoder), ("teacher", FlowDecoder)])
def test_a_run_decodes_with_its_networks_family(architecture: str, kind: type, tmp_path: Path) -> None:
    config = tiny_config("cellvit" if architecture == "cellvit" else "teacher")
    torch.manual_seed(0)
    save_model(config, build_model(config).state_dict(), tmp_path / "model")
    settings = SegmentCohortConfig(slides=("a.tif",), out=str(tmp_path / "out"), device="cpu")
    context = make_context(settings, NetworkModel(load_model(tmp_path / "model")), device="cpu", secret=None)
    assert isinstance(context.decoder, kind)
    assert context.identity.config["decoder"]["kind"] == config.decoder
    assert context.backend == "openvino"
