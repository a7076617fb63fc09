"""`train-teacher` on Ray Train: one of two workers killed mid-epoch costs the steps since a checkpoint."""

import os
import signal
import time
from collections.abc import Callable
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


def _dying_worker() -> Callable[[dict[str, Any]], None]:
    """The job's own worker; the second is killed once, after a step, and the first notes the steps it takes.

    A closure: it travels by value, because workers of the session do not find this module.
    """

    def train(config: dict[str, Any]) -> None:
        from cellmill_training import loop
        from cellmill_training.teacher import job

        folder, (rank, _) = Path(config["out"]).parent, rank_and_world()
        average = loop._average  # pyright: ignore[reportPrivateUsage]

        def watched(state: Any, settings: Any) -> None:
            average(state, settings)
            if rank == 0:
                with (folder / "steps.txt").open("a") as file:
                    file.write(f"{state.step}\n")
            elif state.step == DIES_AFTER and not (folder / "died").exists():
                (folder / "died").touch()
                time.sleep(15)  # Ray takes in the checkpoint of a moment ago; one still on its way would not count
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
    last_checkpoint = DIES_AFTER // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    steps = [int(line) for line in (tmp_path / "steps.txt").read_text().split()]
    again = list(range(last_checkpoint + 1, NUM_STEPS + 1))
    # The first worker is level with the second, or a step behind, when Ray ends it too.
    assert steps in ([*range(1, DIES_AFTER + 1), *again], [*range(1, DIES_AFTER), *again])
    assert [line["step"] for line in read_history(out / "history.jsonl")][-1] == NUM_STEPS
    assert load_model(out / "model").config.architecture == "teacher"
