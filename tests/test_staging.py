"""The node's slide cache: each slide once, whole or not at all, within its bounds, whatever dies or fails."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cellmill.slides.errors import SlideError, SlideNotFoundError
from cellmill.staging import download
from cellmill.staging.cache import CacheFullError, SlideCache, node_cache
from cellmill.staging.remote import describe_remote

CONTENT = bytes(range(256)) * 4000  # about a megabyte


@pytest.fixture
def remote() -> MemoryFileSystem:
    filesystem: MemoryFileSystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    for number in range(4):
        filesystem.pipe_file(f"/bucket/{number}.svs", CONTENT + bytes([number]))
    return filesystem


@pytest.fixture
def cache(tmp_path: Path) -> SlideCache:
    return SlideCache(tmp_path / "cache", max_bytes=2_200_000)  # two slides and no more


def test_a_nodes_cache_is_where_and_as_large_as_settings_say_or_this_users_own(tmp_path: Path) -> None:
    assert node_cache(str(tmp_path), gib=1.5) == SlideCache(tmp_path, max_bytes=3 << 29)
    assert node_cache() == node_cache("", gib=0.0)
    assert node_cache().max_bytes == 0
    assert str(os.getuid()) in node_cache().folder.name


def copies(cache: SlideCache) -> int:
    return sum(path.is_dir() for path in cache.folder.iterdir())


def test_a_local_slide_is_used_where_it_lies(cache: SlideCache, tmp_path: Path) -> None:
    with cache.stage(str(tmp_path / "a.svs")) as slide:
        assert slide.path == tmp_path / "a.svs"
    assert not cache.folder.exists()


def test_a_copy_is_the_file_and_is_made_once(
    cache: SlideCache, remote: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache.stage("memory://bucket/0.svs") as slide:
        assert slide.path.name == "0.svs"
        assert slide.path.read_bytes() == CONTENT + b"\0"
    monkeypatch.setattr("cellmill.staging.cache.download_slide", None)  # a second download would fail
    with cache.stage("memory://bucket/0.svs") as again:
        assert again.path == slide.path


def test_a_changed_slide_is_another_slide(cache: SlideCache, remote: MemoryFileSystem) -> None:
    with cache.stage("memory://bucket/0.svs") as slide:
        before = slide.path
    remote.pipe_file("/bucket/0.svs", b"scanned again")
    with cache.stage("memory://bucket/0.svs") as slide:
        assert slide.path != before
        assert slide.path.read_bytes() == b"scanned again"


def test_slides_of_many_files_come_whole(cache: SlideCache, remote: MemoryFileSystem) -> None:
    remote.pipe_file("/bucket/m.mrxs", b"index")
    remote.pipe_file("/bucket/m/Slidedat.ini", b"ini")
    remote.pipe_file("/bucket/m/deep/Data0000.dat", b"data")
    with cache.stage("memory://bucket/m.mrxs") as slide:
        beside = slide.path.parent / "m"
        assert (beside / "Slidedat.ini").read_bytes() == b"ini"
        assert (beside / "deep" / "Data0000.dat").read_bytes() == b"data"
    remote.pipe_file("/bucket/series/1.dcm", b"one")
    remote.pipe_file("/bucket/series/2.dcm", b"two")
    with cache.stage("memory://bucket/series") as slide:
        assert sorted(file.name for file in slide.path.iterdir()) == ["1.dcm", "2.dcm"]


def test_the_slide_used_longest_ago_goes_first(cache: SlideCache, remote: MemoryFileSystem) -> None:
    paths = []
    for number in (0, 1):
        with cache.stage(f"memory://bucket/{number}.svs") as slide:
            paths.append(slide.path)
        time.sleep(0.02)
    with cache.stage("memory://bucket/0.svs"):
        pass  # used again: now 1 is the older one
    with cache.stage("memory://bucket/2.svs"):
        assert paths[0].exists()
        assert not paths[1].exists()
    assert copies(cache) == 2


def test_a_slide_in_use_is_never_removed_and_waiting_for_room_ends(cache: SlideCache, remote: MemoryFileSystem) -> None:
    first, second = (cache.stage(f"memory://bucket/{number}.svs") for number in (0, 1))
    with pytest.raises(CacheFullError):
        cache.stage("memory://bucket/2.svs", wait=False)
    assert first.path.exists()
    threading.Timer(0.7, second.close).start()
    with cache.stage("memory://bucket/2.svs"):
        assert first.path.exists()
        assert not second.path.exists()
    first.close()


def test_a_slide_larger_than_the_cache_is_refused_with_the_figure(tmp_path: Path, remote: MemoryFileSystem) -> None:
    with pytest.raises(SlideError, match="slide-cache-gib"):
        SlideCache(tmp_path / "cache", max_bytes=1000).stage("memory://bucket/0.svs")


def test_many_threads_that_want_one_slide_fetch_it_once(
    cache: SlideCache, remote: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    original = download.download_slide

    def counting(slide: object, folder: Path) -> dict[str, int]:
        fetched.append(str(folder))
        time.sleep(0.1)
        return original(slide, folder)  # type: ignore[arg-type]

    monkeypatch.setattr("cellmill.staging.cache.download_slide", counting)
    read: list[bytes] = []

    def use() -> None:
        with cache.stage("memory://bucket/3.svs") as slide:
            read.append(slide.path.read_bytes())

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [CONTENT + b"\3"] * 8
    assert len(fetched) == 1


def _stage_and_hang(folder: str, begun: "multiprocessing.synchronize.Event") -> None:
    def hang(slide: object, folder: Path) -> dict[str, int]:
        (folder / "files").mkdir(parents=True, exist_ok=True)
        (folder / "files" / "half").write_bytes(b"half a slide")
        begun.set()
        time.sleep(600)
        return {}

    from cellmill.staging import cache

    cache.download_slide = hang  # type: ignore[assignment]
    fsspec.filesystem("memory").pipe_file("/bucket/0.svs", CONTENT + b"\0")
    SlideCache(Path(folder), max_bytes=2_200_000).stage("memory://bucket/0.svs")


def test_a_downloader_killed_midway_leaves_nothing_that_counts(tmp_path: Path, remote: MemoryFileSystem) -> None:
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=_stage_and_hang, args=(str(tmp_path / "cache"), begun))
    process.start()
    assert begun.wait(60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cache = SlideCache(tmp_path / "cache", max_bytes=2_200_000)
    with cache.stage("memory://bucket/1.svs"), cache.stage("memory://bucket/0.svs") as slide:
        assert slide.path.read_bytes() == CONTENT + b"\0"
    assert copies(cache) == 2
    assert not list(cache.folder.glob("*.partial"))


def test_a_copy_that_lost_bytes_is_made_again(cache: SlideCache, remote: MemoryFileSystem) -> None:
    with cache.stage("memory://bucket/0.svs") as slide:
        path = slide.path
    path.write_bytes(b"short")
    with cache.stage("memory://bucket/0.svs") as slide:
        assert slide.path.read_bytes() == CONTENT + b"\0"


def test_a_file_that_heals_is_found(remote: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    original, failures = MemoryFileSystem.info, iter([FileNotFoundError, FileNotFoundError])

    def info(self: MemoryFileSystem, path: str, **settings: object) -> object:
        if error := next(failures, None):
            raise error(path)
        return original(self, path, **settings)

    monkeypatch.setattr(MemoryFileSystem, "info", info)
    assert describe_remote("memory://bucket/0.svs").num_bytes == len(CONTENT) + 1


def test_a_slide_that_is_not_there_says_so(cache: SlideCache, remote: MemoryFileSystem) -> None:
    with pytest.raises(SlideNotFoundError, match="no such file"):
        cache.stage("memory://bucket/absent.svs")


@pytest.mark.parametrize("name", ["..", "a\\b", "nul\0"])
def test_no_file_name_of_a_bucket_leads_out_of_the_cache(
    cache: SlideCache, remote: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def find(self: MemoryFileSystem, path: str, **settings: object) -> dict[str, object]:
        return {f"{path}/{name}/x.dcm": {"type": "file", "size": 3}}

    remote.pipe_file("/bucket/series/1.dcm", b"one")
    monkeypatch.setattr(MemoryFileSystem, "find", find)
    with pytest.raises(SlideNotFoundError, match="not plain"):
        cache.stage("memory://bucket/series")


def test_a_wrong_md5_is_fetched_again_and_a_stable_copy_is_believed(
    tmp_path: Path, remote: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MemoryFileSystem.cat_file
    damages = iter([b"damaged"])

    def cat_file(self: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        content = original(self, path, start=start, end=end)
        return content[:-7] + damage if (damage := next(damages, None)) else content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path, **_: {
        "type": "file", "size": len(CONTENT) + 1, "ETag": '"5f31a1a35c4ee7c3b36a7a2a3dfdfdf0"'
    })  # fmt: skip
    # Damaged first, then whole, and the tag is neither's MD5: two copies that differ are no slide.
    with pytest.raises(SlideError, match="differently"):
        SlideCache(tmp_path / "one", max_bytes=0).stage("memory://bucket/0.svs")
    # Undamaged twice: the tag is no MD5.
    with SlideCache(tmp_path / "two", max_bytes=0).stage("memory://bucket/0.svs") as slide:
        assert slide.path.read_bytes() == CONTENT + b"\0"


def test_a_cache_that_others_may_write_to_is_refused(tmp_path: Path, remote: MemoryFileSystem) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(SlideError, match="alone may write"):
        SlideCache(folder, max_bytes=0).stage("memory://bucket/0.svs")
