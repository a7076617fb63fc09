"""Reading a cell set: the whole cohort lazily, or one slide as polygons.

In: the URL of a cell set. Out: cells of the slides whose status says `done`, and of no other; one row is one cell.
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import polars as pl

from cellmill.store.identity import read_identity
from cellmill.store.layout import RETYPED_FOLDER, cells_key, rescored_key, retyped_key
from cellmill.store.objects import ObjectStore
from cellmill.store.rescored import read_scored_by
from cellmill.store.retyped import HeadRecord, read_head_record
from cellmill.store.selecting import CellRegion, of_types, within_region
from cellmill.store.statuses import read_status, read_statuses, statuses_table
from cellmill_schemas.cells import cell_schema
from cellmill_schemas.slides import SlideStatus

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["Scores", "finished_slides", "open_cells", "read_cells_geodataframe", "scan_tables"]

Scores = Literal["student", "teacher", "best"]
"""Whose types cells have: those of the run, those of a second opinion, or the second where there is one."""

SLIDE_COLUMNS = ("mpp_x", "mpp_y", "target_mpp", "slide_mm2", "analysed_mm2", "outcome")
"""Slide columns every cell is given."""

_SCANNED_BY_POLARS = ("s3://", "s3a://", "gs://", "gcs://", "az://", "abfs://", "abfss://", "http://", "https://")


def open_cells(
    url: str | Path,
    *,
    slide_ids: Iterable[str] | None = None,
    cell_types: Iterable[str] | None = None,
    min_confidence: float | None = None,
    region: CellRegion | None = None,
    scores: Scores | str = "student",
) -> pl.LazyFrame:
    """All cells of a cell set, with the columns `SLIDE_COLUMNS` of their slides.

    Nothing is read before `collect`, and then only the columns and row groups the query needs. `slide_id` and
    `cell_type` are Categorical, which counts 100 million cells in a quarter of the time that strings take; cast
    `slide_id` to String after counting to join it with a table that has strings.

    Args:
        url: what was given as --out: a folder or any URL fsspec knows. Credentials and endpoint are taken from where
            fsspec takes them.
        slide_ids: only these slides, of which only the files are opened. A filter on `slide_id` finds the same cells
            but looks into every slide: polars skips row groups by the range of a number, not of a category.
        cell_types: only these types, by name or synonym as the cell set's ontology has them.
        min_confidence: only cells at least this confident of their type, 0 to 1.
        region: only cells centred in it, in level-0 px: a box (x0, y0, x1, y1), a shapely polygon or multipolygon, or a
            GeoJSON file as QuPath exports them. Of a slide only the row groups that meet the region's box are read;
            without `slide_ids` the same place is taken of every slide.
        scores: whose types. `student`: those of the cell table. `teacher`: only cells that `rescore_cohort` scored,
            with the heavy model's type, probabilities and confidence. `best`: all cells, the heavy model's where there
            are any. `retyped/NAME`: only cells that the type head NAME of `refit_types` has answered for, with its
            types, which may be of another ontology, probabilities and confidence. With all but the first, `scored_by`
            says whose, and `agrees` whether that is the student's type. Types and confidence are filtered after that.

    Raises:
        FileNotFoundError: when there is no cell set or no such head, or when a slide asked for is not done.
        ValueError: when a type is unknown, listing those there are, or the region has no area, or scores are unknown.
        RegionFileError: when the region's file cannot be used.
    """
    store = ObjectStore(url)
    identity = read_identity(store)
    head = _head(store, scores)
    kept: list[pl.Expr] = []
    if cell_types is not None:
        kept.append(of_types(cell_types, head.ontology if head else identity.ontology))
    if min_confidence is not None:
        kept.append(pl.col("confidence") >= min_confidence)
    if region is not None:
        kept += within_region(region)
    done = [status for status in finished_slides(store, slide_ids) if status.outcome == "done"]
    slides = pl.DataFrame(statuses_table(done))
    if done:
        cells = scan_tables(store, [cells_key(status.slide_id) for status in done])
    else:
        cells = pl.DataFrame(cell_schema(identity.ontology).empty_table()).lazy()
    if head is not None:
        cells = _retyped(cells, store, done, head)
    elif scores != "student":
        cells = _with_scores(cells, store, done, only_scored=scores == "teacher")
    for condition in kept:
        cells = cells.filter(condition)
    # Expressions rather than a join: slide columns that a query does not use cost it nothing.
    slide_ids = slides["slide_id"].cast(pl.Categorical)
    return cells.with_columns(
        pl.col("slide_id").replace_strict(slide_ids, slides[name], return_dtype=slides.schema[name]).alias(name)
        for name in SLIDE_COLUMNS
    )


def _head(store: ObjectStore, scores: str) -> HeadRecord | None:
    """The type head that scores are asked of, if any."""
    folder, _, name = scores.partition("/")
    if folder == RETYPED_FOLDER and name:
        return read_head_record(store, name)
    if scores not in get_args(Scores):
        raise ValueError(f"scores must be student, teacher, best or retyped/NAME, got {scores!r}.")
    return None


def _retyped(cells: pl.LazyFrame, store: ObjectStore, done: Iterable[SlideStatus], head: HeadRecord) -> pl.LazyFrame:
    """Cells that a type head has answered for, its types in place of the student's."""
    frames = [
        scan_tables(store, [retyped_key(head.name, status.slide_id)]).with_columns(
            pl.lit(status.slide_id, dtype=pl.Categorical).alias("slide_id")
        )
        for status in done
        if head.cells_sha256.get(status.slide_id) == status.cells_sha256
    ]
    if not frames:
        raise FileNotFoundError(f"The type head {head.name!r} of {store.url} has answers for none of these slides.")
    joined = cells.join(pl.concat(frames), on=["slide_id", "cell_id"], how="inner", maintain_order="left")
    agrees = pl.col("cell_type").cast(pl.String) == pl.col("retyped_type").cast(pl.String)
    return joined.with_columns(
        agrees.alias("agrees"),
        pl.lit(f"{RETYPED_FOLDER}/{head.name}").alias("scored_by"),
        pl.col("retyped_type").cast(pl.Categorical).alias("cell_type"),
        pl.col("retyped_prob").alias("type_prob"),
        pl.col("retyped_confidence").alias("confidence"),
    ).drop("retyped_type", "retyped_prob", "retyped_confidence")


def _with_scores(
    cells: pl.LazyFrame, store: ObjectStore, done: Iterable[SlideStatus], *, only_scored: bool
) -> pl.LazyFrame:
    """Cells with the heavy model's scores in place of the student's, where it has looked at this very table."""
    frames: list[pl.LazyFrame] = []
    for status in done:
        scored_by = read_scored_by(store, status.slide_id)
        if scored_by is not None and scored_by.cells_sha256 == status.cells_sha256:
            slide_id = pl.lit(status.slide_id, dtype=pl.Categorical).alias("slide_id")
            frames.append(scan_tables(store, [rescored_key(status.slide_id)]).with_columns(slide_id))
    nothing = pl.lit(None, dtype=pl.Boolean).alias("agrees")
    if not frames:
        unscored = cells.with_columns(pl.lit("student").alias("scored_by"), nothing)
        return unscored.filter(pl.lit(False)) if only_scored else unscored
    how = "inner" if only_scored else "left"
    joined = cells.join(pl.concat(frames), on=["slide_id", "cell_id"], how=how, maintain_order="left")
    is_scored = pl.col("teacher_confidence").is_not_null()
    replaced = {
        "cell_type": "teacher_type",
        "type_prob": "teacher_prob",
        "confidence": "teacher_confidence",
        "detection_prob": "teacher_detection_prob",
    }
    return joined.with_columns(
        *(
            pl.when(is_scored).then(pl.col(theirs)).otherwise(pl.col(ours)).alias(ours)
            for ours, theirs in replaced.items()
        ),
        pl.when(is_scored).then(pl.lit("teacher")).otherwise(pl.lit("student")).alias("scored_by"),
    ).drop(*replaced.values(), "reason")


def read_cells_geodataframe(url: str | Path, slide_id: str) -> "gpd.GeoDataFrame":
    """The cells of one done slide with their polygons, in level-0 px.

    Raises:
        FileNotFoundError: when the slide is not done, saying how it stands.
        ModuleNotFoundError: when geopandas is not installed.
    """
    import geopandas as gpd

    store = ObjectStore(url)
    _finished_slide(store, slide_id)
    table = io.BytesIO(store.get(cells_key(slide_id)))
    return gpd.read_parquet(table)  # pyright: ignore[reportArgumentType] - takes any file, its stub says path


def finished_slides(store: ObjectStore, slide_ids: Iterable[str] | None) -> list[SlideStatus]:
    """Statuses of all slides, or of slides that are done by their ids.

    Raises:
        FileNotFoundError: when a slide asked for is not done, saying how it stands.
    """
    if slide_ids is None:
        return read_statuses(store)
    return [_finished_slide(store, slide_id) for slide_id in sorted(set(slide_ids))]


def _finished_slide(store: ObjectStore, slide_id: str) -> SlideStatus:
    status = read_status(store, slide_id)
    if status is None or status.outcome not in ("done", "done_empty"):
        stands = "has no status" if status is None else f"is {status.outcome}: {' '.join(status.reasons)}"
        raise FileNotFoundError(f"Slide {slide_id} of {store.url} {stands}; only done slides have cells.")
    return status


def scan_tables(store: ObjectStore, keys: list[str]) -> pl.LazyFrame:
    """Parquet objects of a store, one behind the other, read when they are asked for."""
    if store.is_local:
        return pl.scan_parquet([store.path(key) for key in keys], glob=False)
    if store.url.startswith(_SCANNED_BY_POLARS):
        return pl.scan_parquet(
            [f"{store.url}/{key}" for key in keys], glob=False, storage_options=_polars_options(store.filesystem)
        )
    # memory:// and the rarer protocols: whole objects, for polars cannot reach them itself.
    return pl.scan_parquet([io.BytesIO(store.get(key)) for key in keys])


def _polars_options(filesystem: Any) -> dict[str, str]:
    """What s3fs was configured with, under polars' names; other stores are found through the environment."""
    client: Mapping[str, Any] = getattr(filesystem, "client_kwargs", None) or {}
    endpoint = getattr(filesystem, "endpoint_url", None) or client.get("endpoint_url")
    options = {
        "aws_access_key_id": getattr(filesystem, "key", None),
        "aws_secret_access_key": getattr(filesystem, "secret", None),
        "aws_session_token": getattr(filesystem, "token", None),
        "aws_endpoint_url": endpoint,
        "aws_region": client.get("region_name"),
        "aws_allow_http": "true" if endpoint and endpoint.startswith("http://") else None,
    }
    return {name: value for name, value in options.items() if value}
