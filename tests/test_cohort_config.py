"""What a person may ask of a run, and what they are told when it cannot be."""

from pathlib import Path

import pytest

from cellmill.arguments import parse_dataclass
from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.granted import granted_cpus
from cellmill.cohort.pools import PoolSizes, cluster_shape, device_of_workers, pool_sizes
from cellmill.privacy import read_secret


def parse(*arguments: str) -> SegmentCohortConfig:
    return parse_dataclass(SegmentCohortConfig, prog="segment_cohort", description="", arguments=arguments)


def test_flags_and_yaml_are_the_same_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("slides: [a.svs, b.svs]\nout: cells\nfield_px: 512\n", encoding="utf-8")
    flags = ("--slides", "a.svs", "b.svs", "--out", "cells", "--field-px", "512")
    assert parse("--config", str(file)) == parse(*flags)
    assert parse("--config", str(file), "--field-px", "1024").field_px == 1024


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x"], ["--slides", "at least one"]),
        (["--slides", "a"], ["--out", "cell set"]),
        (["--slides", "a", "--out", "x", "--field-px", "300"], ["--field-px", "multiple of 256", "300", "try"]),
        (["--slides", "a", "--out", "x", "--mpp", "0"], ["--mpp", "0.05 to 10", "got 0.0", "40x"]),
        (["--slides", "a", "--out", "x", "--device", "gpu"], ["device", "gpu", "cuda"]),
        (["--slides", "a", "--out", "x", "--fild-px", "1"], ["--fild-px", "did you mean --field-px"]),
        (["--slides", "a", "--out", "x", "--batch-size", "many"], ["batch_size", "many"]),
    ],
)
def test_bad_settings_say_what_got_and_next(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert all(word in said for word in [*words, "--help"]), said


def test_help_tells_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for words in ("--slides", "um/px", "Default: 2048", "Default: lite", "seconds", "--pseudonymize"):
        assert words in said


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short", encoding="utf-8")
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        read_secret(str(tmp_path / "key"))


def test_at_least_one_cpu_is_granted() -> None:
    assert granted_cpus() >= 1


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("workers", [0, 1, 2, 5, 64])
@pytest.mark.parametrize("threads", [1, 4])
def test_all_stages_always_fit_the_cluster(cpus: int, workers: int, threads: int) -> None:
    for gpus, device in ((0, "cpu"), (4, "cuda")):
        sizes = pool_sizes(
            num_workers=workers, threads_per_worker=threads, cluster_cpus=cpus, cluster_gpus=gpus, device=device
        )
        booked = sizes.num_planners * sizes.planner_cpus + sizes.num_segmenters * sizes.segmenter_cpus
        assert booked <= cpus + 0.05
        assert sizes.num_segmenters * sizes.segmenter_gpus <= gpus + 1e-9


def node(cpus: float, gpus: float = 0.0, *, alive: bool = True) -> dict[str, object]:
    """As `ray.nodes()` tells of one."""
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


def sizes_of(nodes: list[dict[str, object]], *, device: str, num_workers: int = 0) -> PoolSizes:
    cpus, gpus = cluster_shape(nodes, device=device)
    return pool_sizes(
        num_workers=num_workers, threads_per_worker=1, cluster_cpus=cpus, cluster_gpus=gpus, device=device
    )


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("num_nodes", [1, 2, 5])
def test_a_planner_fits_on_a_node_full_of_segmenters(cpus: int, num_nodes: int) -> None:
    sizes = sizes_of([node(cpus)] * num_nodes, device="cpu")
    assert sizes.num_segmenters == cpus * num_nodes
    assert cpus * sizes.segmenter_cpus + sizes.planner_cpus <= cpus + 1e-9


def test_a_segmenter_with_a_gpu_fits_on_a_node_that_has_one() -> None:
    nodes = [node(16)] * 8 + [node(8, 1), node(8, 1), node(64, 8), node(2, 1, alive=False)]
    sizes = sizes_of(nodes, device="cuda")
    assert (sizes.num_segmenters, sizes.segmenter_gpus) == (10, 1.0)
    assert sizes.segmenter_cpus + sizes.planner_cpus <= 8


def test_a_segmenter_asks_for_a_gpu_also_where_none_has_come_yet() -> None:
    sizes = sizes_of([node(2)], device="cuda")
    assert (sizes.num_segmenters, sizes.segmenter_gpus) == (1, 1.0)
    assert sizes.num_readers > 1
    assert sizes_of([], device="cpu").num_segmenters == 1


def test_a_driver_without_a_gpu_sends_work_to_a_cluster_that_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert device_of_workers("cuda") == "cuda"
    assert device_of_workers("cpu") == "cpu"
