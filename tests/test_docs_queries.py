"""docs/queries.md is true: its Python runs from top to bottom on a made-up cohort whose outcomes follow its TILs."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fabricated_cells import REFINED7, PlacedCells, write_cell_set

PAGE = Path(__file__).resolve().parents[1] / "docs" / "queries.md"


def tumour_slide(seed: int, *, num_lymphocytes: int) -> PlacedCells:
    """A neoplastic disc in connective tissue, lymphocytes in the tissue around it."""
    rng = np.random.default_rng(seed)
    xy_um = rng.uniform(10, (790, 590), (1200, 2))
    in_tumour = np.hypot(xy_um[:, 0] - 400, xy_um[:, 1] - 300) < 180
    types = np.where(in_tumour, REFINED7.index("neoplastic"), REFINED7.index("connective"))
    around = rng.uniform(10, (790, 590), (4 * num_lymphocytes, 2))
    around = around[np.hypot(around[:, 0] - 400, around[:, 1] - 300) > 200][:num_lymphocytes]
    types = np.concatenate([types, np.full(len(around), REFINED7.index("lymphocyte"))])
    xy_um = np.concatenate([xy_um, around])
    return PlacedCells(xy_um, types, (800.0, 600.0), rng.uniform(0.5, 1.0, len(xy_um)))


def make_cohort(folder: Path) -> None:
    """Twelve patients with one or two slides; more lymphocytes, longer lives and likelier responses."""
    rng = np.random.default_rng(0)
    slides: dict[str, PlacedCells] = {}
    rows: list[dict[str, object]] = []
    for patient in range(12):
        num_lymphocytes = int(rng.integers(40, 500))
        months = round(float(rng.exponential(6 + num_lymphocytes / 10)), 1) + 0.5
        for letter in "ab"[: 1 + patient % 2]:
            slide_id = f"p{patient:02d}_{letter}"
            slides[slide_id] = tumour_slide(len(slides), num_lymphocytes=num_lymphocytes)
            rows.append(
                {
                    "patient_id": f"p{patient:02d}",
                    "slide_id": slide_id,
                    "months": min(months, 60.0),
                    "died": int(months < 60),
                    "response": "yes" if num_lymphocytes + rng.normal(0, 80) > 250 else "no",
                }
            )
    slides["p99_a"] = PlacedCells(np.zeros((0, 2)), [], (800.0, 600.0))
    write_cell_set(folder / "out", slides, failed={"p98_a": "Truncated."})
    pl.DataFrame(rows).write_csv(folder / "clinical.csv")


# lifelines and matplotlib warn of their own and of each other's future.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning")
def test_every_python_block_of_the_page_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cohort(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) >= 8
    names: dict[str, object] = {}
    for block in blocks:
        # Empty lines in front, so that an error names the page's own line.
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
    assert (tmp_path / "survival.png").stat().st_size > 5000
    assert (tmp_path / "response.png").stat().st_size > 3000
    biomarkers = names["biomarkers"]
    assert isinstance(biomarkers, pl.DataFrame)
    assert biomarkers.height == 12
    assert biomarkers["num_slides"].to_list() == [1, 2] * 6
    assert biomarkers.null_count().sum_horizontal().item() == 0
    assert "log-rank p" in capsys.readouterr().out


def test_the_r_example_is_marked_as_not_run() -> None:
    before = PAGE.read_text(encoding="utf-8").split("```r")[0]
    assert before.rstrip().endswith("**This example is not run here.**")
