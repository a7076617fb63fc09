"""The short form of the chaos suite: a few dozen faults, and outputs as of a quiet run."""

from pathlib import Path

from chaos import chaos


def test_outputs_under_fire_are_those_of_a_quiet_run_byte_for_byte(tmp_path: Path) -> None:
    happened = chaos(tmp_path, seed=7, num_faults=10)
    assert happened.total() >= 10
    assert len(happened) >= 3
