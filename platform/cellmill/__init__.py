"""cellmill: every cell of a cohort of H&E whole-slide images, as tables and masks.

The functions most people need are here; importing them is cheap, what they use is loaded on the first call.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellmill.store.embeddings import open_embeddings
    from cellmill.store.reading import open_cells, read_cells_geodataframe

__all__ = ["__version__", "open_cells", "open_embeddings", "read_cells_geodataframe"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("open_cells", "read_cells_geodataframe"):
        # Lazy: reader child processes import `cellmill` and must start in well under a second.
        from cellmill.store import reading

        return getattr(reading, name)
    if name == "open_embeddings":
        from cellmill.store import embeddings

        return embeddings.open_embeddings
    raise AttributeError(f"module 'cellmill' has no attribute {name!r}")
