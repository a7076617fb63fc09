"""The cohort report: judged right, escaped, small, and working in a real browser."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from browser import needs_browser, open_browser, open_page
from cohort_helpers import run
from fabricated_cells import PlacedCells, random_cells, write_cell_set
from oracle import make_slide, write_tiff

from cellmill.report.cohort import Cohort
from cellmill.report.config import ReportCohortConfig
from cellmill.report.drawing import heat_maps
from cellmill.report.index_page import index_page
from cellmill.report.job import main
from cellmill.report.outliers import Measure, find_flags, robust_z
from cellmill.report.regions_of_interest import choose_regions
from cellmill.report.rendering import render
from cellmill.report.run import report_cohort
from cellmill.store.identity import CellSetIdentity
from cellmill_schemas.ontology import CellClass, Ontology, get_ontology
from cellmill_schemas.slides import ExcludedArea, SlideStatus

REFINED7 = get_ontology("refined7")
IDENTITY = CellSetIdentity("lite", "0123456789abcdef", "c", {}, REFINED7, "0.1.0")


def status_of(slide_id: str, *, per_mm2: float = 5000.0, lymphocytes: float = 0.2, **changes: Any) -> SlideStatus:
    counts = dict.fromkeys(REFINED7.names, 0)
    total = round(per_mm2 * 100)
    counts["lymphocyte"] = round(total * lymphocytes)
    counts["neoplastic"] = total - counts["lymphocyte"]
    values: dict[str, Any] = {
        "slide_id": slide_id,
        "outcome": "done",
        "slide_mm2": 200.0,
        "analysed_mm2": 100.0,
        "num_cells": total,
        "num_cells_by_type": counts,
        **changes,
    }
    return SlideStatus(**values)


def cohort_of(statuses: list[SlideStatus], **changes: Any) -> Cohort:
    values: dict[str, Any] = {"title": "cohort", "confidences": {}, **changes}
    return Cohort.of(statuses, IDENTITY, **values)


# ------------------------------------------------------------------------------------------------------------ judged


def test_robust_z_is_the_deviation_in_normal_spreads() -> None:
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 100])
    assert robust_z(values)[-1] == pytest.approx((100 - 5) / (1.4826 * 2))
    assert np.isnan(robust_z(np.arange(7.0))).all()  # too few to judge
    assert robust_z(np.array([2.0] * 9)).tolist() == [0.0] * 9
    mostly_equal = robust_z(np.array([2.0] * 9 + [3.0]))
    assert mostly_equal[-1] == pytest.approx(1 / (1.2533 * 0.1))


def test_slides_that_differ_are_flagged_for_what_differs() -> None:
    rng = np.random.default_rng(0)
    statuses = [
        status_of(f"s{n:02d}", per_mm2=5000 * rng.lognormal(0, 0.1), lymphocytes=0.2 + rng.normal(0, 0.01))
        for n in range(20)
    ]
    statuses[3] = status_of("s03", per_mm2=60000)
    statuses[7] = status_of("s07", lymphocytes=0.9)
    statuses[11] = status_of("s11", excluded=ExcludedArea(blur_mm2=80.0))
    confidences = {status.slide_id: 0.8 + rng.normal(0, 0.01) for status in statuses} | {"s13": 0.4, "s15": 0.99}
    rows = cohort_of(statuses, confidences=confidences).rows
    told = {row.slide_id: {flag.measure.label for flag in row.flags} for row in rows if row.flags}
    assert told["s03"] >= {"cells per mm²"}
    assert told["s07"] == {"share of lymphocyte", "share of neoplastic"}
    assert told["s11"] == {"tissue out of focus"}
    assert told["s13"] == {"mean confidence"}
    assert "s15" not in told  # surer than the rest is no reason to look


def test_a_slide_is_also_judged_within_its_group() -> None:
    """Two scanners, each narrow, far apart: a slide of one that looks like the other's stands out of its group only."""
    values = np.concatenate([np.linspace(10, 11, 11), np.linspace(20, 21, 10), [20.5]])
    measure = Measure("m", values)
    groups = {"": list(range(22)), "A": [*range(11), 21], "B": list(range(11, 21))}
    flags = find_flags([measure], groups)
    assert [(flag.slide, flag.within) for flag in flags] == [(21, "A")]
    assert flags[0].median == pytest.approx(np.median([*values[:11], 20.5]))


def test_a_slides_rank_counts_the_others() -> None:
    cohort = cohort_of([status_of(name, per_mm2=value) for name, value in (("a", 1), ("b", 2), ("c", 2), ("d", 9))])
    assert [cohort.percentile(row, None) for row in cohort.rows] == pytest.approx([0, 50, 50, 100])
    assert cohort_of([status_of("a")]).percentile(cohort.rows[0], None) is None


# ------------------------------------------------------------------------------------------------------------- pages


class Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def test_the_index_stays_under_2_mb_at_a_thousand_slides() -> None:
    rng = np.random.default_rng(1)
    statuses = [
        status_of(f"TCGA-AA-{n:04d}-01Z-00-DX1.0123abcd-4567-89ab-cdef-0123456789ab", per_mm2=rng.lognormal(8, 0.6))
        for n in range(1000)
    ]
    statuses[5] = SlideStatus(slide_id="broken", outcome="failed", reasons=("Truncated.",))
    ontology = get_ontology("histoplus13")
    identity = CellSetIdentity("m", "d", "c", {}, ontology, "0.1.0")
    groups = {status.slide_id: f"scanner {n % 4}" for n, status in enumerate(statuses)}
    confidences = {status.slide_id: float(rng.uniform(0.6, 0.9)) for status in statuses}
    cohort = Cohort.of(statuses, identity, title="c", confidences=confidences, groups=groups, group_by="scanner")
    page = index_page(cohort)
    assert len(page.encode()) < 2_000_000
    assert page.count("<tr data-s=") == 1000


def test_what_comes_from_outside_is_text_wherever_it_stands() -> None:
    ontology = Ontology("o<b>", (CellClass(f"type{HOSTILE}", (1, 2, 3)), CellClass("other", (4, 5, 6))))
    identity = CellSetIdentity(HOSTILE, HOSTILE, "c", {}, ontology, "0.1.0")
    done = [status_of(f"s{n}{HOSTILE}", num_cells_by_type={}) for n in range(9)]
    failed = SlideStatus(slide_id=f"../{HOSTILE}", outcome="failed", reasons=(HOSTILE,))
    groups = {done[0].slide_id: HOSTILE}
    cohort = Cohort.of([*done, failed], identity, title=HOSTILE, confidences={}, groups=groups, group_by=HOSTILE)
    tags = Tags(index_page(cohort))
    assert not [tag for tag, _ in tags.tags if tag in ("img", "b")]
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert tags.text.count(HOSTILE) >= 14
    # Ids that cannot be file names have no page and no link.
    assert all("slides/" not in (attributes.get("href") or "") for _, attributes in tags.tags)


def test_pages_ask_for_nothing_outside_themselves(report: Path) -> None:
    pages = sorted(report.rglob("*.html"))
    assert len(pages) == 5
    for path in pages:
        tags = Tags(path.read_text(encoding="utf-8")).tags
        policy = next(attributes["content"] for tag, attributes in tags if attributes.get("http-equiv"))
        assert policy is not None
        assert "default-src 'none'" in policy
        for tag, attributes in tags:
            assert "style" not in attributes, (path, tag)
            for name in ("src", "href"):
                link = attributes.get(name) or ""
                assert re.match(r"(data:|#|\.\./index\.html|(slides/)?[\w.-]+\.html)", link or "#"), link
                if link.endswith(".html"):
                    assert (path.parent / link).is_file(), link


def relative_luminance(rgb: tuple[int, int, int]) -> float:
    """WCAG 2.2."""
    linear = [v / 12.92 if (v := c / 255) <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(theme: int) -> None:
    css = re.search(r"<style>(.*?)</style>", render("base.html", IDENTITY), re.DOTALL)
    assert css is not None
    blocks = re.findall(r":root\{(.*?)\}", css[1], re.DOTALL)
    colors = {
        name: tuple(int(value.lstrip("#").ljust(6, value[-1])[k : k + 2], 16) for k in (0, 2, 4))
        for name, value in re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", blocks[theme])
        if len(value) == 7 or value == "#fff"
    }
    pairs = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("bg", "card", "soft")]
    pairs += [("ok", "ok-bg"), ("bad", "bad-bg"), ("warn", "warn-bg")]
    for ink, ground in pairs:
        bright, dark = sorted((relative_luminance(colors[ink]), relative_luminance(colors[ground])), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
COLOUR_VISION = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear_rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* under D65."""
    xyz = linear_rgb @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    t = np.clip(xyz / np.array([0.9505, 1.0, 1.089]), 1e-9, None)
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@pytest.mark.parametrize("vision", sorted(COLOUR_VISION))
def test_types_that_pathologists_compare_look_apart_to_colour_blind_eyes(vision: str) -> None:
    """15 is some six just-noticeable differences; names and switches tell types apart where colours do not."""
    rgb = np.array([entry.color_rgb for entry in REFINED7.classes]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = lab(np.clip(linear @ np.array(COLOUR_VISION[vision]).T, 0, 1))
    names = ["neoplastic", "lymphocyte", "connective", "epithelial"]
    index = [REFINED7.index(name) for name in names]
    apart = np.linalg.norm(seen[index][:, None] - seen[index][None], axis=-1)[np.triu_indices(len(index), 1)]
    assert apart.min() > 15, (vision, apart)


# ------------------------------------------------------------------------------------------------ a real small cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort that was really run: two slides with tissue, one half glass, one empty, one broken."""
    folder = tmp_path_factory.mktemp("report")
    slides = folder / "slides"
    slides.mkdir()
    make_slide(slides / "a.tif", seed=1)
    make_slide(slides / "b.tif", seed=2, glass_from_x=700)
    write_tiff(slides / "blank.tif", np.full((600, 600, 3), 255, np.uint8), mpp=(0.5, 0.5))
    (slides / "broken.tif").write_bytes(b"II*\0 no slide")
    rows = [
        f"slides/{name}.tif,{site}"
        for name, site in (("a", "Graz"), ("b", "Aarhus"), ("blank", ""), ("broken", "Graz"))
    ]
    (folder / "manifest.csv").write_text("slide,site\n" + "\n".join(rows) + "\n")
    run(slides, folder / "cells")
    return folder


@pytest.fixture(scope="module")
def report(cohort: Path) -> Path:
    html = cohort / "report"
    manifest = str(cohort / "manifest.csv")
    arguments = ["--cells", str(cohort / "cells"), "--slides", manifest, "--group-by", "site", "--html", str(html)]
    assert main([*arguments, "--num-workers", "1"]) == 0
    return html


def test_every_slide_has_a_page_and_failed_ones_their_reason(report: Path) -> None:
    names = {path.stem for path in (report / "slides").iterdir()}
    assert names == {"a", "b", "blank", "broken"}
    assert "No cells: " in (report / "slides" / "blank.html").read_text()
    broken = Tags((report / "slides" / "broken.html").read_text()).text
    assert "Why it failed" in broken
    assert "Why it failed" not in (report / "slides" / "a.html").read_text()
    index = Tags((report / "index.html").read_text()).text
    assert "Graz" in index
    assert "3of 4" in index


def test_pages_show_the_slide_its_tissue_and_its_cells(report: Path, cohort: Path) -> None:
    page = (report / "slides" / "b.html").read_text()
    assert page.count("data:image/jpeg") == 1 + page.count('<article id="region-')
    tags = Tags(page).tags
    outline = next(
        attributes["d"]
        for tag, attributes in tags
        if tag == "path" and attributes.get("class") == "analysed" and "l" in (attributes["d"] or "")
    )
    assert outline is not None
    # Tiles of 64 um that touch the tissue, which ends at 350 um; the slide is 450 um high.
    assert outline.count("M") == 1
    corners = np.cumsum(np.array(re.findall(r"-?\d+", outline), int).reshape(-1, 2), axis=0)
    assert corners[:, 0].max() == pytest.approx(384, abs=1)
    cells = [attributes for tag, attributes in tags if tag == "path" and "data-c" in attributes]
    assert len(cells) > 50


def test_without_slides_the_report_has_maps_and_tables(cohort: Path) -> None:
    html = cohort / "without"
    report_cohort(ReportCohortConfig(cells=str(cohort / "cells"), html=str(html), num_workers=1))
    page = (html / "slides" / "a.html").read_text()
    assert "data:image/jpeg" not in page
    assert page.count("data-heat=") == 9
    assert "data-c=" in page


def test_a_slide_that_changed_since_is_not_shown(cohort: Path, tmp_path: Path) -> None:
    make_slide(tmp_path / "a.tif", seed=9)
    config = ReportCohortConfig(
        cells=str(cohort / "cells"), html=str(tmp_path / "html"), slides=(str(tmp_path / "a.tif"),), num_workers=1
    )
    report_cohort(config)
    page = (tmp_path / "html" / "slides" / "a.html").read_text()
    assert "not the one its cells were found on" in page
    assert "data:image/jpeg" not in page


def test_a_folder_that_is_no_report_is_left_alone(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    assert main(["--cells", str(cohort / "cells"), "--html", str(tmp_path), "--num-workers", "1"]) == 2
    assert "holds something that is no report" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_report_is_replaced_whole_and_is_the_same_for_any_number_of_workers(
    cohort: Path, report: Path, tmp_path: Path
) -> None:
    html = tmp_path / "html"
    config = ReportCohortConfig(
        cells=str(cohort / "cells"),
        html=str(html),
        slides=(str(cohort / "manifest.csv"),),
        group_by="site",
        num_workers=2,
    )
    report_cohort(config)
    (html / "slides" / "gone.html").write_text("of a slide removed since")
    report_cohort(config)
    pages = {path.relative_to(html): path.read_bytes() for path in html.rglob("*.html")}
    assert pages == {path.relative_to(report): path.read_bytes() for path in report.rglob("*.html")}
    assert [path.name for path in tmp_path.iterdir()] == ["html"]


def test_an_unknown_group_column_is_refused_with_those_there_are(cohort: Path, tmp_path: Path) -> None:
    config = ReportCohortConfig(
        cells=str(cohort / "cells"),
        html=str(tmp_path / "h"),
        slides=(str(cohort / "manifest.csv"),),
        group_by="scanner",
    )
    with pytest.raises(ValueError, match=r"no column 'scanner'; it has slide, site"):
        report_cohort(config)
    with pytest.raises(ValueError, match="--num-regions"):
        ReportCohortConfig(cells="c", html="h", num_regions=5)


# ------------------------------------------------------------------------------------------------- regions and maps


def test_regions_shown_differ_and_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (4000, 2))
    crowd = rng.uniform((800, 800), (900, 900), (400, 2))
    at = np.concatenate([xy, crowd])
    unsure = (at[:, 0] < 100) & (at[:, 1] < 100)
    cells = pl.DataFrame(
        {
            "x_um": at[:, 0],
            "y_um": at[:, 1],
            "cell_type": np.where(np.arange(len(at)) < 4000, rng.choice(["a", "b", "c"], len(at)), "a"),
            "confidence": np.where(unsure, 0.3, 0.9),
        }
    )
    shown = {region.title: region.region for region in choose_regions(cells, side_um=100.0, number=4)}
    assert list(shown) == ["Richest", "Typical", "Least sure", "Densest"]
    assert (shown["Least sure"].x_um, shown["Least sure"].y_um) == (0, 0)
    busiest = (shown["Richest"], shown["Densest"])
    assert any(abs(region.x_um - 800) < 100 and abs(region.y_um - 800) < 100 for region in busiest)
    places = list(shown.values())
    for number, one in enumerate(places):
        for other in places[number + 1 :]:
            assert max(abs(one.x_um - other.x_um), abs(one.y_um - other.y_um)) >= 100
    assert choose_regions(cells.clear(), side_um=100.0, number=4) == []
    assert len(choose_regions(cells, side_um=100.0, number=2)) == 2


def test_a_heat_maps_scale_ends_at_the_density_of_its_densest_bins() -> None:
    xy = np.array([[50.0, 50.0]] * 7 + [[250.0, 150.0]] * 3)
    bin_um, (every, first, second) = heat_maps(xy, np.array([0] * 7 + [1] * 3), num_types=2, size_um=(320.0, 180.0))
    assert bin_um == 100
    assert (every.width_um, every.height_um) == (400, 200)
    assert first.high == pytest.approx(700)  # 7 cells in 0.01 mm2
    assert second.high == pytest.approx(300)
    assert every.high == pytest.approx(700, rel=0.01)


# --------------------------------------------------------------------------------------------------------- excluded


def test_tiles_left_out_are_found_again_where_the_run_left_them_out(tmp_path: Path) -> None:
    """A slide with a pen stroke and a blurred patch, really run: areas from the pixels are those of the status."""
    import cv2

    from cellmill.report.imagery import read_imagery

    slides = tmp_path / "slides"
    slides.mkdir()
    make_slide(slides / "marked.tif", width=1536, height=1024, seed=5)
    import tifffile

    pixels = tifffile.imread(slides / "marked.tif")
    pixels[256:640, 256:640] = (30, 120, 60)  # green ink
    pixels[600:1000, 1000:1500] = cv2.GaussianBlur(pixels, (0, 0), 6)[600:1000, 1000:1500]
    write_tiff(slides / "marked.tif", pixels, mpp=(0.5, 0.5))
    (status,) = run(slides, tmp_path / "cells").statuses
    assert status.excluded.pen_mm2 > 0
    config = {"tile_px": 192, "margin_px": 32, "tissue": "auto"}
    # Only the tiles' places matter here: no anchor makes every analysed tile one to be judged again.
    found = read_imagery(slides / "marked.tif", status, config, regions=[], anchors_px=np.zeros((0, 2), np.int64))
    assert found.excluded_agrees
    assert "pen" in found.excluded
    area = sum(0.5 * abs(np.sum(r[:-1, 0] * r[1:, 1] - r[1:, 0] * r[:-1, 1])) for r in found.excluded["pen"]) * 1e-6
    assert area == pytest.approx(status.excluded.pen_mm2, rel=1e-3)


# --------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def seen(page: Any, figure: int) -> list[float]:
    box = page.locator("[data-viewer] > svg").nth(figure).get_attribute("viewBox")
    return [float(value) for value in box.split()]


@needs_browser
def test_the_index_sorts_finds_and_leads_to_slides(browser: Any, report: Path) -> None:
    with open_page(browser, report / "index.html") as page:
        first = page.locator("#all tbody tr:visible th")
        assert first.all_inner_texts() == ["a", "b", "blank", "broken"]
        page.get_by_role("button", name="Cells", exact=True).click()
        assert first.all_inner_texts()[0] == "a"
        assert page.locator("#all th[aria-sort=descending]").count() == 1
        page.get_by_role("button", name="Cells", exact=True).press("Enter")
        assert first.all_inner_texts() == ["blank", "b", "a", "broken"]  # failed ones have no count
        page.locator("[data-find]").fill("aarhus")
        assert first.all_inner_texts() == ["b"]
        assert page.locator("[data-shown]").inner_text() == "1 of 4 slides"
        page.locator("[data-find]").fill("")
        page.locator("[data-status]").select_option("failed")
        assert first.all_inner_texts() == ["broken"]
        page.locator("[data-status]").select_option("")
        page.locator("#all").get_by_role("link", name="b", exact=True).click()
        assert page.locator("h1").inner_text().startswith("b")
        page.get_by_role("link", name="Previous").click()
        assert page.locator("h1").inner_text().startswith("a")


@needs_browser
def test_pictures_zoom_by_button_key_and_wheel(browser: Any, report: Path) -> None:
    with open_page(browser, report / "slides" / "a.html") as page:
        whole = seen(page, 0)
        assert whole == [0, 0, 650, 450]
        figure = page.locator("[data-viewer]").first
        figure.get_by_role("button", name="Zoom in").click()
        assert seen(page, 0)[2:] == pytest.approx([650 / 1.5, 300], abs=0.01)
        figure.get_by_role("button", name="Show all").click()
        assert seen(page, 0) == whole
        figure.focus()
        page.keyboard.press("+")
        before = seen(page, 0)
        page.keyboard.press("ArrowRight")
        assert seen(page, 0)[0] > before[0]
        page.keyboard.press("0")
        assert seen(page, 0) == whole
        figure.hover()
        page.mouse.wheel(0, -300)
        page.wait_for_function("document.querySelector('[data-viewer] > svg').viewBox.baseVal.width < 640")
        box = figure.bounding_box()
        start = seen(page, 0)
        page.mouse.move(box["x"] + 300, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 150, steps=4)
        page.mouse.up()
        assert seen(page, 0)[0] > start[0]
        assert page.locator("[data-bar]").first.inner_text().endswith("µm")


@needs_browser
def test_switches_show_and_hide_types_layers_and_heat_maps(browser: Any, report: Path) -> None:
    with open_page(browser, report / "slides" / "a.html") as page:
        cells = page.locator("#region-1 [data-cells='1'] path")
        assert cells.first.is_visible()
        page.locator(".switches").get_by_label("lymphocyte").uncheck()
        assert not cells.first.is_visible()
        assert page.locator("#region-1 [data-cells='0'] path").first.is_visible()
        page.get_by_role("button", name="None", exact=True).press("Enter")
        assert page.locator(".cells path:visible").count() == 0
        page.get_by_role("button", name="All", exact=True).click()
        assert cells.first.is_visible()
        page.locator("[data-confidence]").fill("100")
        low = page.locator("#region-1 .cells path:not([data-c='100'])")
        assert all(not cell.is_visible() for cell in low.all())
        heat = page.locator("[data-heat]:visible")
        assert heat.count() == 0
        page.get_by_role("radio", name="lymphocyte").check()
        assert heat.count() == 1
        assert page.locator("[data-high]").last.inner_text().endswith("per mm²")
        assert page.locator("[data-layer=analysed]").is_visible()
        page.get_by_role("checkbox", name="analysed tissue").uncheck()
        assert not page.locator("[data-layer=analysed]").is_visible()
        page.locator("#region-1 [data-cells='1'] path").first.dispatch_event("pointerover")
        told = page.locator("#region-1 [data-told]").inner_text()
        assert re.fullmatch(r"lymphocyte, confidence [01]\.\d\d, \d+ µm²", told)


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways(browser: Any, report: Path, width: int) -> None:
    for name in ("index.html", "slides/a.html", "slides/broken.html"):
        with open_page(browser, report / name, width=width) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name


@needs_browser
def test_without_scripts_everything_is_still_there(browser: Any, report: Path) -> None:
    with open_page(browser, report / "slides" / "a.html", java_script_enabled=False) as page:
        assert page.locator("#region-1 .cells path").first.is_visible()
        assert page.locator(".buttons:visible").count() == 0


@needs_browser
def test_hostile_names_run_nothing_in_a_browser(browser: Any, tmp_path: Path) -> None:
    slides = {"s": random_cells(3, 500), "e": PlacedCells(np.zeros((0, 2)), [])}
    ontology = Ontology(
        "o", tuple(CellClass(f"{entry.name}</script>{HOSTILE}", entry.color_rgb) for entry in REFINED7.classes)
    )
    write_cell_set(
        tmp_path / "cells", slides, failed={"f": f"</p><script>window.bad=1</script>{HOSTILE}"}, ontology=ontology
    )
    report_cohort(
        ReportCohortConfig(cells=str(tmp_path / "cells"), html=str(tmp_path / "html"), title=HOSTILE, num_workers=1)
    )
    for name in ("index.html", "slides/s.html", "slides/f.html"):
        with open_page(browser, tmp_path / "html" / name) as page:
            assert page.evaluate("window.bad") is None
            assert page.locator("img").count() == 0
