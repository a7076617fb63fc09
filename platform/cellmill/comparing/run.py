"""From two models or cell sets to a verdict, a JSON file and a page.

In: `CompareModelsConfig`. Out: a `Comparison`. A side that is a model is run on the slides first, as segment_cohort
would, into `<out>/reference` or `<out>/candidate`. Slides are compared one after another; memory holds one's cells.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.engine import EngineFactory
from cellmill.cohort.manifest import SlideSource, list_sources
from cellmill.cohort.pipeline import ray_engine
from cellmill.cohort.progress import Progress
from cellmill.cohort.run import run_cohort
from cellmill.cohort.sources import CohortModel, NetworkModel
from cellmill.comparing.config import CompareModelsConfig
from cellmill.comparing.gate import Margins, SlideChange, Verdict, judge
from cellmill.comparing.page import comparison_page
from cellmill.comparing.pictures import Chosen, Picture, choose_changed, draw_changed
from cellmill.comparing.slide import ComparedSlide, compare_slide
from cellmill.privacy import read_secret
from cellmill.staging.cache import node_cache
from cellmill.store.identity import CellSetIdentity, read_identity
from cellmill.store.layout import CELLSET_KEY
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import read_statuses
from cellmill_schemas.ontology import Ontology

__all__ = ["COMPARISON_FILE", "PAGE_FILE", "Comparison", "compare_models"]

COMPARISON_FILE, PAGE_FILE = "comparison.json", "comparison.html"


@dataclass(frozen=True)
class Comparison:
    """How two cell sets of the same slides differ."""

    reference: CellSetIdentity
    candidate: CellSetIdentity
    changes: tuple[SlideChange, ...]
    """Of each slide, by slide id."""
    margins: Margins
    verdict: Verdict
    pictures: tuple[Picture, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what `promote_model --comparison` reads."""
        names = [*self.reference.ontology.names, "none"]
        return {
            "accepted": self.verdict.accepted,
            "reasons": self.verdict.reasons(),
            "reference": _side(self.reference),
            "candidate": _side(self.candidate),
            "margins": asdict(self.margins),
            "checks": [check.to_json() for check in self.verdict.checks],
            "slides": [_slide(change) for change in self.changes],
            "types": names,
            "counts": sum(change.counts for change in self.changes).tolist() if self.changes else [],  # type: ignore[union-attr]
        }


def compare_models(
    config: CompareModelsConfig,
    *,
    progress: Callable[[], Progress],
    load: Callable[[str], CohortModel] | None = None,
    engine: EngineFactory = ray_engine,
) -> Comparison:
    """Compare, and write `comparison.json` and `comparison.html` below `config.out`.

    Args:
        config: the settings.
        progress: opens what the user sees of a run of a model.
        load: how a model is had from its name; `load_model`'s networks when not given.
        engine: what executes runs of models.

    Raises:
        ValueError: when a side is neither a cell set nor a model, the sides cannot be compared, or there is no slide.
    """
    stores: list[ObjectStore] = []
    for name, spec in (("reference", config.reference), ("candidate", config.candidate)):
        stores.append(_cell_set(config, name, spec, progress=progress, load=load or _load, engine=engine))
    identities = [read_identity(store) for store in stores]
    _require_comparable(*identities)
    ontology = identities[0].ontology
    sources = {
        source.slide_id: source
        for source in list_sources(config.slides, secret=read_secret(config.pseudonymize))
        if source.problem is None
    }
    changes: list[SlideChange] = []
    pictures: list[Picture] = []
    slide_ids = _slide_ids(stores[0], sources if config.slides else None)
    num_each = -(-config.num_pictures // (3 * max(1, len(slide_ids))))
    for slide_id in slide_ids:
        found = compare_slide(stores[0], stores[1], slide_id, ontology=ontology)
        changes.append(found if isinstance(found, SlideChange) else found.change)
        if isinstance(found, ComparedSlide) and slide_id in sources and len(pictures) < config.num_pictures:
            chosen = choose_changed(found, ontology, num_each=num_each, seed=config.seed)
            pictures += _drawn(sources[slide_id], found, chosen, ontology)
    margins = Margins(
        config.max_lost, config.max_gained, config.max_retyped, config.max_type_change, config.min_cells,
        config.min_slides,
    )  # fmt: skip
    comparison = Comparison(
        reference=identities[0],
        candidate=identities[1],
        changes=tuple(changes),
        margins=margins,
        verdict=judge(changes, ontology.names, margins=margins, seed=config.seed),
        pictures=tuple(pictures[: config.num_pictures]),
    )
    out = ObjectStore(config.out)
    out.put(COMPARISON_FILE, json.dumps(comparison.to_json(), indent=2).encode())
    out.put(PAGE_FILE, comparison_page(comparison).encode())
    return comparison


def _cell_set(
    config: CompareModelsConfig,
    name: str,
    spec: str,
    *,
    progress: Callable[[], Progress],
    load: Callable[[str], CohortModel],
    engine: EngineFactory,
) -> ObjectStore:
    """The cell set of one side: as it is, or made by its model."""
    is_registered = spec.startswith("models:/")
    if not is_registered and ObjectStore(spec).exists(CELLSET_KEY):
        return ObjectStore(spec)
    try:
        model = load(spec)
    except ValueError as error:
        says = f"--{name} {spec} is neither a cell set ({CELLSET_KEY} is missing) nor a model"
        raise ValueError(f"{says}. {error}") from error
    if not config.slides:
        raise ValueError(f"--{name} {spec} is a model, so --slides must say what to run it on.")
    run = SegmentCohortConfig(
        slides=config.slides,
        out=f"{config.out.rstrip('/')}/{name}",
        device=config.device,
        num_workers=config.num_workers,
        max_slides=config.max_slides,
        pseudonymize=config.pseudonymize,
    )
    return ObjectStore(run_cohort(run, model, progress=progress(), engine=engine).out)


def _load(spec: str) -> CohortModel:
    from cellmill.models.loading import load_model

    return NetworkModel(load_model(spec))


def _require_comparable(reference: CellSetIdentity, candidate: CellSetIdentity) -> None:
    if set(reference.ontology.names) != set(candidate.ontology.names):
        raise ValueError(
            f"The reference tells {', '.join(reference.ontology.names)} apart, the candidate "
            f"{', '.join(candidate.ontology.names)}; cells of other types cannot be compared."
        )


def _slide_ids(reference: ObjectStore, listed: "dict[str, SlideSource] | None") -> list[str]:
    """Slides that the reference has done, of those listed where any are."""
    done = [status.slide_id for status in read_statuses(reference) if status.outcome in ("done", "done_empty")]
    wanted = [slide_id for slide_id in done if listed is None or slide_id in listed]
    if not wanted:
        raise ValueError(
            f"The reference {reference.url} has {len(done)} finished slides, none of them "
            f"{'among --slides' if listed else 'to compare'}."
        )
    return wanted


def _drawn(source: SlideSource, compared: ComparedSlide, chosen: Sequence[Chosen], ontology: Ontology) -> list[Picture]:
    with node_cache().stage(source.url) as copy:
        return draw_changed(str(copy.path), compared, chosen, ontology)


def _side(identity: CellSetIdentity) -> dict[str, str]:
    return {
        "model_name": identity.model_name,
        "model_version": identity.model_version,
        "model_digest": identity.model_digest,
        "config_digest": identity.config_digest,
    }


def _slide(change: SlideChange) -> dict[str, Any]:
    return {
        "slide_id": change.slide_id,
        "reference": change.num_reference,
        "candidate": change.num_candidate,
        "lost": change.num_lost,
        "gained": change.num_gained,
        "retyped": change.num_retyped,
        "redrawn": change.num_redrawn,
        "mean_iou": None if change.mean_iou != change.mean_iou else round(change.mean_iou, 4),
        "problem": change.problem,
        "counts": change.counts.tolist(),
    }
