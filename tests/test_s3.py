"""Object storage over a real S3 API: the store's contract, storage that fails, and whole runs from bucket to bucket."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from cohort_helpers import RecordedProgress, run
from oracle import OracleModel, make_slide
from s3_server import CREDENTIALS, Fault, FaultProxy, fault_proxy, moto_server
from test_store_objects import ObjectStoreContract

from cellmill.store.claims import ClaimBook
from cellmill.store.errors import OutputError
from cellmill.store.objects import ObjectStore
from cellmill.store.reading import open_cells

PASSING: tuple[Fault, ...] = ("slow down", "drop", "cut body", "trickle")


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    with moto_server() as port, fault_proxy(port) as proxy, pytest.MonkeyPatch.context() as environment:
        for name, value in {**CREDENTIALS, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": proxy.url}.items():
            environment.setenv(name, value)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.delenv("AWS_PROFILE", raising=False)
        yield proxy


@pytest.fixture
def bucket(proxy: FaultProxy) -> str:
    proxy.fail()
    name = f"cells-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


class TestS3Store(ObjectStoreContract):
    @pytest.fixture
    def store(self, bucket: str) -> ObjectStore:
        return ObjectStore(f"{bucket}/root")


@pytest.mark.parametrize("fault", PASSING)
def test_reads_and_writes_outlast_what_passes(bucket: str, proxy: FaultProxy, fault: Fault) -> None:
    store = ObjectStore(f"{bucket}/root")
    content = bytes(range(256)) * 400
    proxy.fail(fault, fault)
    store.put("cells/a", content)
    proxy.fail(fault, fault)
    assert store.get("cells/a") == content
    store.put("cells/b", b"b")
    proxy.fail(fault, fault)
    assert store.get_many(["cells/a", "cells/b", "cells/none"]) == {"cells/a": content, "cells/b": b"b"}
    proxy.fail(fault, fault)
    assert store.exists("cells/a")
    proxy.fail(fault, fault)
    assert store.list_keys("cells") == ["cells/a", "cells/b"]
    proxy.fail(fault, fault)
    with store.publishing("cells/c") as file:
        file.write(content)
    assert store.get("cells/c") == content
    proxy.fail(fault, fault)
    store.delete("cells/c")
    assert store.list_names("cells") == ["a", "b"]


def test_throttling_longer_than_the_client_library_waits_is_waited_out(bucket: str, proxy: FaultProxy) -> None:
    store = ObjectStore(f"{bucket}/root")
    proxy.fail(*["slow down"] * 14)
    store.put("key", b"content")
    assert store.get("key") == b"content"


def test_a_claim_whose_answer_was_lost_is_held(bucket: str, proxy: FaultProxy) -> None:
    book = ClaimBook(ObjectStore(f"{bucket}/root"))
    proxy.fail("lose answer", matching=lambda method, path: method == "PUT")
    book.claim("slide")
    book.check("slide")
    book.close()


@pytest.mark.parametrize("fault", ["expired", "forbidden"])
def test_what_does_not_pass_is_told_at_once_without_secrets(bucket: str, proxy: FaultProxy, fault: Fault) -> None:
    store = ObjectStore(f"{bucket}/root")
    for action in (lambda: store.put("key", b"x"), lambda: store.get("key"), lambda: store.list_keys("a")):
        proxy.fail(*[fault] * 50)
        started = time.monotonic()
        with pytest.raises(OutputError) as caught:
            action()
        assert time.monotonic() - started < 10
        assert not any(secret in str(caught.value) for secret in CREDENTIALS.values())
    proxy.fail()


def test_a_bucket_that_is_not_there_says_so(bucket: str) -> None:
    with pytest.raises(OutputError, match="absent-bucket"):
        ObjectStore("s3://absent-bucket/root").put("key", b"x")


def test_an_upload_that_breaks_off_is_never_visible(bucket: str, proxy: FaultProxy) -> None:
    store = ObjectStore(f"{bucket}/root")
    with pytest.raises(RuntimeError, match="midway"), store.publishing("cells/a.parquet") as file:
        file.write(b"first half")
        raise RuntimeError("midway")
    assert store.list_keys("cells") == []


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for number in range(2):
        make_slide(folder / f"slide_{number}.tif", seed=number)
    return folder


@pytest.fixture(scope="module")
def quiet(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every object of a run on a local disk, but for clock times."""
    out = tmp_path_factory.mktemp("quiet")
    assert run(slides, out).all_done
    return lasting_objects(ObjectStore(str(out)))


def lasting_objects(store: ObjectStore) -> dict[str, bytes]:
    keys = [key for folder in ("cells", "masks") for key in store.list_keys(folder)]
    return {key: store.get(key) for key in keys}


def upload(folder: Path, bucket: str) -> str:
    filesystem = fsspec.filesystem("s3")
    for file in sorted(folder.glob("*.tif*")):
        filesystem.put_file(str(file), f"{bucket}/slides/{file.name}")
    return f"{bucket}/slides"


def test_a_run_from_bucket_to_bucket_equals_one_on_disk(
    bucket: str, slides: Path, quiet: dict[str, bytes], tmp_path: Path
) -> None:
    report = run([upload(slides, bucket)], f"{bucket}/out", OracleModel(slides), slide_cache=str(tmp_path / "cache"))
    assert report.all_done, report.statuses
    assert lasting_objects(ObjectStore(f"{bucket}/out")) == quiet
    assert ObjectStore(f"{bucket}/out").list_names("_work") == []


@pytest.mark.slow
def test_faults_of_the_storage_change_nothing(
    bucket: str, proxy: FaultProxy, slides: Path, quiet: dict[str, bytes], tmp_path: Path
) -> None:
    where = upload(slides, bucket)
    every_seventh: list[Fault] = []
    for number in range(60):
        every_seventh += ["pass"] * 6 + [PASSING[number % len(PASSING)]]
    proxy.fail(*every_seventh)
    progress = RecordedProgress()
    report = run([where], f"{bucket}/out", OracleModel(slides), slide_cache=str(tmp_path / "c"), progress=progress)
    injected = sum(proxy.seen[fault] for fault in PASSING)
    proxy.fail()
    assert report.all_done, report.statuses
    assert injected >= 20
    assert lasting_objects(ObjectStore(f"{bucket}/out")) == quiet


def test_cell_tables_in_a_bucket_are_queried_in_place(
    bucket: str, slides: Path, quiet: dict[str, bytes], tmp_path: Path
) -> None:
    assert run(slides, f"{bucket}/out").all_done
    cells = open_cells(f"{bucket}/out").select("slide_id", "cell_id", "cell_type").collect()
    assert cells.height > 0
    assert set(cells["slide_id"].to_list()) == {"slide_0", "slide_1"}


def test_nothing_written_holds_a_credential(bucket: str, slides: Path, tmp_path: Path) -> None:
    where = upload(slides, bucket)
    assert run([where], tmp_path / "out", OracleModel(slides), slide_cache=str(tmp_path / "cache")).all_done
    store = ObjectStore(str(tmp_path / "out"))
    for key in [*store.list_keys("slides"), "cellset.json", "slides.parquet"]:
        content = store.get(key)
        assert not any(secret.encode() in content for secret in CREDENTIALS.values()), key
