"""Promotion: who becomes champion, who is refused and by which figure, and what a cohort run makes of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cohort_helpers import RecordedProgress
from metric_helpers import random_tallies

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.engine import serial_engine
from cellmill.cohort.run import run_cohort
from cellmill.cohort.sources import NetworkModel
from cellmill.metrics.tally import ImageTally
from cellmill.models import agreement as agreement_module
from cellmill.models.agreement import Agreement
from cellmill.models.loading import ModelNotFoundError, load_model, save_model
from cellmill.models.mlflow_client import open_client, tracking_uri
from cellmill_training.datasets.readers.synthetic import render_images
from cellmill_training.datasets.store import write_dataset
from cellmill_training.tracking import promotion_job
from cellmill_training.tracking.promotion import Gate, compare, judge
from cellmill_training.tracking.promotion_job import DISAGREES, PROMOTED, REFUSED, UNUSABLE, main

AGREES = Agreement("compiled on cpu", 1.0)


def _worse(images: ImageTally, lost: float) -> ImageTally:
    """The same images with a share of the true positives lost."""
    panoptic, types = images.panoptic.copy(), images.types.copy()
    panoptic[:, 2] += lost * panoptic[:, 0]
    panoptic[:, [0, 3]] *= 1 - lost
    types[..., 4] += lost * types[..., 0]
    types[..., [0, 5]] *= 1 - lost
    return replace(images, panoptic=panoptic, types=types)


# The verdict.


def test_a_model_equal_to_the_champion_passes_with_no_margin_at_all() -> None:
    images = random_tallies(6)
    verdict = judge(images, images, agreement=AGREES, gate=Gate(margin=0.0))
    assert verdict.accepted
    assert [one.low for one in verdict.comparisons] == [0.0, 0.0]


def test_a_worse_model_is_refused_by_its_figures_and_a_wide_margin_lets_it_pass() -> None:
    images = random_tallies(20)
    verdict = judge(_worse(images, 0.2), images, agreement=AGREES, gate=Gate(margin=0.02))
    assert not verdict.accepted
    assert len(verdict.reasons()) == 2
    assert "PQ" in verdict.reasons()[0] and "mean F1 of types" in verdict.reasons()[1]
    assert judge(_worse(images, 0.2), images, agreement=AGREES, gate=Gate(margin=0.4)).accepted


def test_a_better_model_passes() -> None:
    images = random_tallies(20)
    assert judge(images, _worse(images, 0.2), agreement=AGREES, gate=Gate(margin=0.0)).accepted


def test_a_first_champion_is_held_against_the_minima() -> None:
    images = random_tallies(6)
    assert judge(images, None, agreement=AGREES, gate=Gate()).accepted
    verdict = judge(images, None, agreement=AGREES, gate=Gate(min_pq=0.99))
    assert not verdict.accepted
    assert "below the minimum of 0.99" in verdict.reasons()[0]


def test_a_backend_that_disagrees_refuses_whatever_the_figures() -> None:
    images = random_tallies(6)
    verdict = judge(images, images, agreement=Agreement("openvino on cpu", 0.9), gate=Gate())
    assert verdict.good_enough
    assert not verdict.accepted
    assert "openvino on cpu disagrees" in verdict.reasons()[0]


def test_models_measured_on_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same images"):
        compare(random_tallies(4, seed=1), random_tallies(5, seed=1), gate=Gate())


# The job, on a real store.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a data set, three models and an embedded store in which lite is champion already."""
    place = tmp_path_factory.mktemp("promotion")
    images = list(render_images(range(4), side_px=192))
    splits = {one.split_group: "test" for one in images}
    write_dataset(place / "data", images, ontology=load_model("lite").config.ontology, splits=splits, name="tiny")
    lite = load_model("lite")
    config = replace(lite.config, tile_px=160, margin_px=32)
    save_model(config, lite.state_dict(), place / "good")
    torch.manual_seed(0)
    for name, share in (("as_good", 1e-5), ("bad", 0.4)):
        noisy = {key: _noisy(value, share) for key, value in lite.state_dict().items()}
        save_model(config, noisy, place / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(place)
        assert main(_arguments("good")) == PROMOTED
        yield place


def _noisy(value: torch.Tensor, share: float) -> torch.Tensor:
    if not value.is_floating_point() or value.ndim < 2:
        return value
    return value + share * value.std() * torch.randn_like(value)


def _arguments(model: str, *more: str) -> list[str]:
    return ["--model", model, "--to", "champion", "--dataset", "data", "--device", "cpu", "--num-threads", "1", *more]


def _champion() -> str:
    client = open_client(tracking_uri())
    return str(client.get_model_version_by_alias("cellmill-lite", "champion").version)


@pytest.mark.usefixtures("folder")
def test_a_first_champion_is_registered_as_a_plain_folder_and_says_that_there_was_none() -> None:
    loaded = load_model("models:/cellmill-lite/1")
    assert loaded.digest == load_model("good").digest
    found = open_client(tracking_uri()).get_model_version("cellmill-lite", "1")
    assert found.tags["decision"] == "accepted"
    assert found.tags["champion_before"].startswith("none")
    assert found.tags["evaluation_set"] == "tiny/test"


@pytest.mark.usefixtures("folder")
def test_the_champion_again_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = _champion()
    assert main(_arguments("models:/cellmill-lite@champion")) == PROMOTED
    assert "nothing to do" in capsys.readouterr().out
    assert _champion() == before


@pytest.mark.usefixtures("folder")
def test_a_worse_model_is_refused_with_its_figure_and_the_alias_stays(capsys: pytest.CaptureFixture[str]) -> None:
    before = _champion()
    assert main(_arguments("bad")) == REFUSED
    said = capsys.readouterr().err
    assert "PQ" in said and "worse" in said
    assert _champion() == before
    refused = max(open_client(tracking_uri()).search_model_versions("name='cellmill-lite'"), key=_number)
    assert refused.tags["decision"] == "refused"
    assert "PQ" in refused.tags["verdict"]
    assert not refused.aliases


def _number(version: object) -> int:
    return int(version.version)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("folder")
def test_backends_that_disagree_are_refused_with_a_code_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _champion()
    monkeypatch.setattr(agreement_module, "share_within", lambda ours, theirs: 0.5)
    assert main(_arguments("as_good")) == DISAGREES
    assert "disagrees with eager torch: 50" in capsys.readouterr().err
    assert _champion() == before


@pytest.mark.usefixtures("folder")
def test_a_cohort_run_takes_the_champion_and_its_cell_set_names_the_version(tmp_path: Path) -> None:
    import tifffile

    image = next(iter(render_images([9], side_px=400))).image
    tifffile.imwrite(
        tmp_path / "a.tif", image, tile=(128, 128), photometric="rgb", resolution=(20000, 20000), resolutionunit=3
    )
    model = NetworkModel(load_model("models:/cellmill-lite@champion"))
    config = SegmentCohortConfig(
        slides=(str(tmp_path / "a.tif"),), out=str(tmp_path / "out"), device="cpu", field_px=512, num_workers=1
    )
    report = run_cohort(config, model, progress=RecordedProgress(), engine=serial_engine)
    assert report.all_done, report.statuses
    assert report.statuses[0].num_cells > 10
    document = json.loads((tmp_path / "out" / "cellset.json").read_text())
    assert document["model_version"] == f"models:/cellmill-lite/{_champion()}"
    # The same weights by another name go on with the same cell set.
    by_folder = replace(model.loaded, source="good")
    assert run_cohort(config, NetworkModel(by_folder), progress=RecordedProgress(), engine=serial_engine).all_done


@pytest.mark.usefixtures("folder")
def test_force_needs_a_reason_and_the_reason_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(_arguments("bad", "--force"))
    assert stopped.value.code == UNUSABLE
    assert "--reason" in capsys.readouterr().err
    before = _champion()
    assert main(_arguments("bad", "--force", "--reason", "the other one is licensed")) == PROMOTED
    assert _champion() != before
    client = open_client(tracking_uri())
    found = client.get_model_version("cellmill-lite", _champion())
    assert found.tags["forced_because"] == "the other one is licensed"
    assert found.tags["champion_before"] == f"models:/cellmill-lite/{before}"
    client.set_registered_model_alias("cellmill-lite", "champion", before)


@pytest.mark.usefixtures("folder")
def test_a_champion_that_changed_meanwhile_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client, before = open_client(tracking_uri()), _champion()
    compared = promotion_job._judge

    def judged_while_another_promotes(*arguments: Any) -> Any:
        client.set_registered_model_alias("cellmill-lite", "champion", "2")
        return compared(*arguments)

    monkeypatch.setattr(promotion_job, "_judge", judged_while_another_promotes)
    assert main(_arguments("as_good")) == UNUSABLE
    assert "changed while" in capsys.readouterr().err
    assert _champion() == "2"
    client.set_registered_model_alias("cellmill-lite", "champion", before)


# What is not there.


@pytest.mark.usefixtures("folder")
def test_an_unknown_alias_names_those_there_are() -> None:
    with pytest.raises(ModelNotFoundError, match=r"champion \(version 1\)"):
        load_model("models:/cellmill-lite@nobody")
    with pytest.raises(ModelNotFoundError, match="cellmill-lite"):
        load_model("models:/no-such-model/1")
    with pytest.raises(ModelNotFoundError, match="models:/<name>/<version>"):
        load_model("models:/cellmill-lite")


def test_a_missing_registry_is_said_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="MLFLOW_TRACKING_URI"):
        load_model("models:/cellmill-lite@champion")
    assert not list(tmp_path.iterdir())


def test_a_registry_that_does_not_answer_is_an_error_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(_arguments("good")) == UNUSABLE
    assert "MLFLOW_TRACKING_URI" in capsys.readouterr().err


@pytest.mark.parametrize("alias", ["v3", "latest", "a b"])
def test_an_alias_that_mlflow_reserves_is_refused_before_anything_runs(
    alias: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--model", "lite", "--dataset", "data", "--to", alias])
    assert stopped.value.code == UNUSABLE
    assert "--to" in capsys.readouterr().err


def test_a_data_set_that_is_not_there_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "good", "--dataset", str(folder / "absent"), "--device", "cpu"]) == UNUSABLE
    assert "no data set" in capsys.readouterr().err


def test_maps_that_differ_are_outside_the_tolerance() -> None:
    from cellmill.models.backends.contract import TileMaps

    vectors, prob = np.zeros((1, 2, 4, 4), np.int16), np.zeros((1, 3, 4, 4), np.uint8)
    shifted = prob.copy()
    shifted[0, 1, 0, :2] = 3
    ours, theirs = TileMaps(vectors=vectors, prob=prob), TileMaps(vectors=vectors, prob=shifted)
    assert agreement_module.share_within(ours, ours) == 1.0
    assert agreement_module.share_within(ours, theirs) == 14 / 16
