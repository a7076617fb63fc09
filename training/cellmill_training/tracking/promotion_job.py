"""`promote-model`: a model becomes a version in the registry, and champion if it is not worse than the present one.

Settings -> both models on one evaluation set (`evaluation`) -> verdict (`promotion.py`) -> run, version and alias
(`runs.py`, `registering.py`). A refused candidate is registered too, without the alias: its version says why.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cellmill.arguments import parse_dataclass

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from cellmill.models.agreement import Agreement
    from cellmill.models.inference import DeviceKind
    from cellmill.models.loading import LoadedModel
    from cellmill.models.registry import RegisteredVersion
    from cellmill_training.evaluation.references import ReferenceSet
    from cellmill_training.tracking.promotion import Verdict
    from cellmill_training.tracking.runs import TrackedRun

__all__ = ["DISAGREES", "PROMOTED", "REFUSED", "UNUSABLE", "PromoteModelSettings", "main"]

PROMOTED, UNUSABLE, REFUSED, DISAGREES = 0, 2, 3, 4
"""Exit codes: the alias is moved, or was there already; nothing was done, because settings, data, model or registry
cannot be used; refused by a figure; refused because a backend disagrees with eager torch."""

_NUM_TILES = 4
_DESCRIPTION = """Register a model as a version in MLflow (MLFLOW_TRACKING_URI, else mlflow.db in the current folder)
and give it an alias, if it is not worse than the model that has the alias now and its inference backend agrees with
eager torch. Exits 0 when it was promoted, 3 when a figure speaks against it, 4 when a backend does, 2 when nothing
could be judged."""


@dataclass(frozen=True)
class PromoteModelSettings:
    """Settings of one promotion.

    Args:
        model: the candidate: a model folder, a packaged name, or a models:/ URI.
        to: the alias to give it.
        name: the registered model. Default: cellmill- and the candidate's architecture, such as cellmill-student.
        dataset: what both models are measured on: a store of labelled images, or the folder of the local sets.
        split: of the data set; never one that either model was trained on.
        origins: labels of these origins only. Default: all.
        mapping: from the data set's classes to the models' where they differ; builtin, or a JSON file. Default: none.
        margin: how much worse than the champion it may be in PQ and in mean F1 of types, at the 5th percentile of the
            paired bootstrap.
        min_pq: PQ that it must reach in any case; what a first champion is held against.
        min_type_f1: mean F1 of types that it must reach in any case.
        comparison: comparison.json of compare_models with the champion as reference and this candidate: what it refuses
            is refused. Default: none.
        force: promote although a figure or a backend speaks against it; needs --reason.
        reason: why it is forced; kept with the version.
        device: where the networks run.
        num_threads: CPU threads of the networks. Default 0: as many as there are cores.
        replicates: bootstrap replicates.
        seed: of the draws.
    """

    model: str = ""
    to: str = "champion"
    name: str = ""
    dataset: str = ""
    split: str = "test"
    origins: tuple[str, ...] = ()
    mapping: str = ""
    margin: float = 0.02
    min_pq: float = 0.0
    min_type_f1: float = 0.0
    comparison: str = ""
    force: bool = False
    reason: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int = 0
    replicates: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value in (("--model", self.model), ("--dataset", self.dataset), ("--to", self.to)):
            if not value:
                raise ValueError(f"{flag} is missing; give --model, --dataset and --to.")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.to) or re.fullmatch(r"[vV]\d+|latest", self.to):
            raise ValueError(
                f"--to must be letters, digits, '_' and '-', and neither 'latest' nor like 'v3', got {self.to!r}."
            )
        if self.name and not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ValueError(f"--name must be letters, digits, '_', '-' and '.', got {self.name!r}.")
        if self.force and not self.reason.strip():
            raise ValueError("--force needs --reason: one sentence that is kept with the version.")
        if self.margin < 0 or self.replicates < 100:
            raise ValueError(
                f"--margin must not be negative and --replicates at least 100, got {self.margin} and {self.replicates}."
            )


@dataclass(frozen=True)
class _Promotion:
    """What is decided on."""

    settings: PromoteModelSettings
    name: str
    candidate: "LoadedModel"
    references: "ReferenceSet"
    champion: "RegisteredVersion | None"
    verdict: "Verdict"

    @property
    def promoted(self) -> bool:
        return self.verdict.accepted or self.settings.force

    @property
    def code(self) -> int:
        if self.promoted:
            return PROMOTED
        return DISAGREES if self.verdict.good_enough else REFUSED

    def tags(self) -> dict[str, str]:
        """What a version says about how it came about."""
        settings, references = self.settings, self.references
        forced = self.settings.force and not self.verdict.accepted
        decision = "forced" if forced else "accepted" if self.promoted else "refused"
        tags = {
            "decision": decision,
            "alias": settings.to,
            "model_digest": self.candidate.digest,
            "evaluation_set": f"{references.name}/{references.split}",
            "evaluation_digest": references.digest,
            "margin": f"{settings.margin:g}",
            "champion_before": self.champion.uri if self.champion else "none: nothing to compare with",
            "verdict": "; ".join(self.verdict.lines()),
        }
        return {**tags, "forced_because": settings.reason.strip()} if forced else tags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    settings = parse_dataclass(
        PromoteModelSettings, prog="promote-model", description=_DESCRIPTION, arguments=arguments
    )
    try:
        return _run(settings)
    except ValueError as error:
        sys.stderr.write(f"promote-model: {error}\n")
        return UNUSABLE


def _run(settings: PromoteModelSettings) -> int:
    from cellmill.models.inference import choose_device
    from cellmill.models.loading import load_model
    from cellmill.models.mlflow_client import open_client, tracking_uri
    from cellmill_training.evaluation.references import open_references
    from cellmill_training.tracking.promotion import read_moved
    from cellmill_training.tracking.registering import champion_of

    device = choose_device(settings.device)
    candidate = load_model(settings.model)
    name = settings.name or f"cellmill-{candidate.config.architecture}"
    references = open_references(
        settings.dataset,
        ontology=candidate.config.ontology,
        split=settings.split,
        origins=settings.origins,
        mapping=settings.mapping,
    )
    champion = champion_of(open_client(tracking_uri()), name, settings.to)
    present = load_model(champion.uri) if champion else None
    if champion and present and present.digest == candidate.digest:
        sys.stdout.write(f"{champion.uri} has these weights and is {settings.to} already; nothing to do.\n")
        return PROMOTED
    moved: tuple[str, ...] = ()
    if settings.comparison:
        digest = present.digest if present else ""
        moved = read_moved(Path(settings.comparison), candidate_digest=candidate.digest, champion_digest=digest)
    verdict = replace(_judge(settings, candidate, present, references, device), moved=moved)
    promotion = _Promotion(settings, name, candidate, references, champion, verdict)
    version = _record(promotion)
    _report(promotion, version)
    return promotion.code


def _judge(
    settings: PromoteModelSettings,
    candidate: "LoadedModel",
    champion: "LoadedModel | None",
    references: "ReferenceSet",
    device: "DeviceKind",
) -> "Verdict":
    from cellmill_training.evaluation.evaluating import evaluate_model
    from cellmill_training.evaluation.predictions import CellPredictor
    from cellmill_training.tracking.promotion import Gate, judge

    if champion is not None and champion.config.ontology.names != candidate.config.ontology.names:
        raise ValueError(
            f"The candidate's classes ({candidate.config.ontology.name}) are not the champion's "
            f"({champion.config.ontology.name}), so their figures cannot be compared. Register it under another --name."
        )
    threads = settings.num_threads or os.cpu_count() or 1
    tallies = [
        evaluate_model(CellPredictor(model, device=device, num_threads=threads), references).tally()
        for model in (candidate, champion)
        if model is not None
    ]
    gate = Gate(settings.margin, settings.min_pq, settings.min_type_f1, settings.replicates, settings.seed)
    agreement = _agreement(candidate, references, device=device, num_threads=threads)
    return judge(tallies[0], tallies[1] if len(tallies) > 1 else None, agreement=agreement, gate=gate)


def _agreement(
    model: "LoadedModel", references: "ReferenceSet", *, device: "DeviceKind", num_threads: int
) -> "Agreement":
    """Of the backend that a cohort run would take, on the first tiles of the evaluation set."""
    import numpy as np

    from cellmill.grid import TileGeometry
    from cellmill.models.agreement import compare_backends
    from cellmill_training.evaluation.predictions import tiles_of
    from cellmill_training.samples import resampled

    geometry = TileGeometry(tile_px=model.config.tile_px, margin_px=model.config.margin_px)
    tiles: list[np.ndarray] = []
    for reference in references.images():
        image = resampled(reference.image, mpp=reference.mpp, target_mpp=model.config.target_mpp)
        tiles.append(tiles_of(image, geometry)[0][:1])
        if len(tiles) == _NUM_TILES:
            break
    return compare_backends(model, np.concatenate(tiles), device=device, num_threads=num_threads)


def _record(promotion: _Promotion) -> "RegisteredVersion":
    """The run, the version and, where it was earned or forced, the alias."""
    from cellmill.models.mlflow_client import open_client
    from cellmill_training.tracking.registering import champion_of, move_alias
    from cellmill_training.tracking.runs import tracked_run

    references, settings = promotion.references, promotion.settings
    with tracked_run(
        experiment="promotion",
        name=f"{promotion.name} to {settings.to}",
        config=settings,
        data_digests={f"{references.name}/{references.split}": references.digest},
        folder=Path.cwd(),
    ) as run:
        _log(run, promotion)
        client = open_client(run.uri)
        now = champion_of(client, promotion.name, settings.to)
        if (now and now.uri) != (promotion.champion and promotion.champion.uri):
            raise ValueError(
                f"{promotion.name}@{settings.to} changed while the candidate was measured (now "
                f"{now.uri if now else 'nothing'}); run the same command again."
            )
        version = _version(client, run, promotion)
        if promotion.promoted:
            move_alias(client, version, settings.to)
    return version


def _version(client: "MlflowClient", run: "TrackedRun", promotion: _Promotion) -> "RegisteredVersion":
    """The candidate's version: the one it is already, or a new one with its files in the run."""
    from cellmill.models.registry import find_version, is_registry_uri
    from cellmill_training.tracking.registering import describe_version, register_version

    spec, tags, text = promotion.settings.model, promotion.tags(), "\n".join(promotion.verdict.lines())
    if is_registry_uri(spec):
        version = find_version(spec, client=client)
        if version.name == promotion.name:
            describe_version(client, version, tags=tags, description=text)
            return version
    from cellmill.models.loading import model_folder

    with model_folder(spec) as (folder, _):
        run.log_model(folder)
    return register_version(client, promotion.name, run, tags=tags, description=text)


def _log(run: "TrackedRun", promotion: _Promotion) -> None:
    for one in promotion.verdict.comparisons:
        figures = {"candidate": one.candidate, "champion": one.champion, "difference_p5": one.low}
        run.log_metrics({f"{one.figure}/{name}": value for name, value in figures.items() if isfinite(value)})
    if not promotion.verdict.comparisons:
        run.log_metrics({f"{one.figure}/candidate": one.candidate for one in promotion.verdict.floors})
    run.log_metrics({"backend_agreement": promotion.verdict.agreement.share})
    run.log_text("\n".join(promotion.verdict.lines()) + "\n", "verdict.txt")


def _report(promotion: _Promotion, version: "RegisteredVersion") -> None:
    settings = promotion.settings
    for line in promotion.verdict.lines():
        sys.stdout.write(f"  {line}\n")
    if promotion.verdict.accepted:
        sys.stdout.write(f"{version.uri} is now {version.name}@{settings.to}.\n")
    elif settings.force:
        sys.stdout.write(f"{version.uri} is now {version.name}@{settings.to}, by force: {settings.reason.strip()}\n")
    else:
        reasons = "; ".join(promotion.verdict.reasons())
        sys.stderr.write(f"promote-model: {version.uri} was refused as {settings.to}: {reasons}\n")
