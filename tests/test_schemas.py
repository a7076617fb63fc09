"""Ontologies and cell ids: names resolve, order is kept, ids split back into their halves."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill_schemas.cells import DECIMALS, CellKey, cell_schema, make_cell_id, split_cell_id
from cellmill_schemas.ontology import (
    CellClass,
    Ontology,
    OntologyMapping,
    builtin_ontologies,
    get_ontology,
    load_ontology,
)
from cellmill_schemas.ontology_mappings import get_mapping
from cellmill_schemas.slides import STATUS_SCHEMA, ExcludedArea, SlideStatus


@given(st.integers(1, (1 << 15) - 1), st.integers(0, (1 << 48) - 1))
def test_cell_ids_are_positive_int64_and_split_back(slide_hash: int, anchor_index: int) -> None:
    key = CellKey(slide_hash=slide_hash, anchor_index=anchor_index)
    cell_id = make_cell_id(key)
    assert 0 < cell_id < 1 << 63
    assert split_cell_id(cell_id) == key


@pytest.mark.parametrize("key", [CellKey(1, 1 << 48), CellKey(0, 5), CellKey(1 << 15, 5), CellKey(1, -1)])
def test_halves_that_do_not_fit_are_refused(key: CellKey) -> None:
    with pytest.raises(ValueError, match="got"):
        make_cell_id(key)


@pytest.mark.parametrize("name", builtin_ontologies())
def test_builtin_ontologies_survive_a_json_round_trip(name: str) -> None:
    ontology = get_ontology(name)
    assert Ontology.from_json(json.loads(json.dumps(ontology.to_json()))) == ontology


@pytest.mark.parametrize(
    ("name", "count"),
    [("pannuke5", 5), ("monusac4", 4), ("refined7", 7), ("histoplus13", 13), ("ikem3", 3), ("puma10", 10)],
)
def test_builtin_ontologies_have_the_classes_of_their_source(name: str, count: int) -> None:
    assert len(get_ontology(name)) == count


def test_labels_resolve_by_synonym_case_and_spacing() -> None:
    refined7 = get_ontology("refined7")
    assert refined7.index("Lymphocytes") == refined7.index("lymphocyte") == 1
    assert get_ontology("puma10").index("nuclei_plasma_cell") == 2


def test_an_unknown_label_names_the_classes_there_are() -> None:
    with pytest.raises(KeyError, match="neoplastic, lymphocyte"):
        get_ontology("refined7").index("eosinophil")


def test_one_label_cannot_name_two_classes() -> None:
    with pytest.raises(ValueError, match="names both"):
        Ontology("twice", (CellClass("a", (0, 0, 0), ("x",)), CellClass("b", (0, 0, 0), ("X",))))


def test_a_user_ontology_is_read_from_a_file_and_errors_name_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "classes": [{"name": "cell", "color_rgb": [1, 2, 3]}]}))
    assert load_ontology(path).names == ("cell",)
    path.write_text('{"name": "mine"}')
    with pytest.raises(ValueError, match=r"mine\.json.*classes"):
        load_ontology(path)


def test_a_mapping_keeps_ambiguous_classes_as_sets() -> None:
    monusac4, refined7 = get_ontology("monusac4"), get_ontology("refined7")
    mapping = OntologyMapping(
        monusac4,
        refined7,
        (
            ("epithelial", ("neoplastic", "epithelial")),
            ("lymphocyte", ("lymphocyte",)),
            ("macrophage", ("macrophage",)),
            ("neutrophil", ("neutrophil",)),
        ),
    )
    assert mapping.target_indices("epithelial") == (0, 4)


def test_pannukes_inflammatory_and_monusacs_epithelial_stay_open_in_the_refined_ontology() -> None:
    refined7 = get_ontology("refined7")
    pannuke, monusac = (get_mapping(get_ontology(name), refined7) for name in ("pannuke5", "monusac4"))
    names = refined7.names
    assert {names[i] for i in pannuke.target_indices("inflammatory")} == {"lymphocyte", "macrophage", "neutrophil"}
    assert {names[i] for i in monusac.target_indices("epithelial")} == {"neoplastic", "epithelial"}
    assert get_mapping(refined7, refined7).target_indices("dead") == (3,)


def test_a_mapping_that_does_not_exist_says_which_do() -> None:
    with pytest.raises(KeyError, match="pannuke5 to refined7"):
        get_mapping(get_ontology("ikem3"), get_ontology("refined7"))


@pytest.mark.parametrize("name", ["pannuke5", "monusac4", "consep7", "conic6", "puma10", "histoplus13"])
def test_every_published_ontology_maps_to_refined7(name: str) -> None:
    assert len(get_mapping(get_ontology(name), get_ontology("refined7")).pairs) == len(get_ontology(name))


def test_every_rounded_column_is_in_the_schema() -> None:
    names = set(cell_schema(get_ontology("refined7")).names)
    assert set(DECIMALS) <= names


def test_a_status_survives_a_json_round_trip_and_refuses_unknown_keys() -> None:
    status = SlideStatus(slide_id="0012", outcome="done", reasons=("r",), excluded=ExcludedArea(blur_mm2=1.5))
    document = json.loads(json.dumps(status.to_json()))
    assert SlideStatus.from_json(document) == status
    with pytest.raises(ValueError, match="newer"):
        SlideStatus.from_json({**document, "newer": 1})


def test_the_cohort_table_has_a_column_for_every_status_field() -> None:
    flat = {name for name in SlideStatus("a", "done").to_json() if name != "excluded"}
    assert flat <= set(STATUS_SCHEMA.names)
