"""The cluster files are valid for the tools that read them, by those tools' own schemas and linters, and closed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
INFRA = REPOSITORY / "infra"
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))
DOCKERFILES = sorted(INFRA.glob("Dockerfile*"))


def tool(name: str) -> str:
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        pytest.skip(f"{name} is not installed beside this Python (extra dev)")
    return str(found)


def document(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_pods_are_valid_to_kubernetes(path: Path) -> None:
    import kubernetes_validate

    for group in groups(document(path)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_a_broken_pod_would_be_noticed() -> None:
    import kubernetes_validate

    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containers": [{"imag": "x"}]}}
    with pytest.raises(Exception, match=r"imag|name"):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_pods_are_contained_and_sized(path: Path) -> None:
    manifest = document(path)
    assert cluster_spec(manifest)["authOptions"] == {"mode": "token"}
    for group in groups(manifest):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            # Ray takes a container's limits for what there is; memory beyond the request could be taken away.
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert (requests["cpu"], requests["memory"]) == (limits["cpu"], limits["memory"])
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
            assert mounted == {volume["name"] for volume in pod.get("volumes", ())}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_clusters_run_the_ray_of_the_images(path: Path) -> None:
    pinned = re.search(r"^ray==(.+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    assert cluster_spec(document(path))["rayVersion"] == pinned.group(1)


def test_the_job_is_one_of_ours() -> None:
    from cellmill.cohort.config import SegmentCohortConfig

    words = document(INFRA / "kuberay" / "rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[:2] == ["cellmill", "segment-cohort"]
    flags = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    assert flags <= set(SegmentCohortConfig.__dataclass_fields__)


def test_ray_accepts_the_autoscaling_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = document(INFRA / "ray_cluster.yaml")
    validate_config(fillout_defaults(config))
    kinds = config["available_node_types"]
    assert config["head_node_type"] in kinds
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) <= config["max_workers"]
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    for name in ("readers", "gpu"):
        assert kinds[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_ray_accepts_the_runtime_environment() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**document(INFRA / "runtime_env.yaml"))
    for root in environment["env_vars"]["PYTHONPATH"].split(":"):
        assert len([path for path in (REPOSITORY / root).iterdir() if (path / "__init__.py").exists()]) == 1


def test_compose_is_valid_and_closed() -> None:
    path = INFRA / "compose.yaml"
    subprocess.run([tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)], check=True)
    compose = document(path)
    for name, service in compose["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is published beyond loopback"
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service.get("user", "1000:1000") != "root"
    for secret in ("RAY_AUTH_TOKEN", "MINIO_ROOT_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY"):
        uses = re.findall(rf"\$\{{{secret}[^}}]*\}}", path.read_text(encoding="utf-8"))
        assert uses
        assert all(":?" in use for use in uses), f"{secret} must have no default"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_pass_the_linter_and_do_not_run_as_root(path: Path) -> None:
    subprocess.run([tool("hadolint"), "--failure-threshold", "info", str(path)], check=True)
    users = re.findall(r"^USER (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert users
    assert users[-1] not in ("0", "root")


def test_images_copy_what_the_package_is_built_from() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (INFRA / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    for name in names:
        assert (REPOSITORY / name).exists(), f"COPY {name}: there is no such file"
    assert {"pyproject.toml", "schemas", "platform", "training"} <= set(names)


def test_the_slurm_script_passes_shellcheck() -> None:
    subprocess.run([tool("shellcheck"), str(INFRA / "slurm" / "segment_cohort.sbatch")], check=True)


STUBS = {
    "scontrol": "#!/bin/sh\necho localhost\n",
    # Runs the command here, without srun's own options.
    "srun": """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
if [[ "$1" == hostname ]]; then echo 127.0.0.1; exit; fi
exec "$@"
""",
}


@pytest.mark.slow
@pytest.mark.timeout(540)
def test_the_slurm_script_runs_a_cohort_on_the_ray_it_starts(tmp_path: Path) -> None:
    """srun and scontrol are stand-ins for this one machine; Ray, its token, the job and the clean-up are real."""
    from oracle import make_slide

    make_slide(tmp_path / "slides" / "one.tif")
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(text, encoding="utf-8")
        (stubs / name).chmod(0o755)
    environment = {
        "PATH": f"{stubs}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_ID": "4711",
        "SLURM_CPUS_PER_TASK": "2",
        "OMP_NUM_THREADS": "1",
    }
    if shutil.which("openssl", path=environment["PATH"]) is None:
        pytest.skip("the script makes its token with openssl, which is not here")
    command = ["bash", str(INFRA / "slurm" / "segment_cohort.sbatch")]
    command += ["--slides", str(tmp_path / "slides"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "out" / "slides.parquet").exists()
