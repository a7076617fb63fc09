"""Several annotators to one answer, and how far they agree: hand-computed cases and known results."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from cellmill_schemas.ontology import get_ontology
from cellmill_training.labelling.agreement import all_pairs, cohen_kappa, fleiss_kappa, pair_agreement, ratings_of_all
from cellmill_training.labelling.consensus import Annotation, consensus_of, majority_types, match_annotators
from cellmill_training.labelling.points import read_annotators, read_points

REFINED = get_ontology("refined7")
SIDE = 40


def annotation(annotator: str, *nuclei: tuple[int, int, str], size: int = 10) -> Annotation:
    """Squares of `size` px with their top left corners at (x, y), and their types."""
    instances = np.zeros((SIDE, SIDE), np.int32)
    for number, (x, y, _) in enumerate(nuclei):
        instances[y : y + size, x : x + size] = number + 1
    points = np.array([(x + size / 2, y + size / 2) for x, y, _ in nuclei], np.float64).reshape(-1, 2)
    return Annotation(annotator, points, tuple(name for _, _, name in nuclei), instances)


def test_a_nucleus_stays_when_two_of_three_have_it() -> None:
    a = annotation("a", (0, 0, "lymphocyte"), (20, 20, "neoplastic"))
    b = annotation("b", (2, 0, "lymphocyte"))
    c = annotation("c", (20, 21, "neoplastic"), (0, 28, "dead"))
    found = consensus_of([a, b, c], REFINED)
    assert [nucleus.members for nucleus in found] == [(("a", 0), ("b", 0)), (("a", 1), ("c", 0))]
    assert found[0].point_px == (6.0, 5.0)
    assert found[1].point_px == (25.0, 25.5)
    assert [nucleus.cell_types for nucleus in found] == [("lymphocyte",), ("neoplastic",)]


def test_outlines_match_above_the_papers_iou_only() -> None:
    # Two squares of 100 px shifted by s share 100 - 10 s px: IoU 0.43 for s = 4, 0.33 for s = 5.
    a = annotation("a", (0, 0, ""))
    assert [(i, j) for i, j, _ in match_annotators(a, annotation("b", (4, 0, "")))] == [(0, 0)]
    assert match_annotators(a, annotation("b", (4, 0, "")))[0][2] == pytest.approx(60 / 140)
    assert match_annotators(a, annotation("b", (5, 0, ""))) == []


def test_matching_is_the_best_assignment_not_the_nearest_first() -> None:
    # b's first square suits both of a's; giving it to the nearer one would leave the other without a partner.
    a = Annotation("a", np.zeros((2, 2)), ("", ""), np.zeros((1, 20), np.int32))
    b = Annotation("b", np.zeros((2, 2)), ("", ""), np.zeros((1, 20), np.int32))
    a.instances[0, 0:10], a.instances[0, 10:20] = 1, 2
    b.instances[0, 3:14], b.instances[0, 14:20] = 1, 2
    assert [(i, j) for i, j, _ in match_annotators(a, b)] == [(0, 0), (1, 1)]


def test_a_chain_never_joins_two_nuclei_of_one_annotator() -> None:
    a = annotation("a", (0, 0, "dead"), (12, 0, "dead"), size=10)
    b = annotation("b", (3, 0, "dead"), size=10)
    c = annotation("c", (6, 0, "dead"), (14, 0, "dead"), size=8)
    for nucleus in consensus_of([a, b, c], REFINED):
        names = [who for who, _ in nucleus.members]
        assert len(names) == len(set(names))


def test_the_answer_does_not_depend_on_the_order_of_annotators() -> None:
    one = annotation("a", (0, 0, "dead"), (20, 0, "epithelial"))
    two = annotation("b", (1, 1, "epithelial"), (21, 0, "epithelial"))
    three = annotation("c", (2, 0, "dead"))
    assert consensus_of([one, two, three], REFINED) == consensus_of([three, two, one], REFINED)


@pytest.mark.parametrize(
    ("given", "types"),
    [
        (("dead", "dead"), ("dead",)),
        (("dead", "lymphocyte"), ("lymphocyte", "dead")),
        (("dead", "dead", "lymphocyte"), ("dead",)),
        (("neutrophil", "dead", "lymphocyte"), ("lymphocyte", "dead", "neutrophil")),
        (("dead", "", ""), ("dead",)),
        (("dead", "dead", ""), ("dead",)),
        (("dead", "lymphocyte", ""), ("lymphocyte", "dead")),
        (("", ""), ()),
    ],
)
def test_the_type_is_the_majoritys_or_all_are_kept(given: tuple[str, ...], types: tuple[str, ...]) -> None:
    assert majority_types(given, REFINED) == types


def test_one_annotator_is_no_consensus() -> None:
    with pytest.raises(ValueError, match="at least two"):
        consensus_of([annotation("a", (0, 0, ""))], REFINED)
    with pytest.raises(ValueError, match="once"):
        consensus_of([annotation("a", (0, 0, "")), annotation("a", (0, 0, ""))], REFINED)


def test_fleiss_kappa_of_the_textbook_table() -> None:
    # Fleiss' example as it stands in textbooks: 14 raters, 10 subjects, 5 classes.
    table = np.array([
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ])  # fmt: skip
    assert fleiss_kappa(table) == pytest.approx(0.210, abs=5e-4)
    with pytest.raises(ValueError, match="ratings"):
        fleiss_kappa(np.array([[2, 0], [1, 0]]))


def test_cohen_kappa_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
        second = np.where(rng.random(60) < 0.6, first, second)
        confusion = np.zeros((4, 4), np.int64)
        np.add.at(confusion, (first, second), 1)
        assert cohen_kappa(confusion) == pytest.approx(cohen_kappa_score(first, second))
    assert np.isnan(cohen_kappa(np.zeros((3, 3), np.int64)))


def test_pairs_agree_on_detection_and_types() -> None:
    a = annotation("a", (0, 0, "dead"), (20, 0, "lymphocyte"), (0, 20, ""))
    b = annotation("b", (1, 0, "dead"), (20, 1, "dead"), (0, 21, "dead"), (25, 25, "dead"))
    pair = pair_agreement(a, b, REFINED)
    assert pair.detection_f1 == pytest.approx(6 / 7)
    assert pair.confusion.sum() == 2  # the nucleus that a did not type does not count
    assert (pair + pair).num_matched == 6
    assert list(all_pairs([b, a], REFINED)) == [("a", "b")]


def test_ratings_are_of_nuclei_that_all_have_and_typed() -> None:
    a = annotation("a", (0, 0, "dead"), (20, 0, "dead"), (0, 20, "dead"))
    b = annotation("b", (0, 0, "dead"), (20, 0, ""), (0, 20, "dead"))
    c = annotation("c", (0, 0, "lymphocyte"), (20, 0, "dead"))
    ratings = ratings_of_all([a, b, c], consensus_of([a, b, c], REFINED), REFINED)
    assert ratings.tolist() == [[0, 1, 0, 2, 0, 0, 0]]


def test_points_come_from_csv_and_from_qupath(tmp_path: Path) -> None:
    for annotator in ("ana", "bo"):
        (tmp_path / annotator).mkdir()
    (tmp_path / "ana" / "tile.csv").write_text("x,y,class\n3.5,4,Lymphocyte\n10,11.25,\n", encoding="utf-8")
    feature = '{"type":"Feature","geometry":{"type":"MultiPoint","coordinates":[[1,2],[3,4.5]]},"properties":%s}'
    (tmp_path / "bo" / "tile.geojson").write_text(
        '{"type":"FeatureCollection","features":[' + feature % '{"classification":{"name":"dead"}}' + "]}",
        encoding="utf-8",
    )
    found = read_annotators(tmp_path, REFINED)
    assert found["ana"]["tile"].cell_types == ("lymphocyte", "")
    assert found["ana"]["tile"].points_px.tolist() == [[3.5, 4.0], [10.0, 11.25]]
    assert found["bo"]["tile"].cell_types == ("dead", "dead")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "x,y\n1,2\n", "class is missing"),
        ("a.csv", "x,y,class\n1,2,martian\n", "record 1: 'martian'"),
        ("a.csv", "x,y,class\n1,2,dead\nnan,2,dead\n", "record 2"),
        ("a.csv", "x,y,class\none,2,dead\n", "must be numbers"),
        ("a.geojson", "{", "not GeoJSON"),
        ("a.geojson", '{"features":[{"geometry":{"type":"Polygon","coordinates":[]}}]}', "feature 1"),
    ],
)
def test_a_bad_file_is_named_with_the_record(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as caught:
        read_points(tmp_path / name, annotator="ana", ontology=REFINED)
    assert str(tmp_path / name) in str(caught.value)
