"""Ray as a run starts it on one machine: only the servers that it needs, and the same work done."""

import psutil
import pytest

from cellmill.cohort.session import joins_cluster


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_local_ray_starts_no_server_that_only_clusters_need(ray_session: None) -> None:
    if joins_cluster():
        pytest.skip("RAY_ADDRESS is set, so the session joins a cluster instead of starting Ray")
    import ray

    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    for needless in ("autoscaler/_private/monitor.py", "log_monitor.py"):
        assert not any(needless in command for command in commands), needless
    servers = [command for command in commands if "dashboard/" in command and "--minimal" not in command]
    assert not servers
    # what was changed for the start is as it was, for whoever starts Ray next
    from ray._private.parameter import RayParams

    assert isinstance(RayParams, type)
    assert ray.data.range(3).count() == 3
