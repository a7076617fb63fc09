"""Storage primitives: whole objects or none, on every kind of storage."""

import errno
import os
import pickle
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellmill.store.errors import OutputError, UnsafeNameError
from cellmill.store.layout import cells_key, check_slide_id
from cellmill.store.objects import ObjectStore


class ObjectStoreContract:
    """What every storage must do; subclasses say where."""

    @pytest.fixture
    def store(self) -> Iterator[ObjectStore]:
        raise NotImplementedError

    def test_put_replaces_the_whole_object(self, store: ObjectStore) -> None:
        store.put("a/b.json", b"long before")
        store.put("a/b.json", b"now")
        assert store.get("a/b.json") == b"now"
        assert store.exists("a/b.json")
        assert not store.exists("a")

    def test_absent_objects_are_said_to_be_absent(self, store: ObjectStore) -> None:
        with pytest.raises(FileNotFoundError):
            store.get("nothing/here")
        assert store.get_many(["nothing/here", "nor/here"]) == {}
        assert store.list_keys("nothing") == []
        assert store.list_names("nothing") == []
        store.delete("nothing/here")
        store.delete_tree("nothing")

    def test_only_one_of_many_creators_wins(self, store: ObjectStore) -> None:
        barrier = threading.Barrier(8)
        won: list[int] = []

        def create(number: int) -> None:
            barrier.wait()
            if store.create("claims/0.json", str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.get("claims/0.json") == str(won[0]).encode()

    def test_listings_are_fresh_and_sorted(self, store: ObjectStore) -> None:
        assert store.list_keys("a") == []
        for key in ("a/2", "a/b/1", "a/10", "ab/1"):
            store.put(key, b"x")
        assert store.list_keys("a") == ["a/10", "a/2", "a/b/1"]
        assert store.list_names("a") == ["10", "2", "b"]
        assert store.get_many(["a/2", "a/b/1", "a/none"]) == {"a/2": b"x", "a/b/1": b"x"}

    def test_a_tree_goes_as_a_whole_and_alone(self, store: ObjectStore) -> None:
        for key in ("a/1", "a/b/2", "ab/1"):
            store.put(key, b"x")
        store.delete_tree("a")
        assert store.list_keys("a") == []
        assert store.list_keys("ab") == ["ab/1"]

    def test_a_published_object_appears_at_the_end_or_not_at_all(self, store: ObjectStore) -> None:
        with store.publishing("t/table") as file:
            file.write(b"first ")
            assert not store.exists("t/table")
            file.write(b"second")
        assert store.get("t/table") == b"first second"
        with pytest.raises(RuntimeError, match="on purpose"), store.publishing("t/table") as file:
            file.write(b"half")
            raise RuntimeError("on purpose")
        assert store.get("t/table") == b"first second"
        assert store.list_names("t") == ["table"]

    def test_random_reads_see_the_object(self, store: ObjectStore) -> None:
        store.put("r", bytes(range(100)))
        with store.open_random("r") as file:
            file.seek(10)
            assert file.read(3) == bytes([10, 11, 12])

    def test_no_key_leaves_the_root(self, store: ObjectStore) -> None:
        for key in ("../x", "a/../../x", "/etc/x", "a//b", "", "a/./b", "a\\b", "a/\0"):
            with pytest.raises(UnsafeNameError):
                store.put(key, b"x")

    def test_a_store_pickles_as_its_url(self, store: ObjectStore) -> None:
        store.put("k", b"v")
        assert pickle.loads(pickle.dumps(store)).get("k") == b"v"  # noqa: S301 - our own bytes


class TestLocalStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return ObjectStore(tmp_path / "out with spaces")

    def test_create_works_without_hard_links(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)
        assert store.create("a", b"1")
        assert not store.create("a", b"2")
        assert store.get("a") == b"1"

    def test_a_relative_root_keeps_its_meaning_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        store = ObjectStore("out")
        monkeypatch.chdir("/")
        store.put("a", b"1")
        assert (tmp_path / "out" / "a").read_bytes() == b"1"

    def test_leftovers_of_killed_writers_are_no_objects_and_can_be_swept(self, store: ObjectStore) -> None:
        store.put("cells/s.parquet", b"x")
        leftover = Path(store.path("cells")) / ".s.parquet.0123.tmp"
        leftover.write_bytes(b"half")
        assert store.list_keys("cells") == ["cells/s.parquet"]
        store.sweep("cells", name="s.parquet")
        assert not leftover.exists()

    def test_a_write_the_system_cuts_short_leaves_the_old_object(self, store: ObjectStore) -> None:
        # A file-size limit stops a write half way, as a full disk does; Python ignores the signal that goes with it.
        store.put("a", b"old")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            with pytest.raises(OutputError, match=r"Could not write .*/a: .*Free space"):
                store.put("a", bytes(1 << 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert store.get("a") == b"old"
        assert [path.name for path in Path(store.path("a")).parent.iterdir()] == ["a"]

    def test_a_full_disk_is_named_with_what_to_do(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"Could not write .*No space left on device.*run the same command again"):
            store.put("a/b", b"1")
        with pytest.raises(OutputError, match="No space left"), store.publishing("a/c") as file:
            file.write(b"1")
        assert store.list_names("a") == []

    def test_an_unwritable_place_is_named_with_what_to_do(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)  # tests may run as root, whom no mode stops
        with pytest.raises(OutputError, match="Make the place writable"):
            store.put("a", b"1")

    def test_a_file_in_the_way_is_an_output_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(OutputError, match="Could not write"):
            ObjectStore(tmp_path / "file" / "out").put("a", b"1")


class TestMemoryStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return ObjectStore(f"memory://{tmp_path}")


@pytest.mark.parametrize("slide_id", ["0012", "TCGA-AA-3872-01Z.DX1", "a", "_a", "x" * 128, "a..b"])
def test_safe_slide_ids_become_file_names(slide_id: str) -> None:
    assert cells_key(slide_id) == f"cells/{slide_id}.parquet"


@pytest.mark.parametrize("slide_id", ["", ".", "..", "../x", ".hidden", "a/b", "a b", "ä", "x" * 129, "a\n", "a\\b"])
def test_unsafe_slide_ids_are_refused(slide_id: str) -> None:
    with pytest.raises(UnsafeNameError, match="manifest"):
        check_slide_id(slide_id)
