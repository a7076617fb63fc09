"""Spatial statistics of points: equal to brute force on random points, and to spatstat and squidpy on a fixed case."""

import csv
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmill.spatial.neighbours import cross_k, nearest_distances, neighbourhood_enrichment
from cellmill.spatial.pairs import count_pairs, list_pairs
from cellmill.spatial.points import CellPoints
from cellmill.spatial.til import TilRoles, til_scores
from cellmill.spatial.windows import Window, boundary_distance_um, inside, tissue_fragments, whole_slide
from cellmill_schemas.ontology import builtin_ontologies, get_ontology

REFERENCES = Path(__file__).parent / "references"
L_SHAPE = Window("l", "region", shapely.Polygon([(0, 0), (1000, 0), (1000, 400), (400, 400), (400, 900), (0, 900)]))
WITH_HOLE = Window("o", "region", shapely.box(0, 0, 100, 80) - shapely.box(40, 30, 60, 50))
NAMES = ("a", "b", "c")


def points_of(xy: np.ndarray, types: np.ndarray, names: tuple[str, ...] = NAMES) -> CellPoints:
    return CellPoints(xy, types.astype(np.int16), np.full(len(xy), 50, np.float32), names)


@st.composite
def random_points(draw: st.DrawFn) -> CellPoints:
    """Few points with clumps, ties on a lattice, and types that may be absent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    number = draw(st.integers(0, 80))
    xy = rng.uniform(0, 100, (number, 2)) * np.array([1.0, 0.8])
    if draw(st.booleans()):
        xy = np.round(xy / 5) * 5
    points = points_of(xy, rng.integers(0, draw(st.integers(1, 3)), number))
    return points.where(inside(WITH_HOLE, points.xy_um))


def distances(cells: CellPoints) -> np.ndarray:
    """Between all pairs (n, n); inf from a cell to itself."""
    found = np.linalg.norm(cells.xy_um[:, None] - cells.xy_um[None], axis=2)
    np.fill_diagonal(found, np.inf)
    return found


RADII = np.array([3.0, 10.0, 25.5])


@given(random_points())
@settings(max_examples=60)
def test_pairs_within_radii_are_those_of_brute_force(cells: CellPoints) -> None:
    found = count_pairs(cells.xy_um, cells.types, num_types=3, radii_um=RADII)
    apart = distances(cells)
    for i in range(3):
        for j in range(3):
            block = apart[np.ix_(cells.types == i, cells.types == j)]
            assert found[i, j].tolist() == [(block**2 <= r * r).sum() for r in RADII]
    listed = {tuple(sorted(pair)) for pair in list_pairs(cells.xy_um, radius_um=10.0).tolist()}
    assert listed == {(int(i), int(j)) for i, j in np.argwhere(apart**2 <= 100.0) if i < j}
    assert len(listed) == len(list_pairs(cells.xy_um, radius_um=10.0))


@given(random_points())
@settings(max_examples=40)
def test_nearest_distances_are_those_of_brute_force(cells: CellPoints) -> None:
    found, apart = nearest_distances(cells), distances(cells)
    for i in range(3):
        for j in range(3):
            block = apart[np.ix_(cells.types == i, cells.types == j)]
            if block.size == 0 or not np.isfinite(block).any():
                assert np.isnan(found.mean_um[i, j])
            else:
                assert found.mean_um[i, j] == pytest.approx(block.min(axis=1).mean())
                assert found.median_um[i, j] == pytest.approx(np.median(block.min(axis=1)))


@given(random_points())
@settings(max_examples=40)
def test_cross_k_is_that_of_brute_force_in_a_window_with_a_hole(cells: CellPoints) -> None:
    found, apart = cross_k(cells, WITH_HOLE, radii_um=RADII), distances(cells)
    border = shapely.distance(shapely.points(cells.xy_um), WITH_HOLE.outline.boundary)
    for k, radius in enumerate(RADII):
        for i in range(3):
            asked = (cells.types == i) & (border >= radius)
            assert found.num_from[i, k] == asked.sum()
            for j in range(3):
                num_to = (cells.types == j).sum()
                if not asked.any() or num_to == 0:
                    assert np.isnan(found.k_um2[i, j, k])
                    continue
                within = (apart[asked][:, cells.types == j] <= radius).sum(axis=1).mean()
                assert found.mean_within[i, j, k] == pytest.approx(within)
                assert found.k_um2[i, j, k] == pytest.approx(within * WITH_HOLE.outline.area / num_to)


@given(random_points(), st.integers(0, 5))
@settings(max_examples=20)
def test_enrichment_is_that_of_permutations_done_one_by_one(cells: CellPoints, seed: int) -> None:
    found = neighbourhood_enrichment(cells, radius_um=15.0, num_permutations=20, seed=seed)
    near = distances(cells) <= 15.0

    def tally(types: np.ndarray) -> np.ndarray:
        one_hot = np.eye(3)[types]
        return one_hot.T @ near @ one_hot

    rng, types, counts = np.random.default_rng(seed), cells.types.copy(), []
    for _ in range(20):
        rng.shuffle(types)
        counts.append(tally(types))
    assert np.array_equal(found.observed, tally(cells.types))
    assert np.allclose(found.expected, np.mean(counts, axis=0))
    spread = np.std(counts, axis=0)
    told = spread > 1e-9
    assert np.array_equal(told, ~np.isnan(found.z))
    assert np.allclose(found.z[told], ((found.observed - np.mean(counts, axis=0)) / np.where(told, spread, 1))[told])


def test_border_distances_are_exact_and_cut_off_where_nobody_asks() -> None:
    xy = np.array([[50.0, 10.0], [30.0, 40.0], [5.0, 40.0], [20.0, 40.0]])
    assert boundary_distance_um(WITH_HOLE, xy, at_most_um=15.0).tolist() == [10.0, 10.0, 5.0, np.inf]


@pytest.fixture(scope="module")
def fixed_case() -> CellPoints:
    with (REFERENCES / "spatial_points.csv").open() as file:
        rows = list(csv.DictReader(file))
    xy = np.array([(float(row["x"]), float(row["y"])) for row in rows])
    return points_of(xy, np.array([NAMES.index(row["type"]) for row in rows]))


def reference(name: str) -> list[dict[str, str]]:
    with (REFERENCES / name).open() as file:
        next(file)  # which version made it
        return list(csv.DictReader(file))


def test_cross_k_and_nearest_distances_are_those_of_spatstat(fixed_case: CellPoints) -> None:
    rows = reference("spatial_spatstat.csv")
    radii = np.array(sorted({float(row["radius_um"]) for row in rows if row["radius_um"]}))
    k, nearest = cross_k(fixed_case, L_SHAPE, radii_um=radii), nearest_distances(fixed_case)
    assert len(rows) == 9 * (len(radii) + 2)
    for row in rows:
        i, j, value = NAMES.index(row["from"]), NAMES.index(row["to"]), float(row["value"])
        if row["quantity"] == "k_um2":
            found = k.k_um2[i, j, np.searchsorted(radii, float(row["radius_um"]))]
        else:
            found = getattr(nearest, row["quantity"].removeprefix("nearest_"))[i, j]
        assert found == pytest.approx(value, rel=1e-6), row


def test_enrichment_is_that_of_squidpy(fixed_case: CellPoints) -> None:
    found = neighbourhood_enrichment(fixed_case, radius_um=25.0, num_permutations=5000, seed=0)
    for row in reference("spatial_squidpy.csv"):
        i, j = NAMES.index(row["from"]), NAMES.index(row["to"])
        assert found.observed[i, j] == int(row["neighbours"]), row
        # Other permutations: a standard deviation of 5,000 draws is known to about 1 %, here and there.
        assert found.z[i, j] == pytest.approx(float(row["z"]), rel=0.06, abs=0.1), row


def test_points_without_relation_have_the_k_of_a_disc() -> None:
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 2000, (20_000, 2))
    window = Window("w", "region", shapely.box(0, 0, 2000, 2000))
    found = cross_k(points_of(xy, rng.integers(0, 3, len(xy))), window, radii_um=np.array([50.0, 100.0]))
    assert np.abs(found.l_minus_r_um).max() < 2.0


def test_fragments_hold_every_cell_and_are_as_large_as_their_tissue() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.uniform((100, 100), (1100, 900), (4000, 2)), rng.uniform((1500, 100), (1900, 500), (800, 2))
    cells = points_of(np.concatenate([left, right, [[3000.0, 3000.0]]]), np.zeros(4801))
    fragments = tissue_fragments(cells)
    assert [fragment.name for fragment in fragments] == ["fragment_1", "fragment_2", "fragment_3"]
    assert [int(inside(fragment, cells.xy_um).sum()) for fragment in fragments] == [4000, 800, 1]
    assert fragments[0].mm2 == pytest.approx(0.8, rel=0.05)
    assert fragments[1].mm2 == pytest.approx(0.16, rel=0.1)
    assert whole_slide(fragments).mm2 == pytest.approx(sum(fragment.mm2 for fragment in fragments))
    assert inside(whole_slide(fragments), cells.xy_um).all()


def test_a_wide_hole_stays_a_hole_and_a_narrow_gap_is_closed() -> None:
    lattice = np.stack(np.meshgrid(np.arange(5, 1000, 10.0), np.arange(5, 1000, 10.0)), axis=-1).reshape(-1, 2)
    x, y = lattice.T
    hole = (np.abs(x - 500) < 150) & (np.abs(y - 500) < 150)
    gap = np.abs(x - 200) < 35
    (fragment,) = tissue_fragments(points_of(lattice[~hole & ~gap], np.zeros((~hole & ~gap).sum())))
    assert not fragment.outline.contains(shapely.Point(500, 500))
    assert fragment.outline.contains(shapely.Point(200, 500))
    assert fragment.mm2 == pytest.approx(1.0 - 0.09, rel=0.05)


def test_til_scores_of_a_slide_of_two_halves() -> None:
    """Neoplastic left of 500 um, connective right of it, lymphocytes 100 and 300: areas and counts by hand."""
    ontology = get_ontology("refined7")
    lattice = np.stack(np.meshgrid(np.arange(5, 1500, 10.0), np.arange(5, 1000, 10.0)), axis=-1).reshape(-1, 2)
    types = np.where(lattice[:, 0] < 500, ontology.index("neoplastic"), ontology.index("connective"))
    rng = np.random.default_rng(0)
    in_tumour = rng.uniform((20, 20), (460, 980), (100, 2))
    in_stroma = rng.uniform((540, 20), (940, 980), (300, 2))
    far = rng.uniform((1100, 20), (1480, 980), (50, 2))
    xy = np.concatenate([lattice, in_tumour, in_stroma, far])
    types = np.concatenate([types, np.full(450, ontology.index("lymphocyte"))])
    roles = TilRoles.of(ontology)
    assert roles is not None
    window = Window("w", "region", shapely.box(0, 0, 1500, 1000))
    found = til_scores(points_of(xy, types, ontology.names), window, roles, margin_um=500.0)
    assert found.neoplastic_mm2 == pytest.approx(0.5, rel=0.03)
    assert found.stroma_mm2 == pytest.approx(0.5, rel=0.03)
    assert (found.num_in_neoplastic, found.num_in_stroma) == (100, 300)
    assert found.per_mm2_stroma == pytest.approx(600, rel=0.03)
    assert found.stroma_area_share == pytest.approx(300 * 50e-6 / 0.5, rel=0.03)


def test_without_tumour_there_is_no_til_density() -> None:
    ontology = get_ontology("refined7")
    xy = np.random.default_rng(0).uniform(0, 500, (500, 2))
    types = np.where(np.arange(500) < 400, ontology.index("connective"), ontology.index("lymphocyte"))
    roles = TilRoles.of(ontology)
    assert roles is not None
    window = Window("w", "region", shapely.box(0, 0, 500, 500))
    found = til_scores(points_of(xy, types, ontology.names), window, roles, margin_um=500.0)
    assert (found.neoplastic_mm2, found.per_mm2_neoplastic, found.per_mm2_stroma) == (0.0, None, None)


def test_every_ontology_has_its_til_roles_or_none() -> None:
    roles = {name: TilRoles.of(get_ontology(name)) for name in builtin_ontologies()}
    assert {name for name, found in roles.items() if found} == {"refined7", "histoplus13", "puma10"}
    histoplus = get_ontology("histoplus13")
    found = roles["histoplus13"]
    assert found is not None
    assert [histoplus.names[index] for index in found.lymphocytes] == ["lymphocyte", "plasmocyte"]
    assert {"muscle cell", "endothelial cell", "epithelial"} == {histoplus.names[index] for index in found.elsewhere}
