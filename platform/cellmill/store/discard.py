"""Taking things of a slide out again, in an order that leaves nothing misleading wherever a driver is killed."""

from cellmill.store.layout import (
    RETYPED_FOLDER,
    attempts_prefix,
    cells_key,
    claims_prefix,
    digests_key,
    embedding_record_key,
    embeddings_key,
    is_safe_id,
    mask_prefix,
    rescored_key,
    retyped_key,
    work_marker_key,
    work_prefix,
)
from cellmill.store.objects import ObjectStore
from cellmill.store.work import SlideWork

__all__ = ["discard_other_work", "remove_embeddings", "remove_outputs", "remove_rescored", "remove_work"]


def discard_other_work(store: ObjectStore, work: SlideWork) -> None:
    """Remove parts and mask shards of the slide that were made under another work key.

    The marker of a key is written last and, of another key, deleted first. So a marker that is there vouches for all
    parts and shards, whenever a driver was killed.
    """
    marker = work_marker_key(work.slide_id, work.work_key)
    if store.exists(marker):
        return
    others = _work_folders(store, work.slide_id, but={attempts_prefix(work.slide_id), claims_prefix(work.slide_id)})
    for other in others:
        store.delete(f"{other}/work.json")
    remove_outputs(store, work.slide_id)
    for other in others:
        store.delete_tree(other)
    store.put(marker, b"{}")


def remove_outputs(store: ObjectStore, slide_id: str) -> None:
    """Remove table, mask and digests; the mask's root first, so that no reader opens a rest."""
    store.delete(f"{mask_prefix(slide_id)}/zarr.json")
    store.delete(cells_key(slide_id))
    store.delete_tree(mask_prefix(slide_id))
    store.delete(digests_key(slide_id))


def remove_rescored(store: ObjectStore, slide_id: str) -> None:
    """Remove a teacher's scores of the slide's cells."""
    store.delete(rescored_key(slide_id))


def remove_embeddings(store: ObjectStore, slide_id: str) -> None:
    """Remove all vectors of the slide's cells, and what was said of the cells by them; records go before tables."""
    for name in filter(is_safe_id, store.list_names(RETYPED_FOLDER)):
        store.delete(retyped_key(name, slide_id))
    for embedded_by in ("student", "teacher"):
        store.delete(embedding_record_key(embedded_by, slide_id))
        store.delete(embeddings_key(embedded_by, slide_id))


def remove_work(store: ObjectStore, slide_id: str) -> None:
    """Remove everything kept while the slide was under way but the claims: until they go nobody else starts on it."""
    for folder in _work_folders(store, slide_id, but={claims_prefix(slide_id)}):
        store.delete_tree(folder)


def _work_folders(store: ObjectStore, slide_id: str, *, but: set[str]) -> list[str]:
    prefix = work_prefix(slide_id)
    folders = [f"{prefix}/{name}" for name in store.list_names(prefix)]
    return [folder for folder in folders if folder not in but]
