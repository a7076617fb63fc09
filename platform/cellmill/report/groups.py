"""Which slides belong together: a column of the manifest, scanner or site for example.

In: a manifest and the column's name. Out: the column's value for each slide's path.
"""

import fsspec
import polars as pl

from cellmill.cohort.listing import resolve_beside

__all__ = ["read_groups"]


def read_groups(manifest: str, column: str) -> dict[str, str]:
    """Value of `column`, as text, by path or URL of the slide; empty values are left out.

    Raises:
        ValueError: when it is no manifest that can be read, or has no such column, listing those there are.
    """
    if not manifest.lower().endswith((".csv", ".parquet", ".pq")):
        raise ValueError(f"Column {column!r} needs a CSV or Parquet manifest as --slides, got {manifest!r}.")
    try:
        with fsspec.open(manifest, "rb") as file:
            data: bytes = file.read()  # type: ignore[union-attr]
    except OSError as error:
        raise ValueError(f"The manifest {manifest} cannot be read: {error}") from error
    is_csv = manifest.lower().endswith(".csv")
    table = pl.read_csv(data, infer_schema=False) if is_csv else pl.read_parquet(data)
    missing = [name for name in ("slide", column) if name not in table.columns]
    if missing:
        raise ValueError(f"{manifest} has no column {missing[0]!r}; it has {', '.join(table.columns)}.")
    rows = table.select(pl.col("slide", column).cast(pl.String)).iter_rows()
    return {resolve_beside(slide.strip(), manifest=manifest): group.strip() for slide, group in rows if slide and group}
