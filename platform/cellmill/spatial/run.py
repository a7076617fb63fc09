"""`summarize_cohort` over a cohort: slides through a few processes, tables written as they come.

In: settings. Out: `summary`, `pairs` and `radii` as Parquet and CSV in `out`, slides in the order of their ids. The
tables appear whole, when all slides are in; they do not depend on the number of workers.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cellmill.cohort.granted import granted_cpus, pin_threads
from cellmill.slide_pool import Failed, over_slides
from cellmill.slides.errors import SlideError
from cellmill.spatial.config import SummarizeCohortConfig
from cellmill.spatial.summary import PAIRS_SCHEMA, RADII_SCHEMA, SlideTables, summarize_slide, summary_schema
from cellmill.store.errors import StoreError
from cellmill.store.identity import read_identity
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import read_statuses
from cellmill_schemas.ontology import Ontology
from cellmill_schemas.slides import SlideStatus

__all__ = ["SummaryReport", "summarize_cohort"]

TABLES = ("summary", "pairs", "radii")


@dataclass(frozen=True)
class SummaryReport:
    """How it went."""

    num_slides: int
    failed: tuple[tuple[str, str], ...]
    """Slides left out, and why."""


def summarize_cohort(config: SummarizeCohortConfig, *, say: Callable[[str], None] = lambda _: None) -> SummaryReport:
    """Write the tables of all slides that are done, or of those asked for.

    Raises:
        ValueError: when a slide asked for is not done, or the folder of regions is none.
        FileNotFoundError: when there is no cell set.
    """
    store = ObjectStore(config.cells)
    ontology = read_identity(store).ontology
    statuses = _wanted(config, read_statuses(store))
    work = partial(_summarize, ontology=ontology, config=config)
    num_workers = min(config.num_workers or granted_cpus(), max(1, len(statuses)))
    failed: list[tuple[str, str]] = []
    with _writers(Path(config.out), ontology) as writers:
        found = over_slides(work, statuses, num_workers=num_workers, expected=(SlideError, StoreError, OSError))
        for number, (status, tables) in enumerate(found, start=1):
            if isinstance(tables, Failed):
                failed.append((status.slide_id, tables.reason))
            else:
                for writer, table in zip(writers, (tables.summary, tables.pairs, tables.radii), strict=True):
                    writer.write(table)
            say(f"{number} of {len(statuses)}: {status.slide_id}")
    return SummaryReport(len(statuses), tuple(failed))


def _summarize(status: SlideStatus, *, ontology: Ontology, config: SummarizeCohortConfig) -> SlideTables:
    pin_threads(1)
    return summarize_slide(status, ontology, config)


def _wanted(config: SummarizeCohortConfig, statuses: list[SlideStatus]) -> list[SlideStatus]:
    if config.regions is not None and not Path(config.regions).is_dir():
        raise ValueError(f"--regions must be a folder with <slide_id>.geojson files, got {config.regions!r}.")
    done = [status for status in statuses if status.outcome in ("done", "done_empty")]
    if not config.slide_ids:
        return done
    unknown = sorted(set(config.slide_ids) - {status.slide_id for status in done})
    if unknown:
        raise ValueError(f"--slide-ids names slides that are not done in {config.cells}: {', '.join(unknown)}.")
    return [status for status in done if status.slide_id in config.slide_ids]


class _TableWriter:
    """One table as Parquet and as CSV."""

    def __init__(self, path: Path, schema: pa.Schema, stack: ExitStack) -> None:
        self._parquet = stack.enter_context(pq.ParquetWriter(path.with_suffix(".parquet.tmp"), schema))
        self._csv = stack.enter_context(pa_csv.CSVWriter(path.with_suffix(".csv.tmp"), schema))

    def write(self, table: pa.Table) -> None:
        if table.num_rows:
            self._parquet.write_table(table)
            self._csv.write_table(table)


@contextmanager
def _writers(out: Path, ontology: Ontology) -> Generator[list[_TableWriter]]:
    """Writers of all tables; the files take their names when the block ends well, else none does."""
    out.mkdir(parents=True, exist_ok=True)
    schemas = (summary_schema(ontology), PAIRS_SCHEMA, RADII_SCHEMA)
    temporary = [out / f"{name}{suffix}.tmp" for name in TABLES for suffix in (".parquet", ".csv")]
    try:
        with ExitStack() as stack:
            yield [_TableWriter(out / name, schema, stack) for name, schema in zip(TABLES, schemas, strict=True)]
        for path in temporary:
            path.replace(path.with_suffix(""))
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
