"""Which slides a run is about, and what they are called."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.cohort.listing import expand_slides, require_absolute
from cellmill.cohort.manifest import hide_name, list_sources, make_safe_id
from cellmill.store.layout import check_slide_id


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def ids(*slides: Path | str, secret: bytes | None = None) -> list[str]:
    return [source.slide_id for source in list_sources([str(s) for s in slides], secret=secret)]


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_name_becomes_an_id_fit_for_files(name: str) -> None:
    check_slide_id(make_safe_id(name))


@settings(deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_different_names_keep_different_ids(one: str, other: str) -> None:
    if one != other:
        assert make_safe_id(one) != make_safe_id(other)


@pytest.mark.parametrize("name", ["0012", "TCGA-A1-A0SB.01Z", "a_b", "x" * 96])
def test_a_safe_name_stays_as_it_is(name: str) -> None:
    assert make_safe_id(name) == name


def test_spaces_unicode_and_dots_do_not_reach_an_id(tmp_path: Path) -> None:
    touch(tmp_path / "a b.svs", tmp_path / "a_b.svs", tmp_path / "Größe.svs", tmp_path / "..hidden.svs")
    found = ids(tmp_path)
    assert len(set(found)) == 4
    assert "a_b" in found
    for slide_id in found:
        check_slide_id(slide_id)


def test_ids_of_digits_stay_text(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs", tmp_path / "b.svs")
    (tmp_path / "list.csv").write_text("slide,slide_id,mpp\na.svs,0012,0.25\nb.svs,../7,\n", encoding="utf-8")
    first, second = list_sources([str(tmp_path / "list.csv")])
    assert (first.slide_id, first.mpp, first.url) == ("0012", 0.25, str(tmp_path / "a.svs"))
    assert second.slide_id.startswith("_7-") and second.mpp is None


def test_a_parquet_manifest_says_the_same(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    table = pa.table({"slide": ["a.svs"], "slide_id": ["0012"], "mpp": [0.25]})
    pq.write_table(table, tmp_path / "list.parquet")
    (source,) = list_sources([str(tmp_path / "list.parquet")])
    assert (source.slide_id, source.mpp) == ("0012", 0.25)


@pytest.mark.parametrize(
    ("text", "says"),
    [("path\nx.svs\n", "column slide"), ("slide,slide_id\n,a\n", "row 1"), ("", "column slide")],
    ids=["no slide column", "empty slide", "empty file"],
)
def test_a_manifest_that_makes_no_sense_is_refused_in_words(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        list_sources([str(tmp_path / "list.csv")])


def test_an_mpp_that_is_no_number_sets_only_its_slide_aside(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs", tmp_path / "b.svs")
    (tmp_path / "list.csv").write_text("slide,mpp\na.svs,fine\nb.svs,0.5\n", encoding="utf-8")
    first, second = list_sources([str(tmp_path / "list.csv")])
    assert first.problem is not None and "'fine'" in first.problem
    assert second.problem is None


def test_two_slides_with_one_id_are_both_set_aside(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.svs", tmp_path / "y" / "a.svs", tmp_path / "b.svs")
    sources = list_sources([str(tmp_path)])
    problems = {source.url: source.problem for source in sources}
    assert problems[str(tmp_path / "b.svs")] is None
    for name in ("x", "y"):
        problem = problems[str(tmp_path / name / "a.svs")]
        assert problem is not None and str(tmp_path / "x" / "a.svs") in problem and str(tmp_path / "y") in problem


def test_one_file_named_twice_is_one_slide(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs", tmp_path / "b.svs")
    assert ids(tmp_path / "b.svs", tmp_path / "*.svs", tmp_path) == ["b", "a"]


def test_a_folder_gives_slides_and_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs", tmp_path / "notes.txt", tmp_path / "deep" / "b.ome.tif")
    touch(tmp_path / "m.mrxs", tmp_path / "m" / "Data0001.dat", tmp_path / "m" / "x.tif")
    touch(tmp_path / "series" / "1.dcm", tmp_path / "series" / "2.dcm")
    assert sorted(ids(tmp_path)) == ["a", "b", "m", "series"]


def test_nothing_found_is_said_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"matches no slide.*\.svs"):
        expand_slides(str(tmp_path / "*.svs"))


def test_a_missing_file_is_left_for_the_run_to_report(tmp_path: Path) -> None:
    assert ids(tmp_path / "gone.svs") == ["gone"]


def test_pseudonyms_hide_the_name_and_depend_on_the_secret(tmp_path: Path) -> None:
    touch(tmp_path / "S22-1234 Doe.svs")
    (source,) = list_sources([str(tmp_path)], secret=b"0123456789abcdef")
    (again,) = list_sources([str(tmp_path)], secret=b"0123456789abcdef")
    (other,) = list_sources([str(tmp_path)], secret=b"another secret..")
    assert source == again and source.slide_id != other.slide_id
    assert "Doe" not in source.slide_id
    text = hide_name(f"cannot open {source.url} (S22-1234 Doe)", source)
    assert "Doe" not in text and source.slide_id in text


def test_shared_ids_are_told_without_names_under_pseudonyms(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "doe.svs", tmp_path / "y" / "doe.svs")
    for source in list_sources([str(tmp_path)], secret=b"0123456789abcdef"):
        assert source.problem is not None and "doe" not in source.problem


def test_relative_paths_are_refused_inside_a_job() -> None:
    with pytest.raises(ValueError, match="package cache"):
        require_absolute("--out", "out")
    for fine in ("/data/out", "s3://bucket/out", "file:///data"):
        require_absolute("--out", fine)


def test_slides_behind_a_url_are_listed(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/cohort/a.svs": b"x", "/cohort/b.txt": b"x", "/cohort/sub/c.ndpi": b"x"})
    try:
        found = [source.url for source in list_sources(["memory://cohort"])]
        assert found == ["memory:///cohort/a.svs", "memory:///cohort/sub/c.ndpi"]
    finally:
        memory.rm("/cohort", recursive=True)
