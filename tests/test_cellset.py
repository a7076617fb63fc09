"""The cell set as drivers share it: identity, claims, attempts, statuses, forgetting."""

import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cellmill.grid import Box, SlideGrid
from cellmill.store import claims
from cellmill.store.cellset import CellSet
from cellmill.store.claims import ClaimBook, Owner
from cellmill.store.errors import (
    CellSetMismatchError,
    ClaimLostError,
    SlideChangedError,
    SlideClaimedError,
    SlideForgottenError,
    UnsafeNameError,
)
from cellmill.store.identity import CellSetIdentity, read_identity
from cellmill.store.objects import ObjectStore
from cellmill.store.reading import open_cells
from cellmill.store.testing import LatticeTissue
from cellmill.store.work import FieldCounts, SlideFacts, SlideWork
from cellmill_schemas.ontology import get_ontology
from cellmill_schemas.slides import STATUS_SCHEMA, SlideStatus

GRID = SlideGrid(500, 400, scale_x=2.0, scale_y=2.0, target_mpp=0.5)
IDENTITY = CellSetIdentity(
    model_name="lite",
    model_digest="m1",
    config_digest="c1",
    config={"target_mpp": 0.5, "decode": {"num_steps": 200, "flow_error_max": 0.4}},
    ontology=get_ontology("refined7"),
    code_version="0.1.0",
)


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "out")
    else:
        yield f"memory://{tmp_path}/out"
        MemoryFileSystem.store.clear()


def facts_of(slide_id: str, *, fingerprint: str = "f1") -> SlideFacts:
    return SlideFacts(slide_id, GRID, 0.25, 0.25, 1000, 800, fingerprint)


def do_slide(cell_set: CellSet, slide_id: str, *, fingerprint: str = "f1") -> SlideWork | None:
    """A whole slide by one driver."""
    cell_set.claim(slide_id)
    try:
        work = cell_set.begin_slide(facts_of(slide_id, fingerprint=fingerprint), field_px=512, device_kind="cpu")
        if work is not None:
            tissue = LatticeTissue(slide_id, GRID, Box(0, 0, 300, 300))
            (field,) = GRID.fields(field_px=512, halo_px=64)
            cell_set.write_part(
                work,
                field=field,
                cells=tissue.cells_in(GRID.box),
                core_mask=tissue.mask_in(field.core),
                counts=FieldCounts(num_tiles=2, analysed_px=100),
            )
            cell_set.commit(work, planned=[field], elsewhere=FieldCounts(), num_attempts=2)
        return work
    finally:
        cell_set.release(slide_id)


# ----------------------------------------------------------------------------------------------------- identity


def test_equal_identities_share_a_cell_set(url: str) -> None:
    CellSet(url).create_or_open(IDENTITY)
    CellSet(url).create_or_open(replace(IDENTITY, config=dict(reversed(IDENTITY.config.items()))))
    assert read_identity(ObjectStore(url)) == IDENTITY


def test_another_identity_is_refused_naming_each_difference_with_both_values(url: str) -> None:
    CellSet(url).create_or_open(IDENTITY)
    other = replace(
        IDENTITY,
        model_digest="m2",
        config={"target_mpp": 0.5, "decode": {"num_steps": 100}},
        ontology=get_ontology("monusac4"),
    )
    with pytest.raises(CellSetMismatchError) as caught:
        CellSet(url).create_or_open(other)
    message = str(caught.value)
    assert "model_digest: there 'm1', now 'm2'" in message
    assert "config.decode.num_steps: there 200, now 100" in message
    assert "config.decode.flow_error_max: there 0.4, now '(absent)'" in message
    assert "ontology.name: there 'refined7', now 'monusac4'" in message
    assert "target_mpp" not in message
    assert "another --out" in message


def test_two_drivers_that_create_at_once_both_succeed(url: str) -> None:
    barrier = threading.Barrier(6)
    errors: list[BaseException] = []

    def create() -> None:
        barrier.wait()
        try:
            CellSet(url).create_or_open(IDENTITY)
        except BaseException as error:  # noqa: BLE001 - reported by the test
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# ------------------------------------------------------------------------------------------------------- claims


def test_one_slide_has_one_driver_and_other_slides_are_free(url: str) -> None:
    first, second = CellSet(url).create_or_open(IDENTITY), CellSet(url).create_or_open(IDENTITY)
    first.claim("a")
    with pytest.raises(SlideClaimedError, match=r"Slide a on .* is being worked on by process \d+ on"):
        second.claim("a")
    second.claim("b")
    first.release("a")
    second.claim("a")
    with pytest.raises(SlideClaimedError):
        first.claim("b")
    first.close()
    second.close()


def test_of_many_that_take_over_a_stale_claim_one_wins(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(url)
    ClaimBook(store).claim("a")
    (key,) = store.list_keys("_work/a/claims")
    stale = {**json.loads(store.get(key)), "machine": "another", "heartbeat_at": time.time() - 121}
    store.put(key, json.dumps(stale).encode())
    books = [ClaimBook(store) for _ in range(8)]
    barrier, won = threading.Barrier(len(books)), list[ClaimBook]()

    def take(book: ClaimBook) -> None:
        barrier.wait()
        try:
            book.claim("a")
            won.append(book)
        except SlideClaimedError:
            pass

    threads = [threading.Thread(target=take, args=(book,)) for book in books]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].check("a")
    for book in books:
        book.close()


def test_a_live_driver_elsewhere_keeps_its_slide_until_its_heartbeat_is_old(url: str) -> None:
    store = ObjectStore(url)
    ClaimBook(store).claim("a")
    (key,) = store.list_keys("_work/a/claims")
    owner = json.loads(store.get(key))
    for age, held in ((60, True), (119, True), (121, False)):
        store.put(key, json.dumps({**owner, "machine": "another", "heartbeat_at": time.time() - age}).encode())
        book = ClaimBook(store)
        if held:
            with pytest.raises(SlideClaimedError, match=r"frees the slide after 120 s"):
                book.claim("a")
        else:
            book.claim("a")
        book.close()


@pytest.mark.parametrize(
    ("change", "gone"),
    [({}, False), ({"started_at": 1.0}, True), ({"pid": 2**22 + 1}, True), ({"machine": "x", "pid": 2**22 + 1}, False)],
    ids=["alive", "pid reused", "dead", "dead pid of another machine"],
)
def test_on_this_machine_a_dead_process_lets_go_at_once(change: dict[str, object], gone: bool) -> None:
    assert replace(Owner.this_process(), **change).is_gone() is gone


def test_the_heartbeat_renews_the_claim_and_notices_a_takeover(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.05)
    store = ObjectStore(url)
    book = ClaimBook(store)
    book.claim("a")
    (key,) = store.list_keys("_work/a/claims")
    first = json.loads(store.get(key))["heartbeat_at"]
    _wait_until(lambda: json.loads(store.get(key))["heartbeat_at"] > first)
    book.check("a")
    book._held["b"] = ("_work/b/claims/000000.json", Owner.this_process())
    store.put("_work/b/claims/000000.json", store.get(key))  # as a store that ignores conditions lets happen
    with pytest.raises(ClaimLostError):
        book.check("b")
    store.put("_work/a/claims/000007.json", store.get(key))
    with pytest.raises(ClaimLostError, match="another took it over"):
        book.check("a")
    _wait_until(lambda: "a" in book._lost)
    book.close()
    assert not json.loads(store.get("_work/a/claims/000007.json"))["released"]


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_driver_frees_its_slide_at_once_and_its_attempt_counts(tmp_path: Path) -> None:
    program = f"""
import time
from cellmill.store.cellset import CellSet
cell_set = CellSet({str(tmp_path)!r})
cell_set.claim("a")
cell_set.begin_attempt("a", scope="slide", slide_fingerprint="f1")
print("ready", flush=True)
time.sleep(600)
"""
    cell_set = CellSet(tmp_path).create_or_open(IDENTITY)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(SlideClaimedError):
            cell_set.claim("a")
        process.send_signal(signal.SIGKILL)
        # Not waited for yet: a zombie is gone, too.
        _wait_until(lambda: _can_claim(cell_set, "a"))
    (attempt,) = cell_set.attempts("a", scope="slide", slide_fingerprint="f1")
    assert attempt.outcome == ""
    cell_set.close()
    assert do_slide(cell_set, "a") is not None


def _can_claim(cell_set: CellSet, slide_id: str) -> bool:
    try:
        cell_set.claim(slide_id)
    except SlideClaimedError:
        return False
    return True


def test_what_needs_the_claim_is_refused_without_it(url: str) -> None:
    cell_set = CellSet(url).create_or_open(IDENTITY)
    with pytest.raises(ClaimLostError):
        cell_set.begin_slide(facts_of("a"), field_px=512, device_kind="cpu")


# ----------------------------------------------------------------------------------------------------- attempts


def test_attempts_count_across_drivers_also_when_killed_and_by_scope_and_file(url: str) -> None:
    for outcome in ("reader crashed", "", "ok"):
        cell_set = CellSet(url)
        attempt = cell_set.begin_attempt("a", scope="x00000_y00000", slide_fingerprint="f1")
        if outcome:
            cell_set.end_attempt(attempt, outcome=outcome)
    found = CellSet(url).attempts("a", scope="x00000_y00000", slide_fingerprint="f1")
    assert [(attempt.number, attempt.outcome) for attempt in found] == [(0, "reader crashed"), (1, ""), (2, "ok")]
    assert CellSet(url).attempts("a", scope="slide", slide_fingerprint="f1") == []
    assert CellSet(url).attempts("a", scope="x00000_y00000", slide_fingerprint="f2") == []


def test_attempts_survive_a_change_of_settings_and_go_with_the_commit(url: str) -> None:
    cell_set = CellSet(url).create_or_open(IDENTITY)
    cell_set.begin_attempt("a", scope="slide", slide_fingerprint="f1")
    for field_px in (256, 512):
        cell_set.claim("a")
        assert cell_set.begin_slide(facts_of("a"), field_px=field_px, device_kind="cpu")
        cell_set.release("a")
        assert len(cell_set.attempts("a", scope="slide", slide_fingerprint="f1")) == 1
    do_slide(cell_set, "a")
    assert cell_set.attempts("a", scope="slide", slide_fingerprint="f1") == []
    cell_set.close()


# ----------------------------------------------------------------------------------------------------- statuses


def test_a_done_slide_is_not_done_again_and_a_changed_file_is_refused(url: str) -> None:
    cell_set = CellSet(url).create_or_open(IDENTITY)
    assert do_slide(cell_set, "a") is not None
    assert do_slide(cell_set, "a") is None
    assert cell_set.store.list_keys("_work") == []
    with pytest.raises(SlideChangedError, match=r"Slide a is done .* fingerprint f1 then, f2 now"):
        do_slide(cell_set, "a", fingerprint="f2")
    status = cell_set.status("a")
    assert status is not None
    assert (status.outcome, status.num_attempts, status.slide_fingerprint) == ("done", 2, "f1")
    cell_set.close()


def test_a_failed_slide_may_be_done_later_also_from_a_repaired_file(url: str) -> None:
    cell_set = CellSet(url).create_or_open(IDENTITY)
    failed = SlideStatus(slide_id="a", outcome="failed", reasons=("Truncated.",), slide_fingerprint="f1")
    cell_set.write_status(failed)
    assert cell_set.status("a") == failed
    assert open_cells(url).collect().height == 0
    assert do_slide(cell_set, "a", fingerprint="f2") is not None
    status = cell_set.status("a")
    assert status is not None
    assert status.outcome == "done"
    cell_set.close()


def test_the_slides_table_is_the_statuses(url: str) -> None:
    cell_set = CellSet(url).create_or_open(IDENTITY)
    cell_set.refresh_slides_table()
    do_slide(cell_set, "b")
    cell_set.write_status(SlideStatus(slide_id="a", outcome="failed", reasons=("No mpp.", "Give --mpp.")))
    cell_set.refresh_slides_table()
    with cell_set.store.open_random("slides.parquet") as file:
        table = pq.read_table(file)
    assert table.schema.names == STATUS_SCHEMA.names
    rows = {row["slide_id"]: row for row in table.to_pylist()}
    assert list(rows) == ["a", "b"]
    assert rows["a"]["reasons"] == ["No mpp.", "Give --mpp."]
    status = cell_set.status("b")
    assert status is not None
    assert dict(rows["b"]["num_cells_by_type"]) == status.num_cells_by_type
    assert rows["b"]["excluded_background_mm2"] == 0
    cell_set.close()


def test_unsafe_ids_are_refused_before_anything_is_written(url: str) -> None:
    cell_set = CellSet(url)
    for act in (cell_set.claim, cell_set.forget, cell_set.status):
        with pytest.raises(UnsafeNameError):
            act("../a")
    assert cell_set.store.list_names("_work") == []


def test_a_cell_set_pickles_without_its_claims(url: str) -> None:
    cell_set = CellSet(url).create_or_open(IDENTITY)
    cell_set.claim("a")
    copy = pickle.loads(pickle.dumps(cell_set))  # noqa: S301 - our own bytes
    assert copy.url == cell_set.url
    with pytest.raises(SlideClaimedError):
        copy.claim("a")
    cell_set.close()


# --------------------------------------------------------------------------------------------------- forgetting


def test_forgetting_removes_everything_of_a_slide_and_leaves_a_tombstone(url: str) -> None:
    cell_set = CellSet(url).create_or_open(IDENTITY)
    for slide_id in ("a", "ab"):
        do_slide(cell_set, slide_id)
        cell_set.store.put(f"rescored/{slide_id}.parquet", b"scores")
    cell_set.refresh_slides_table()
    kept = {key: cell_set.store.get(key) for key in _keys(cell_set, "ab")}
    cell_set.forget("a")
    assert _keys(cell_set, "a") == ["slides/a.json"]
    assert {key: cell_set.store.get(key) for key in _keys(cell_set, "ab")} == kept
    assert open_cells(url).select(pl.col("slide_id").unique()).collect().to_series().to_list() == ["ab"]
    with cell_set.store.open_random("slides.parquet") as file:
        assert dict(zip(*(pq.read_table(file)[name].to_pylist() for name in ("slide_id", "outcome")), strict=True)) == {
            "a": "forgotten",
            "ab": "done",
        }
    with pytest.raises(SlideForgottenError, match=r"removed .* on request .* is not done again"):
        do_slide(cell_set, "a")
    cell_set.close()


def _keys(cell_set: CellSet, slide_id: str) -> list[str]:
    folders = ("cells", "masks", "slides", "rescored", "_work")
    found = [key for folder in folders for key in cell_set.store.list_keys(folder)]
    return [key for key in found if any(part.split(".")[0] == slide_id for part in key.split("/")[1:2])]


def test_a_slide_under_way_can_be_forgotten_when_nobody_works_on_it(url: str) -> None:
    first, second = CellSet(url).create_or_open(IDENTITY), CellSet(url).create_or_open(IDENTITY)
    first.claim("a")
    assert first.begin_slide(facts_of("a"), field_px=512, device_kind="cpu")
    with pytest.raises(SlideClaimedError):
        second.forget("a")
    first.release("a")
    second.forget("a")
    assert second.store.list_keys("_work") == []
    second.forget("a")
    first.close()
    second.close()
