"""Names, numbers and dates planted in headers and file names never come out: not in outputs, statuses or logs."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import oracle
import pyarrow.parquet as pq
import pytest
import tifffile
from cohort_helpers import RecordedProgress, run
from oracle import OracleModel, make_slide

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.engine import EngineFactory, serial_engine
from cellmill.cohort.manifest import list_sources
from cellmill.cohort.pipeline import ray_engine
from cellmill.privacy import (
    ALLOWED_FROM_A_SLIDE,
    allowed_properties,
    allowed_reader_name,
    pseudonym,
    read_secret,
    without_names,
    write_pseudonyms,
)
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.opening import open_slide
from cellmill.slides.reader import SlideInfo

NAME, SURNAME, ACCESSION, BORN, SCANNED, TIME, OPERATOR = (
    "Hildegunde", "Wackernagel", "S22-47110815", "1948-02-29", "2022:03:14", "14:31:07", "Knipperdolling",
)  # fmt: skip
IDENTIFIERS = (NAME, SURNAME, ACCESSION, BORN, "19480229", SCANNED, "03/14/22", TIME, OPERATOR)
LABEL_COLOUR = (255, 0, 255)
SIZE = {"width": 420, "height": 300}


def everything() -> str:
    return f"Patient = {NAME} {SURNAME}|Barcode = {ACCESSION}|Born = {BORN}|User = {OPERATOR}"


def label_image(side: int = 96) -> np.ndarray:
    label = np.empty((side, side, 3), np.uint8)
    label[:] = LABEL_COLOUR
    return label


def write_svs(path: Path, pixels: np.ndarray) -> None:
    aperio = f"Aperio Image Library v1\r\n420x300|AppMag = 20|{everything()}|Date = 03/14/22|Time = {TIME}|MPP = 0.5"
    options = {"photometric": "rgb", "metadata": None, "software": False}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(240, 240), compression="zlib", description=aperio, **options)
        file.write(label_image(), description=f"Aperio\r\nlabel 96x96 {ACCESSION}", subfiletype=1, **options)
        file.write(label_image(), description=f"Aperio\r\nmacro 96x96 {SURNAME}", subfiletype=9, **options)


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    tags = [(269, ACCESSION), (315, OPERATOR), (316, SURNAME), (33432, f"{NAME} {BORN}"), (285, "19480229")]
    tifffile.imwrite(
        path, pixels, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None,
        description=everything(), datetime=f"{SCANNED} {TIME}", software=OPERATOR,
        resolution=(20000, 20000), resolutionunit="CENTIMETER",
        extratags=[(code, 2, 0, text, True) for code, text in tags],
    )  # fmt: skip


def write_ome(path: Path, pixels: np.ndarray) -> None:
    common = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"photometric": "rgb", "compression": "zlib"}
        about = {**common, "Name": SURNAME, "Description": everything(), "AcquisitionDate": f"2022-03-14T{TIME}"}
        file.write(pixels, rowsperstrip=64, metadata=about, **options)
        file.write(label_image(), metadata={**common, "Name": f"label image {ACCESSION}"}, **options)


def write_dicom(path: Path, whole: bytes) -> None:
    """A real DICOM slide with a name, dates and a number put into its elements (explicit VR, little endian)."""
    for group, element, value in (
        (0x0010, 0x0010, f"{SURNAME}^{NAME}"), (0x0010, 0x0030, "19480229"), (0x0008, 0x0050, ACCESSION),
        (0x0010, 0x0020, ACCESSION), (0x0008, 0x1070, OPERATOR), (0x0008, 0x0080, SURNAME),
    ):  # fmt: skip
        tag = group.to_bytes(2, "little") + element.to_bytes(2, "little")
        for kind in (b"PN", b"DA", b"SH", b"LO"):
            at = whole.find(tag + kind)
            if at >= 0:
                length = int.from_bytes(whole[at + 6 : at + 8], "little")
                text = value.encode() + b" " * (len(value) % 2)
                whole = whole[: at + 6] + len(text).to_bytes(2, "little") + text + whole[at + 8 + length :]
                break
    path.write_bytes(whole)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder of slides with cells, every header full of identifiers, and two that fail."""
    folder = tmp_path / "slides"
    for stem, suffix, write in (
        ("first", ".svs", write_svs), ("second", ".tif", write_tiff), ("third", ".ome.tif", write_ome),
    ):  # fmt: skip
        make_slide(folder / f"{stem}.png.tif", **SIZE)
        (folder / f"{stem}.png.truth.npz").rename(folder / f"{stem}.truth.npz")
        pixels = tifffile.imread(folder / f"{stem}.png.tif")
        (folder / f"{stem}.png.tif").unlink()
        write(folder / f"{stem}{suffix}", pixels)
    (folder / "letter.svs").write_text(f"Dear {NAME} {SURNAME}, about {ACCESSION}")
    whole = (folder / "second.tif").read_bytes()
    (folder / "broken.tif").write_bytes(whole[:8] + b"\xff" * 400 + everything().encode() + whole[900:1500])
    return folder


def traces(text: bytes, identifiers: tuple[str, ...] = IDENTIFIERS) -> list[str]:
    lowered = text.lower()
    return [name for name in identifiers for form in (name, name.encode().hex()) if form.lower().encode() in lowered]


def assert_no_trace(out: Path, *, logs: str, identifiers: tuple[str, ...] = IDENTIFIERS) -> None:
    """Search names and bytes of all outputs, tables as text, and what was logged."""
    for path in out.rglob("*"):
        assert not traces(str(path.relative_to(out)).encode(), identifiers), path
        if path.is_file():
            assert not traces(path.read_bytes(), identifiers), path
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                said = json.dumps(
                    table.drop_columns(["geometry"] if "geometry" in table.column_names else []).to_pylist()
                )
                assert not traces((said + repr(table.schema.metadata)).encode(), identifiers), path
    assert not traces(logs.encode(), identifiers)


@contextmanager
def rays_own_logs() -> Iterator[list[str]]:
    """What Ray's log files gain meanwhile."""
    import ray

    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    before = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    gained: list[str] = []
    yield gained
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                file.seek(before.get(path, 0))
                gained.append(file.read().decode("utf-8", "replace"))


# --------------------------------------------------------------------------------------------------- whole cohorts


def run_and_search(
    slides: Path, out: Path, engine: EngineFactory, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = RecordedProgress()
    report = run(slides, out, OracleModel(slides), engine=engine, progress=progress)
    outcomes = {status.slide_id: status.outcome for status in report.statuses}
    assert outcomes == {"first": "done", "second": "done", "third": "done", "letter": "failed", "broken": "failed"}
    told = capfd.readouterr()
    statuses = json.dumps([status.to_json() for status in report.statuses])
    assert_no_trace(out, logs="\n".join([*progress.said, statuses, caplog.text, told.out, told.err]))


def test_no_identifier_of_a_header_comes_out_of_a_run_in_this_process(
    planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow/runs.db")
    for path in planted.glob("*.*"):
        if path.suffix in (".svs", ".tif"):
            assert traces(path.read_bytes()), f"{path.name} holds no identifier: the test would prove nothing"
    run_and_search(planted, tmp_path / "out", serial_engine, caplog, capfd)
    assert_no_trace(tmp_path / "mlflow", logs="")


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Ray's own
def test_no_identifier_of_a_header_comes_out_of_a_run_on_ray(
    planted: Path, tmp_path: Path, ray_session: None,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    del ray_session
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(oracle)  # workers do not import the tests' modules
    try:
        with rays_own_logs() as logged:
            run_and_search(planted, tmp_path / "out", ray_engine, caplog, capfd)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(oracle)
    assert not traces("\n".join(logged).encode())


def test_no_identifier_of_a_dicom_header_comes_out(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "slides").mkdir()
    write_dicom(tmp_path / "slides" / "a.dcm", (shared_data / "dicom" / "sm_image.dcm").read_bytes())
    assert len(traces((tmp_path / "slides" / "a.dcm").read_bytes())) >= 4
    progress = RecordedProgress()
    report = run(tmp_path / "slides" / "a.dcm", tmp_path / "out", OracleModel(tmp_path), progress=progress)
    assert report.statuses[0].outcome in ("done", "done_empty"), report.statuses
    assert_no_trace(tmp_path / "out", logs="\n".join([*progress.said, caplog.text, repr(report)]))


def test_names_of_files_and_folders_stay_hidden_under_pseudonyms(
    planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"{SURNAME} {NAME}" / ACCESSION
    folder.parent.mkdir()
    planted.rename(folder)
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    key.chmod(0o600)
    for number, path in enumerate(sorted(folder.glob("*.*"))):
        if not path.name.endswith(".npz"):
            path.rename(folder / f"{ACCESSION} {SURNAME} {number}{''.join(path.suffixes)}")
    truth = next(folder.glob("*.npz"))
    for source in list_sources([str(folder)], secret=key.read_bytes()):
        shutil.copy(truth, folder / f"{source.slide_id}.truth.npz")
    progress = RecordedProgress()
    table = tmp_path / "who.csv"
    report = run(
        folder,
        tmp_path / "out",
        OracleModel(folder),
        progress=progress,
        pseudonymize=str(key),
        pseudonym_map=str(table),
    )
    assert {status.outcome for status in report.statuses} == {"done", "failed"}
    told = capfd.readouterr()
    logs = "\n".join([*progress.said, repr(report.statuses), caplog.text, told.out, told.err])
    assert_no_trace(tmp_path / "out", logs=logs)
    known = dict(line.split(",", 1) for line in table.read_text().splitlines()[1:])
    assert set(known) == {status.slide_id for status in report.statuses}
    assert all(SURNAME in path for path in known.values())
    assert table.stat().st_mode & 0o777 == 0o600


# -------------------------------------------------------------------------------------- pixels of labels and macros


def test_no_level_of_a_slide_shows_its_label(planted: Path) -> None:
    for name in ("first.svs", "third.ome.tif"):
        reader = open_slide(planted / name)
        for index, level in enumerate(reader.levels):
            pixels = reader.read_block(index, 0, 0, level.width_px, level.height_px).astype(int)
            like_label = np.abs(pixels - LABEL_COLOUR).max(axis=-1) < 60
            assert not like_label.any(), (name, index)
        reader.close()


def test_only_what_is_listed_leaves_the_process_that_opens_a_slide(planted: Path) -> None:
    for name in ("first.svs", "second.tif", "third.ome.tif"):
        with IsolatedSlide(planted / name, target_mpp=0.5) as slide:
            document = slide.info.to_json()
        assert set(document) == set(ALLOWED_FROM_A_SLIDE)
        assert not traces(json.dumps(document).encode())
        assert slide.mpp == (0.5, 0.5)


# ------------------------------------------------------------------------------------------------------ the list


def test_properties_that_are_not_listed_or_not_numbers_are_dropped() -> None:
    properties = {
        "openslide.vendor": "aperio", "openslide.mpp-x": "0.499", "openslide.mpp-y": SURNAME,
        "aperio.Barcode": ACCESSION,
        "openslide.comment": everything(), "tiff.DateTime": SCANNED, "openslide.bounds-x": "nan",
    }  # fmt: skip
    assert allowed_properties(properties) == {"openslide.vendor": "aperio", "openslide.mpp-x": "0.499"}
    assert allowed_properties({"openslide.vendor": f"{SURNAME} {ACCESSION}"}) == {}


def test_a_reader_of_someone_elses_cannot_smuggle_text_out_by_its_name() -> None:
    assert allowed_reader_name("openslide/generic-tiff") == "openslide/generic-tiff"
    for name in (ACCESSION, f"mine/{SURNAME}", "a" * 50, "mine/19480229", ""):
        assert allowed_reader_name(name) == "unknown"
    level = {"width_px": 10, "height_px": 10, "downsample_x": 1, "downsample_y": 1}
    document = {"levels": [level], "stated_mpp": [0.5, 0.5], "bounds_level0_px": [0, 0], "fingerprint": "f"}
    assert SlideInfo.from_json({**document, "reader_name": f"x {SURNAME}"}).reader_name == "unknown"
    with pytest.raises(ValueError, match="invalid literal"):
        SlideInfo.from_json({**document, "reader_name": "x", "levels": [{**level, "width_px": "ten"}]})


# ---------------------------------------------------------------------------------------------------- pseudonyms


def test_pseudonyms_are_the_keyed_hash_that_the_standard_says() -> None:
    # RFC 4231, test case 2: HMAC-SHA-256 of "what do ya want for nothing?" under the key "Jefe".
    assert pseudonym("what do ya want for nothing?", b"Jefe") == "5bdcc146bf60754e6a042426089575c7"


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "key").write_bytes(b"0123456789abcdef0123456789abcdef")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(ValueError, match="chmod 600"):
        read_secret(str(tmp_path / "key"))
    (tmp_path / "key").chmod(0o400)
    assert read_secret(str(tmp_path / "key")) == b"0123456789abcdef0123456789abcdef"


def test_the_map_of_pseudonyms_grows_and_never_lies_in_the_output(tmp_path: Path) -> None:
    path = tmp_path / "who.csv"
    write_pseudonyms(path, [("b", "/x/b.svs")], out=str(tmp_path / "out"))
    write_pseudonyms(path, [("a", "/x/a, or not.svs")], out="s3://bucket/out")
    assert path.read_text().splitlines() == ["slide_id,slide", 'a,"/x/a, or not.svs"', "b,/x/b.svs"]
    (tmp_path / "out").mkdir()
    for inside in (tmp_path / "out" / "who.csv", tmp_path / "out" / "slides" / "who.csv"):
        with pytest.raises(ValueError, match="inside --out"):
            write_pseudonyms(inside, [], out=str(tmp_path / "out"))


def test_a_map_without_pseudonyms_is_a_mistake_that_is_told() -> None:
    with pytest.raises(ValueError, match="--pseudonym-map must be left out without --pseudonymize"):
        SegmentCohortConfig(slides=("a.svs",), out="out", pseudonym_map="who.csv")


def test_text_loses_path_folders_name_and_stem() -> None:
    url = f"/data/{SURNAME}/{ACCESSION} x.ome.tif"
    said = f"cannot open {url}: /data/{SURNAME} is no folder; see {ACCESSION} x and {ACCESSION} x.ome.tif"
    assert not traces(without_names(said, url, instead="p").encode())
    assert without_names("a bad slide", "/data/in/a.svs", instead="P") == "P bad slide"


def test_problems_of_a_manifest_are_told_without_names(tmp_path: Path) -> None:
    (tmp_path / f"{ACCESSION}.svs").write_bytes(b"x")
    (tmp_path / "list.csv").write_text(f"slide,mpp\n{ACCESSION}.svs,{ACCESSION}\n")
    (source,) = list_sources([str(tmp_path / "list.csv")], secret=b"0123456789abcdef")
    assert source.problem is not None and not traces(source.problem.encode())


def test_values_of_properties_that_are_not_listed_are_not_even_fetched() -> None:
    class Damaged(Mapping[str, str]):
        names = ("openslide.vendor", "tiff.ImageDescription")

        def __getitem__(self, name: str) -> str:
            if name == "openslide.vendor":
                return "aperio"
            raise KeyError(name)

        def __iter__(self) -> Iterator[str]:
            return iter(self.names)

        def __len__(self) -> int:
            return len(self.names)

    assert allowed_properties(Damaged()) == {"openslide.vendor": "aperio"}
