"""Running small cohorts in tests: quiet, in this process unless told otherwise, and remembering what happened."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oracle import OracleModel

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.engine import EngineFactory, serial_engine
from cellmill.cohort.progress import RunTotals
from cellmill.cohort.run import RunReport, run_cohort
from cellmill.cohort.sources import CohortModel


@dataclass
class RecordedProgress:
    """What a run told; `on_update` may act while it runs."""

    said: list[str] = field(default_factory=list)
    num_fields: int = 0
    on_update: Any = None

    def update(self, totals: RunTotals) -> None:
        self.num_fields = totals.num_fields
        if self.on_update is not None:
            self.on_update(totals)

    def say(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        pass


def run(
    slides: Path | str | list[str],
    out: Path | str,
    model: CohortModel | None = None,
    *,
    engine: EngineFactory = serial_engine,
    progress: RecordedProgress | None = None,
    **settings: Any,
) -> RunReport:
    """Segment `slides` into `out`; without a model the oracle of the slides' folder answers."""
    names = tuple(slides) if isinstance(slides, list) else (str(slides),)
    if model is None:
        first = Path(names[0])
        model = OracleModel(first if first.is_dir() else first.parent)
    settings = {"field_px": 512, "device": "cpu", "num_workers": 2, **settings}
    config = SegmentCohortConfig(slides=names, out=str(out), **settings)
    return run_cohort(config, model, progress=progress or RecordedProgress(), engine=engine)
