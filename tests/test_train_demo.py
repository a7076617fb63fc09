"""The whole training chain at its smallest: every job runs on what the one before it made."""

import json
from pathlib import Path

import polars as pl
import pytest

from cellmill_training.train_demo import main


@pytest.mark.slow
@pytest.mark.timeout(1200)
# Ray copies its own data context attribute by attribute and warns about some of them.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("ray_session")
def test_the_chain_goes_from_two_partly_labelled_data_sets_to_a_segmented_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["--out", str(tmp_path), "--size", "small", "--num-workers", "0", "--cpus-per-worker", "1"]) == 0
    table = (tmp_path / "results.md").read_text()
    for name in ("teacher", "resnet50 baseline", "student, taught", "student, alone"):
        assert f"| {name} |" in table
    verdict = (tmp_path / "student" / "comparison.md").read_text()
    assert "is better than" in verdict or "is not better than" in verdict
    promotions = json.loads((tmp_path / "done" / "promotions.json").read_text())
    assert promotions["student, alone"] == "promoted"  # the first of its name
    assert set(promotions.values()) <= {"promoted", "refused"}
    refusal = json.loads((tmp_path / "done" / "refusal.json").read_text())
    assert list(refusal.values()) == ["promoted", "refused"]
    status = pl.read_parquet(tmp_path / "cells" / "slides.parquet")
    assert status.height == 1
    assert "models:/cellmill-demo" in (tmp_path / "cells" / "cellset.json").read_text()
