"""`report_cohort`: a cell set to a folder of pages.

Two passes: the cohort in numbers (statuses, and one streaming query), then slides through a few processes, a page each.
The folder takes its name when all pages are in it.
"""

import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cellmill.cohort.granted import granted_cpus, pin_threads
from cellmill.cohort.manifest import SlideSource, list_sources
from cellmill.privacy import read_secret
from cellmill.report.cohort import Cohort, SlideRow, mean_confidences
from cellmill.report.config import ReportCohortConfig
from cellmill.report.groups import read_groups
from cellmill.report.index_page import index_page
from cellmill.report.slide_page import Comparison, SlideTask, slide_page
from cellmill.slide_pool import Failed, over_slides
from cellmill.store.errors import StoreError
from cellmill.store.identity import read_identity
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import read_statuses

__all__ = ["CohortReport", "report_cohort"]

_MARKER = "cellmill-report.json"


@dataclass(frozen=True)
class CohortReport:
    """What was made."""

    num_pages: int
    without_page: tuple[tuple[str, str], ...]
    """Slides whose page could not be made, and why."""


def report_cohort(config: ReportCohortConfig, *, say: Callable[[str], None] = lambda _: None) -> CohortReport:
    """Write the report.

    Raises:
        ValueError: when `--html` holds anything but a report, or the slides cannot be listed.
        FileNotFoundError: when there is no cell set.
    """
    html = Path(config.html).absolute()
    _refuse_other_folders(html)
    sources, groups = _sources(config)
    cohort = read_cohort(config, groups)
    building = html.with_name(f".{html.name}.{secrets.token_hex(4)}.tmp")
    try:
        (building / "slides").mkdir(parents=True)
        without_page = _write_slide_pages(building / "slides", cohort, config, sources, say)
        (building / "index.html").write_text(index_page(cohort), encoding="utf-8")
        marker = {"made_by": "cellmill", "cells": cohort.identity.config_digest}
        (building / _MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
        _take_name(building, html)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    num_pages = sum(row.has_page for row in cohort.rows) - len(without_page)
    return CohortReport(num_pages=num_pages, without_page=without_page)


def read_cohort(config: ReportCohortConfig, groups: Mapping[str, str] | None = None) -> Cohort:
    """The cohort, judged: statuses, and one query over the confidences."""
    store = ObjectStore(config.cells)
    return Cohort.of(
        read_statuses(store),
        read_identity(store),
        title=config.title or store.url.rstrip("/").rsplit("/", 1)[-1],
        confidences=mean_confidences(config.cells),
        groups=groups,
        group_by=config.group_by or "",
    )


def _sources(config: ReportCohortConfig) -> tuple[dict[str, SlideSource], dict[str, str]]:
    """Slides, and their groups, by slide id."""
    if not config.slides:
        return {}, {}
    secret = read_secret(config.pseudonymize)
    listed = list_sources(config.slides, secret=secret)
    sources = {source.slide_id: source for source in listed if source.problem is None}
    if config.group_by is None:
        return sources, {}
    groups = read_groups(config.slides[0], config.group_by)
    return sources, {source.slide_id: groups.get(source.url, "") for source in listed}


def _write_slide_pages(
    folder: Path,
    cohort: Cohort,
    config: ReportCohortConfig,
    sources: Mapping[str, SlideSource],
    say: Callable[[str], None],
) -> tuple[tuple[str, str], ...]:
    tasks = _tasks(cohort, config, sources)
    num_workers = min(config.num_workers or granted_cpus(), max(1, len(tasks)))
    failed: list[tuple[str, str]] = []
    pages = over_slides(_page_of, tasks, num_workers=num_workers, expected=(StoreError, OSError))
    for number, (task, page) in enumerate(pages, start=1):
        slide_id = task.row.slide_id
        if isinstance(page, Failed):
            failed.append((slide_id, page.reason))
        else:
            (folder / f"{slide_id}.html").write_text(page, encoding="utf-8")
        say(f"{number} of {len(tasks)}: {slide_id}")
    return tuple(failed)


def _page_of(task: SlideTask) -> str:
    pin_threads(1)
    return slide_page(task)


def _tasks(cohort: Cohort, config: ReportCohortConfig, sources: Mapping[str, SlideSource]) -> list[SlideTask]:
    rows = [row for row in cohort.rows if row.has_page]
    ids = [None, *(row.slide_id for row in rows), None]
    return [
        SlideTask(
            row=row,
            config=config,
            identity=cohort.identity,
            title=cohort.title,
            group_by=cohort.group_by,
            comparisons=_comparisons(cohort, row),
            slide_url=sources[row.slide_id].url if row.slide_id in sources else None,
            previous=ids[index],
            next=ids[index + 2],
        )
        for index, row in enumerate(rows)
    ]


def _comparisons(cohort: Cohort, row: SlideRow) -> tuple[Comparison, ...]:
    colors = {cell_class.name: cell_class.color_rgb for cell_class in cohort.identity.ontology.classes}
    return tuple(
        Comparison(
            name=name or "all cells",
            color=None if name is None else colors[name],
            num_cells=row.count(name),
            share=None if name is None else row.share(name),
            per_mm2=row.density(name),
            spread=tuple(cohort.spread[name].tolist()),
            percentile=cohort.percentile(row, name),
        )
        for name in (None, *colors)
    )


def _refuse_other_folders(html: Path) -> None:
    if not html.exists():
        return
    if not html.is_dir() or (any(html.iterdir()) and not (html / _MARKER).is_file()):
        raise ValueError(
            f"--html {html} holds something that is no report, and a report replaces its folder; give another folder."
        )


def _take_name(building: Path, html: Path) -> None:
    """The finished folder in place of an earlier report, which is gone only then."""
    if not html.exists():
        building.rename(html)
        return
    old = building.with_name(building.name + ".old")
    html.rename(old)
    building.rename(html)
    shutil.rmtree(old)
