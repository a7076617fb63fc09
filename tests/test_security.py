"""Nothing that comes from outside runs code, leaves the output's root, or takes more than its share."""

import ast
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellmill.cohort.manifest import list_sources, make_safe_id
from cellmill.slides.errors import (
    RegionFileError,
    SlideError,
    SlideReadError,
    SlideTooLargeError,
    UnsupportedSlideError,
)
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.isolation import ReaderLimits
from cellmill.slides.opening import open_slide
from cellmill.slides.overview import read_overview
from cellmill.slides.reader import SlideLevel
from cellmill.slides.regions import read_regions
from cellmill.store import layout
from cellmill.store.errors import UnsafeNameError
from cellmill.store.objects import ObjectStore

REPOSITORY = Path(__file__).resolve().parents[1]
OUR_CODE = sorted(
    path
    for folder in ("platform", "training", "schemas", "jobs", "benchmarks")
    for path in (REPOSITORY / folder).rglob("*.py")
)
INFRA = REPOSITORY / "infra"


# ----------------------------------------------------------------------------------------- what the code never does

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "os.system": "runs text in a shell",
    "os.popen": "runs text in a shell",
    "tempfile.mktemp": "names a file that someone else may make first",
    "yaml.load": "makes any object; use yaml.safe_load",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "makes more than data",
    "pd.read_pickle": "loads a pickle",
    "pandas.read_pickle": "loads a pickle",
    "torch.hub.load": "runs code from the network",
    "pickle.load": "loads a pickle",
    "pickle.loads": "loads a pickle",
    "ElementTree.parse": "expands entities; use defusedxml",
    "ElementTree.fromstring": "expands entities; use defusedxml",
    "ElementTree.iterparse": "expands entities; use defusedxml",
    "etree.parse": "expands entities; use defusedxml",
    "etree.fromstring": "expands entities; use defusedxml",
    "minidom.parse": "expands entities; use defusedxml",
    "minidom.parseString": "expands entities; use defusedxml",
}
XML_NAMES = {"parse", "fromstring", "iterparse", "XMLParser", "XMLPullParser", "parseString"}


def faults_of(source: str) -> Iterator[str]:
    """What a module does that it should not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # The name of an error that torch raises is all that may be wanted of pickle.
                names_an_error = alias.name == "pickle" and set(re.findall(r"pickle\.(\w+)", source)) == {
                    "UnpicklingError"
                }
                if alias.name.split(".")[0] in FORBIDDEN_MODULES and not names_an_error:
                    yield f"line {node.lineno} imports {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in FORBIDDEN_MODULES:
                yield f"line {node.lineno} imports from {node.module}"
            if node.module.startswith("xml.") and XML_NAMES & {alias.name for alias in node.names}:
                yield f"line {node.lineno} parses XML without defusedxml"
        elif isinstance(node, ast.Call):
            yield from (f"line {node.lineno} {fault}" for fault in faults_of_call(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "0.0.0.0" in node.value:
            yield f"line {node.lineno} names the address of every interface"


def faults_of_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name in FORBIDDEN_CALLS:
        yield f"calls {name}, which {FORBIDDEN_CALLS[name]}"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "calls torch.load without weights_only=True"
    for word in ("allow_pickle", "shell", "trust_remote_code"):
        if keywords.get(word, "False") != "False":
            yield f"calls {name} with {word}={keywords[word]}"


def test_no_code_of_ours_loads_pickles_or_runs_what_it_is_given() -> None:
    assert len(OUR_CODE) > 100
    found = {
        str(path.relative_to(REPOSITORY)): faults
        for path in OUR_CODE
        if (faults := list(faults_of(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "from xml.etree.ElementTree import fromstring",
        "from xml.etree import ElementTree\nElementTree.parse('x')",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import ray\nray.init(dashboard_host='0.0.0.0')",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(faults_of(source))


def test_a_pickle_in_a_models_place_is_refused_and_does_not_run(tmp_path: Path) -> None:
    import pickle

    from cellmill.models.loading import ModelNotFoundError, load_model

    class Planted:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_bytes(b"{}")
    for name in ("weights.safetensors", "weights.pt"):
        (model / name).write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ModelNotFoundError):
        load_model(model)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------- paths stay in the root

HOSTILE = [
    "..",
    "../x",
    "/etc/passwd",
    "a/../../b",
    "a\0b",
    "a\\..\\b",
    "C:\\x",
    "~root",
    ".",
    "",
    "a\nb",
    "con",
    "\u202egpj.exe",
]
HOSTILE += [
    "．．/x",
    "a／b",
    "\ud800",
    "%2e%2e%2f",
    "a" * 500,
    "-rf",
    "..%00/",
    "é̂" * 60,
    "$(id)",
    ".hidden",
    "a/.",
    "//x",
]
names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=40),
    st.lists(st.sampled_from(["..", ".", "a", "", "\0", "\\", "~", "．．"]), min_size=1, max_size=6).map("/".join),
)


@given(names)
def test_any_name_becomes_an_id_that_every_key_keeps_inside_the_root(name: str) -> None:
    slide_id = make_safe_id(name)
    assert layout.check_slide_id(slide_id) == slide_id
    store = ObjectStore("/root-of/cells")
    for key in (
        layout.cells_key(slide_id),
        layout.status_key(slide_id),
        layout.digests_key(slide_id),
        layout.rescored_key(slide_id),
        layout.embeddings_key("student", slide_id),
        layout.embedding_record_key("teacher", slide_id),
        layout.retyped_key("tumour-board", slide_id),
        layout.mask_shard_key(slide_id, level=0, row=0, column=0),
        layout.part_key(slide_id, "0123456789abcdef", "x00000_y00000"),
        layout.core_mask_key(slide_id, "0123456789abcdef", "x00000_y00000"),
    ):
        path = store.path(key)
        assert os.path.normpath(path) == path and path.startswith("/root-of/cells/")


@given(names)
def test_a_name_that_was_not_made_safe_is_refused_or_harmless(name: str) -> None:
    store = ObjectStore("/root-of/cells")
    try:
        keys = [layout.cells_key(name), layout.mask_prefix(name), layout.work_prefix(name)]
    except UnsafeNameError:
        return
    assert all(os.path.normpath(store.path(key)) == store.path(key) for key in keys)


@given(key=names)
def test_no_key_leaves_the_root(key: str) -> None:
    store = ObjectStore("/root-of/cells")
    try:
        path = store.path(key)
    except UnsafeNameError:
        return
    assert os.path.normpath(path) == path and path.startswith("/root-of/cells/")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(listed=st.lists(names, min_size=1, max_size=4))
def test_ids_of_a_manifest_stay_inside(tmp_path: Path, listed: list[str]) -> None:
    import csv

    manifest = tmp_path / "list.csv"
    with manifest.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "slide_id"])
        writer.writerows([(f"{number}.svs", name) for number, name in enumerate(listed)])
    try:
        sources = list_sources([str(manifest)])
    except (ValueError, csv.Error):  # not UTF-8, or a NUL in a CSV: the whole list is refused
        return
    for source in sources:
        assert layout.check_slide_id(source.slide_id) == source.slide_id


@pytest.mark.parametrize("where", ["cells", "masks", "slides", "_work"])
def test_a_link_in_the_output_leads_no_write_and_no_removal_outside(tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    (outside / "a").mkdir(parents=True)
    (outside / "a" / "kept").write_bytes(b"not ours")
    (outside / "kept.json").write_bytes(b"not ours")
    store = ObjectStore(tmp_path / "out")
    store.put("cellset.json", b"{}")
    (tmp_path / "out" / where).symlink_to(outside)
    writes = [
        lambda: store.put(f"{where}/a.json", b"x"),
        lambda: store.create(f"{where}/a.json", b"x"),
        lambda: store.delete(f"{where}/kept.json"),
        lambda: store.delete_tree(f"{where}/a"),
        lambda: store.delete_tree(where),
        lambda: store.publishing(f"{where}/a.json").__enter__(),
        lambda: store.sweep(where),
    ]
    for write in writes:
        with pytest.raises(UnsafeNameError, match="symbolic link"):
            write()
    assert sorted(path.name for path in outside.rglob("*")) == ["a", "kept", "kept.json"]


def test_a_link_in_an_objects_place_is_replaced_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"not ours")
    store = ObjectStore(tmp_path / "out")
    store.put("slides/b.json", b"x")
    (tmp_path / "out" / "slides" / "a.json").symlink_to(tmp_path / "outside")
    assert not store.create("slides/a.json", b"x")
    store.put("slides/a.json", b"ours")
    assert (tmp_path / "outside").read_bytes() == b"not ours"
    assert store.get("slides/a.json") == b"ours"
    assert not (tmp_path / "out" / "slides" / "a.json").is_symlink()


def test_the_output_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    ObjectStore(tmp_path / "out").put("slides/a.json", b"x")
    assert (tmp_path / "disk" / "slides" / "a.json").read_bytes() == b"x"


# -------------------------------------------------------------------------------------------- documents from outside

ENTITIES = '<!DOCTYPE OME [<!ENTITY a "lollollollol">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LAUGHS = ENTITIES + "]>"
FILE = '<!DOCTYPE OME [<!ENTITY i SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("head", [LAUGHS, FILE], ids=["billion laughs", "external entity"])
def test_entities_in_ome_xml_are_refused_at_once(tmp_path: Path, head: str) -> None:
    pixels = '<Pixels ID="P" DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="64" SizeC="3" SizeZ="1" SizeT="1">'
    image = f'<Image ID="Image:0" Name="&i;">{pixels}<TiffData/></Pixels></Image>'
    ome = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    xml = f'<?xml version="1.0"?>{head}<OME xmlns="{ome}">{image}</OME>'
    path = tmp_path / "a.ome.tif"
    pixels = np.zeros((64, 64, 3), np.uint8)
    # Strips, so that OpenSlide leaves the file to tifffile.
    tifffile.imwrite(path, pixels, photometric="rgb", description=xml, metadata=None, rowsperstrip=8)
    with pytest.raises(UnsupportedSlideError, match="entities"):
        IsolatedSlide(path, target_mpp=0.5, mpp=0.5, limits=ReaderLimits(timeout_seconds=30, memory_bytes=512 << 20))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"type": "Polygon", "coordinates": [[[1e400, 0], [1, 1], [0, 1]]]}',
        '{"type": "Feature"}',
        "null",
    ],
    ids=["nested", "infinite", "no geometry", "null"],
)
def test_hostile_geojson_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "region.geojson").write_text(text)
    with pytest.raises(RegionFileError, match=r"region\.geojson"):
        read_regions(tmp_path / "region.geojson")


# --------------------------------------------------------------------------------------------------- bombs in headers


def with_tags(path: Path, numbers: dict[int, int]) -> Path:
    """A small tiled TIFF that claims other numbers in its tags."""
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(64, 64), metadata=None)
    content = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag = struct.unpack_from("<H", content, entry)[0]
        if tag in numbers:
            struct.pack_into("<HII", content, entry + 2, 4, 1, numbers[tag])
    path.write_bytes(content)
    return path


WIDTH, LENGTH, ROWS, TILE_W, TILE_L = 256, 257, 278, 322, 323
BOMBS = {
    "4e9 x 4e9": {WIDTH: 4_000_000_000, LENGTH: 4_000_000_000},
    "within limits and not in the file": {WIDTH: 500_000, LENGTH: 500_000},
    "a tile of 4e9 x 4e9": {TILE_W: 4_000_000_000, TILE_L: 4_000_000_000},
    "one tile as large as a slide": {WIDTH: 60_000, LENGTH: 60_000, TILE_W: 60_000, TILE_L: 60_000},
    "tiles of one pixel": {WIDTH: 1 << 20, LENGTH: 1 << 18, TILE_W: 1, TILE_L: 1},
}


@pytest.mark.parametrize("numbers", BOMBS.values(), ids=BOMBS.keys())
def test_a_header_that_claims_what_no_file_holds_is_refused_in_bounded_memory(
    tmp_path: Path, numbers: dict[int, int]
) -> None:
    path = with_tags(tmp_path / "bomb.tif", numbers)
    limits = ReaderLimits(timeout_seconds=30, memory_bytes=768 << 20)
    try:
        with IsolatedSlide(path, target_mpp=0.5, mpp=0.5, limits=limits) as slide:
            read = slide.read(slide.grid.box)
    except SlideError as error:
        assert len(str(error)) > 20
    else:
        assert slide.grid.box.area < 1 << 24 and read.unreadable


class MostlyMissing:
    """A huge slide of which only pixels left of and above a point can be decoded."""

    name = "test/missing"
    levels = (SlideLevel(60_000, 60_000, 1.0, 1.0),)
    mpp = (0.5, 0.5)
    bounds_level0_px = (0, 0)

    def __init__(self, *, readable_from_y: int) -> None:
        self.readable_from_y = readable_from_y
        self.num_asked = 0

    def read_block(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        self.num_asked += 1
        if y < self.readable_from_y:
            raise SlideReadError("not in the file")
        return np.full((height, width, 3), 240, np.uint8)

    def close(self) -> None: ...


def test_a_slide_that_is_not_in_its_file_is_not_looked_for_all_day() -> None:
    reader = MostlyMissing(readable_from_y=60_000)
    with pytest.raises(SlideReadError, match="None of the slide's pixels"):
        read_overview(reader, mpp=(0.5, 0.5))
    assert reader.num_asked < 300  # of 3,481 blocks


def test_a_slide_whose_beginning_is_lost_is_still_read() -> None:
    overview = read_overview(MostlyMissing(readable_from_y=40_000), mpp=(0.5, 0.5))
    assert 0.6 < overview.unreadable.mean() < 0.7


def test_a_slide_upsampled_beyond_any_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((600, 60_000, 3), np.uint8), tile=(256, 256), photometric="rgb", compression="zlib")
    with pytest.raises(SlideTooLargeError, match="--mpp"):
        IsolatedSlide(path, target_mpp=0.001, mpp=10.0)


def test_a_real_pyramid_of_blank_glass_is_not_too_large_for_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "glass.tif"
    glass = np.full((4096, 4096, 3), 255, np.uint8)
    tifffile.imwrite(path, glass, tile=(512, 512), photometric="rgb", compression="zlib", metadata=None)
    reader = open_slide(path)
    assert reader.levels[0].width_px == 4096
    reader.close()


# ------------------------------------------------------------------------------------------------- services and infra


LISTENING = """
import json
import psutil
from cellmill.cohort.session import ray_session
with ray_session(object_store_bytes=1 << 28):
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    print(json.dumps([
        (process.name(), connection.laddr.ip)
        for process in family
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]))
"""


@pytest.mark.parametrize("first", ["import ray", ""], ids=["ray imported before", "ray imported by the session"])
def test_a_local_ray_listens_on_loopback_only(first: str) -> None:
    program = f"{first}\n{LISTENING}"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    listening = json.loads(done.stdout.splitlines()[-1])
    assert listening
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}  # the last is the first, as a socket for both families tells it
    assert {address for _, address in listening} <= loopback, listening


def infra_files(pattern: str) -> list[Path]:
    return [path for path in sorted(INFRA.rglob("*")) if path.is_file() and re.search(pattern, path.name)]


def test_infra_that_starts_ray_has_token_authentication_on() -> None:
    starting = [
        path for path in infra_files(r"") if re.search(r"\bray start\b|RayCluster|RayJob", path.read_text("utf-8"))
    ]
    if not starting:
        pytest.skip("infra/ starts no Ray yet")
    together = "\n".join(path.read_text("utf-8") for path in infra_files(r""))
    for path in starting:
        text = path.read_text("utf-8")
        assert "RAY_AUTH_MODE" in text or ("authOptions" in text and "token" in text), path.name
    assert not re.search(r"RAY_AUTH_TOKEN[\"']?\s*[:=]\s*[\"']?[0-9a-f]{16,}", together), "a token stands in a file"


def test_containers_do_not_run_as_root() -> None:
    files = infra_files(r"(^|\.)Dockerfile|Containerfile")
    if not files:
        pytest.skip("infra/ has no Dockerfile yet")
    for path in files:
        users = re.findall(r"^USER\s+(\S+)", path.read_text("utf-8"), re.MULTILINE)
        assert users and users[-1].split(":")[0] not in ("root", "0"), path.name


def test_exceptions_of_readers_do_not_reach_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0" + b"PatientName=DOE^JANE" * 40)
    with pytest.raises(SlideError) as caught:
        IsolatedSlide(tmp_path / "a.tif", target_mpp=0.5)
    told = capfd.readouterr()
    assert "DOE" not in str(caught.value) + told.out + told.err
    assert sys.exc_info()[0] is None


@pytest.mark.parametrize(
    ("dependencies", "clean"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], True),
        ([{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}], False),
        ([{"name": "a", "skip_reason": "not found"}], None),
        ([{"name": "a", "skip_reason": "not found"}, {"name": "b", "version": "1", "vulns": []}], True),
    ],
)
def test_an_audit_that_looked_nothing_up_is_no_success(
    dependencies: list[dict[str, object]], clean: bool | None
) -> None:
    import runpy

    verdict = runpy.run_path(str(INFRA / "audit.py"))["verdict"]
    assert verdict({"dependencies": dependencies})[0] is clean


@pytest.mark.parametrize(("must_run", "code"), [("", 0), ("1", 1)])
def test_an_audit_without_network_says_so_and_fails_only_where_it_must_run(
    tmp_path: Path, must_run: str, code: int
) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'ConnectionError: no route' >&2\nexit 1\n", encoding="utf-8")
    uv.chmod(0o755)
    ended = subprocess.run(
        [sys.executable, str(INFRA / "audit.py"), str(uv), "constraints.txt"],
        env={**os.environ, "CI": "1", "AUDIT_MUST_RUN": must_run},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code
    assert "NOT AUDITED" in ended.stdout
