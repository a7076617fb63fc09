"""A cohort on several real Ray nodes under fire, and one with poisoned slides: the short form of `chaos_ray.py`."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def happened(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What `chaos_short` tells; it asserts by itself that outputs are those of a quiet run, byte for byte."""
    told = tmp_path_factory.mktemp("chaos") / "told.json"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, str(TESTS / "chaos_short.py"), str(told)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(told.read_text(encoding="utf-8"))


@pytest.mark.timeout(1800)  # a cluster and two cohorts: a minute or two when nothing else runs
def test_outputs_under_fire_on_a_cluster_are_those_of_a_quiet_run(happened: Mapping[str, Any]) -> None:
    faults = happened["fire"]["faults"]
    assert faults["node killed"] == 1 and faults["worker killed before its write"] == 1
    assert happened["fire"]["drivers"] == 1  # nothing of it stops a run


@pytest.mark.timeout(1800)
def test_a_node_that_joins_during_a_run_is_used(happened: Mapping[str, Any]) -> None:
    assert (happened["fire"]["nodes_at_first"], happened["fire"]["nodes_at_last"]) == (1, 2)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("slide_id", "words"),
    [
        ("crashes_at_read", ["failed 2 times", "SIGSEGV"]),
        ("eats_memory", ["failed 2 times", "512 MiB allowed"]),
        ("hangs", ["failed 2 times", "no answer in 12 s"]),
        ("kills_its_worker", ["ended its worker's process 2 times", "--max-attempts"]),
    ],
)
def test_a_poisoned_slide_is_set_aside_with_its_reason(
    happened: Mapping[str, Any], slide_id: str, words: list[str]
) -> None:
    outcome, *reasons = happened["poison"]["statuses"][slide_id]
    assert outcome == "failed"
    assert all(word in " ".join(reasons) for word in words), reasons


@pytest.mark.timeout(1800)
def test_poisoned_slides_cost_the_others_nothing(happened: Mapping[str, Any]) -> None:
    poison = happened["poison"]
    assert poison["workers_killed"] == 2  # not twice for each of its twelve fields
    assert [poison["statuses"][name][0] for name in ("good", "good_too")] == ["done", "done"]
    assert poison["good_as_alone"]
    assert poison["findings"] == []


@pytest.mark.timeout(1800)
def test_workers_take_the_share_of_a_gpu_they_are_given_and_only_nodes_that_have_one(
    happened: Mapping[str, Any],
) -> None:
    poison = happened["poison"]
    assert poison["gpus_a_worker"] == [0.5]
    assert list(poison["fields_by_node"]) == poison["gpu_nodes"]
    assert poison["gpu_workers"] >= 2


@pytest.mark.timeout(1800)
def test_an_idle_cluster_holds_nothing_of_the_runs_before(happened: Mapping[str, Any]) -> None:
    held = happened["held"]
    assert (held["processes"], held["cpus"], held["object_bytes"]) == ([], 0.0, 0.0)
