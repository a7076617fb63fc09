"""`train-student`: settings, and a run on Ray Train that goes on from its checkpoint."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cellmill.models.loading import load_model
from cellmill_training.job import TrainStudentSettings, main


def _write_dsb18(folder: Path) -> None:
    """Two images in the layout of the dsb18 set."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["image,width_px,height_px,num_nuclei,stain_group,parent_field"]
    for number in range(2):
        labels = np.zeros((96, 96), np.uint16)
        for label in range(1, 9):
            x, y = (int(value) for value in rng.integers(12, 84, 2))
            cv2.circle(labels, (x, y), 8, float(label), -1)
        image = np.where(labels[..., None] > 0, (140, 70, 150), (235, 230, 238)).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"i{number}.png"), image)
        cv2.imwrite(str(folder / "labels" / f"i{number}.png"), labels)
        lines.append(f"i{number},96,96,8,purple_on_white,{number}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_bad_settings_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data"):
        TrainStudentSettings(data=str(tmp_path / "absent"), out="x")
    with pytest.raises(ValueError, match="--out"):
        TrainStudentSettings(data=str(tmp_path))
    with pytest.raises(ValueError, match="not be negative"):
        TrainStudentSettings(data=str(tmp_path), out="x", num_workers=-1)


@pytest.mark.timeout(600)
# Ray copies its own data context attribute by attribute and warns about some of them.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("ray_session")
def test_a_run_on_ray_train_writes_a_model_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    _write_dsb18(tmp_path / "data" / "nuclei" / "dsb18")
    common = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--batch-size", "2", "--device", "cpu"]
    common += ["--synthetic-regions", "0", "--cpus-per-worker", "1", "--max-failures", "0"]
    assert main([*common, "--max-steps", "2"]) == 0
    first = load_model(tmp_path / "out" / "model")
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"] == 2
    assert main([*common, "--max-steps", "3"]) == 0
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert load_model(tmp_path / "out" / "model").digest != first.digest
