"""The job as people start it: `ray job submit` to a cluster, the `cellmill` command, and how it refuses."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from oracle import make_slide

REPOSITORY = Path(__file__).resolve().parents[1]
JOB = ["jobs/segment_cohort.py"]


def run_job(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *JOB, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of one node, on loopback, with ports and a token of its own."""

    dashboard: str
    environment: dict[str, str]


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    gcs, dashboard, agent, agent_grpc, client, runtime_env, metrics = free_ports(7)
    # Ray's socket paths must be short; pytest's folders are not.
    folder = Path("/tmp") / f"ray-{secrets.token_hex(4)}"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_register_timeout_seconds": "300",
    }
    environment.pop("RAY_ADDRESS", None)
    start = [
        "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--ray-client-server-port={client}", f"--runtime-env-agent-port={runtime_env}",
        f"--metrics-export-port={metrics}", "--object-store-memory=300000000", f"--temp-dir={folder}",
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("ray") / "log").open("wb")
    head = subprocess.Popen(start, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(dashboard, head, Path(log.name))
        yield Cluster(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=5)  # `ray start --block` outlives its servers
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        log.close()
        subprocess.run(["rm", "-rf", str(folder)], check=False)


def _wait_for(port: int, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"Ray did not start:\n{log.read_text()}")


@pytest.mark.timeout(1200)
def test_a_submitted_job_segments_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("cellmill.models.loading")
    from cellmill.models.loading import packaged_models

    if "lite" not in packaged_models():
        pytest.skip("the package holds no weights of lite")
    make_slide(tmp_path / "slides" / "a.tif", width=600, height=400)
    out = tmp_path / "out"
    job = ["python", *JOB, "--slides", str(tmp_path / "slides"), "--out", str(out), "--device", "cpu"]
    submit = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", "."]
    ended = subprocess.run(
        [*submit, "--runtime-env", "infra/runtime_env.yaml", "--", *job],
        cwd=REPOSITORY,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 of 1 slides done" in ended.stdout
    assert pl.read_parquet(out / "slides.parquet")["outcome"].to_list() in (["done"], ["done_empty"])


@pytest.mark.parametrize("relative", ["--slides", "--out"])
def test_relative_paths_are_refused_inside_a_ray_job(tmp_path: Path, relative: str) -> None:
    paths = {"--slides": str(tmp_path), "--out": str(tmp_path / "out"), relative: "somewhere"}
    arguments = [word for pair in paths.items() for word in pair]
    ended = run_job(*arguments, environment={"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})
    assert ended.returncode == 2
    assert relative in ended.stderr and "absolute" in ended.stderr and "package cache" in ended.stderr


def test_bad_usage_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    for arguments, words in (
        (["--slides", str(tmp_path / "*.svs"), "--out", str(tmp_path)], "matches no slide"),
        (["--slides", "a.svs", "--out", "o", "--model", "nothing"], "nothing"),
    ):
        ended = run_job(*arguments)
        assert ended.returncode == 2
        assert words in ended.stderr and "Traceback" not in ended.stderr


def test_some_failed_slides_are_listed_and_exit_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cellmill.cohort.job import SOME_FAILED, report_and_code
    from cellmill.cohort.run import RunReport
    from cellmill_schemas.slides import SlideStatus

    statuses = (SlideStatus("a", "done"), SlideStatus("b", "failed", ("The file is empty.",)))
    assert report_and_code(RunReport(statuses, out=str(tmp_path), seconds=1.0)) == SOME_FAILED == 3
    said = capsys.readouterr().out
    assert "The file is empty." in said and "1 of 2 slides done" in said and str(tmp_path) in said


def test_the_command_lists_and_runs_the_jobs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cellmill.cli import main

    monkeypatch.setattr(sys, "argv", ["cellmill"])
    assert main() == 0
    assert "segment-cohort" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["cellmill", "segment-cohort", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "--slides" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["cellmill", "mill-cells"])
    assert main() == 2
