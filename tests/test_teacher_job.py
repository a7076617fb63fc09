"""`train-teacher` on Ray Train: one of two workers killed mid-epoch costs the steps since a checkpoint."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from training_helpers import small_dataset

from cellmill.models.encoder_weights import save_encoder
from cellmill.models.loading import load_model
from cellmill.models.networks import build_model
from cellmill_schemas.ontology import get_ontology
from cellmill_training.ray_trainer import fit, rank_and_world
from cellmill_training.recipes import teacher_recipe
from cellmill_training.supervised.history import read_history
from cellmill_training.teacher.job import TrainTeacherSettings
from cellmill_training.teacher.recipe import network_config

NUM_STEPS, DIES_AFTER, CHECKPOINT_EVERY = 8, 5, 2
LAST_CHECKPOINT = DIES_AFTER // CHECKPOINT_EVERY * CHECKPOINT_EVERY


def _dying_worker() -> Callable[[dict[str, Any]], None]:
    """The job's own worker; the second is killed once, after a step, and the first notes the steps it takes.

    A closure: it travels by value, because workers of the session do not find this module.
    """

    def step_rays_checkpoint_is_of(out: Path) -> float:
        """Step of the last checkpoint that Ray would give a worker; 0 where it has none yet."""
        with suppress(OSError, ValueError, TypeError):  # not there, half written, or of no checkpoint
            snapshot = json.loads((out / "train" / "checkpoint_manager_snapshot.json").read_text())
            return snapshot["latest_checkpoint_result"]["metrics"]["step"]
        return 0

    def train(config: dict[str, Any]) -> None:
        from cellmill_training import loop
        from cellmill_training.teacher import job

        out, (rank, _) = Path(config["out"]), rank_and_world()
        folder = out.parent
        average = loop._average  # pyright: ignore[reportPrivateUsage]

        def watched(state: Any, settings: Any) -> None:
            average(state, settings)
            if rank == 0:
                with (folder / "steps.txt").open("a") as file:
                    file.write(f"{state.step}\n")
            elif state.step == DIES_AFTER and not (folder / "died").exists():
                (folder / "died").touch()
                # Ray takes in the checkpoint of a moment ago; one still on its way would not count.
                deadline = time.monotonic() + 60
                while step_rays_checkpoint_is_of(out) != LAST_CHECKPOINT and time.monotonic() < deadline:
                    time.sleep(0.2)
                os.kill(os.getpid(), signal.SIGKILL)

        loop._average = watched  # pyright: ignore[reportPrivateUsage]
        job._worker(config)  # pyright: ignore[reportPrivateUsage]

    return train


@pytest.mark.slow
@pytest.mark.timeout(600)
# Ray copies its own data context attribute by attribute and warns about some of them.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_costs_the_steps_since_its_last_checkpoint(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "data", num_images=6, side_px=384)
    config = network_config(teacher_recipe("teacher-demo"), get_ontology("refined7"))
    save_encoder(build_model(config), tmp_path / "encoder" / "tiny-vit.safetensors")
    out = tmp_path / "run"
    settings = TrainTeacherSettings(
        data=dataset.store.url,
        out=str(out),
        recipe="teacher-demo",
        encoder_weights=str(tmp_path / "encoder"),
        max_steps=NUM_STEPS,
        batch_size=2,
        checkpoint_steps=CHECKPOINT_EVERY,
        num_workers=2,
        cpus_per_worker=1,
        device="cpu",
        max_failures=1,
    )
    fit(_dying_worker(), asdict(settings), out=out, plan=settings.plan)

    assert (tmp_path / "died").exists()
    steps = [int(line) for line in (tmp_path / "steps.txt").read_text().split()]
    again = list(range(LAST_CHECKPOINT + 1, NUM_STEPS + 1))
    # The first worker is level with the second, or a step behind, when Ray ends it too.
    assert steps in ([*range(1, DIES_AFTER + 1), *again], [*range(1, DIES_AFTER), *again])
    assert [line["step"] for line in read_history(out / "history.jsonl")][-1] == NUM_STEPS
    assert load_model(out / "model").config.architecture == "teacher"
