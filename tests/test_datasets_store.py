"""The store of labelled images: what goes in comes out, appends are whole, digests are of content, damage is named."""

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from dataset_helpers import OF_DATASET, REFINED7, assert_same, labelled_images, square_image
from hypothesis import given, settings

from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.datasets.lineage import with_origins
from cellmill_training.datasets.mapping import concatenate, mapped_images
from cellmill_training.datasets.rows import decode_row, encode_row, table_of_row
from cellmill_training.datasets.shards import ShardReader
from cellmill_training.datasets.splitting import SplitPlan
from cellmill_training.datasets.store import append_images, open_dataset, write_dataset
from cellmill_training.datasets.training_samples import labels_of, samples_of

RAYS_OWN = ("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
"""Warnings of Ray's own code about itself."""

_numbers = itertools.count()


@given(labelled_images())
def test_an_image_survives_its_row(image: LabelledImage) -> None:
    (row,) = table_of_row(encode_row(image, REFINED7)).to_pylist()
    assert_same(decode_row(row), image)


@settings(max_examples=5)
@given(labelled_images(image_id="a"), labelled_images(image_id="b"))
def test_images_survive_the_store(one: LabelledImage, other: LabelledImage) -> None:
    dataset = write_dataset(f"memory://survive{next(_numbers)}", [other, one], ontology=REFINED7)
    assert dataset.image_ids() == ("a", "b")
    for image, again in zip((one, other), dataset.images(), strict=True):
        assert_same(again, image)


def test_an_image_is_read_without_touching_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "d", [square_image(name) for name in "abc"], ontology=REFINED7)
    row_groups: list[int] = []
    table = ShardReader.table

    def spy(self: ShardReader, shard: str, row_group: int) -> object:
        row_groups.append(row_group)
        return table(self, shard, row_group)

    monkeypatch.setattr(ShardReader, "table", spy)
    assert_same(dataset.read("b"), square_image("b"))
    assert row_groups == [1]
    with pytest.raises(KeyError, match="no image 'z'"):
        dataset.read("z")


def test_the_digest_is_of_content_and_not_of_files(tmp_path: Path) -> None:
    one, other = square_image("a"), square_image("b")
    splits = {"a": "train", "b": "test"}
    whole = write_dataset(tmp_path / "whole", [one, other], ontology=REFINED7, splits=splits)
    write_dataset(tmp_path / "grown", [other], ontology=REFINED7, splits=splits, name="another name")
    grown = append_images(tmp_path / "grown", [one], splits=splits)
    assert whole.digest == grown.digest == open_dataset(tmp_path / "grown").digest
    pixel = other.image.copy()
    pixel[0, 0, 0] ^= 1
    doubt = (CellLabel(("neoplastic",), LabelOrigin("dataset", "made up", 0.5)),)
    changed = [
        write_dataset(tmp_path / f"changed{number}", [one, image], ontology=REFINED7, splits=splits).digest
        for number, image in enumerate(
            (replace(other, image=pixel), replace(other, labels=doubt), replace(other, mpp=1))
        )
    ]
    moved = write_dataset(tmp_path / "moved", [one, other], ontology=REFINED7, splits={"a": "train", "b": "train"})
    assert len({whole.digest, moved.digest, *changed}) == 5


def test_the_digest_does_not_change_with_the_code(tmp_path: Path) -> None:
    """A digest in an old run's record must still be that of the same data set."""
    image = replace(square_image(), image=np.zeros((24, 32, 3), np.uint8))
    dataset = write_dataset(tmp_path / "d", [image], ontology=REFINED7, splits={"a": "train"})
    assert dataset.digest == "bbf49e2993c62f516ba4de785c0bb98283350812fbdccc36305608a462116362"


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", [square_image("first")], ontology=REFINED7)
    threads = [
        threading.Thread(target=append_images, args=(tmp_path / "d", [square_image(f"{name}{k}") for k in range(3)]))
        for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(open_dataset(tmp_path / "d")) == 13


def test_a_writer_that_breaks_off_leaves_nothing_visible(tmp_path: Path) -> None:
    def images() -> Iterator[LabelledImage]:
        yield square_image("a")
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        write_dataset(tmp_path / "d", images(), ontology=REFINED7)
    with pytest.raises(ValueError, match="cut off"):
        open_dataset(tmp_path / "d")
    assert len(write_dataset(tmp_path / "d", [square_image("a")], ontology=REFINED7)) == 1


def test_twins_strangers_and_moves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a' comes twice"):
        write_dataset(tmp_path / "d", [square_image("a"), square_image("a")], ontology=REFINED7)
    with pytest.raises(ValueError, match="group 'g', which has no split"):
        write_dataset(tmp_path / "d", [square_image("a", group="g")], ontology=REFINED7, splits={"a": "train"})
    with pytest.raises(ValueError, match="no image"):
        write_dataset(tmp_path / "d", [], ontology=REFINED7)
    with pytest.raises(ValueError, match=r"'a' of 'made up', instance 1: 'neoplastic' is not a class.*Map"):
        write_dataset(tmp_path / "d", [square_image("a")], ontology=get_ontology("monusac4"))
    write_dataset(tmp_path / "d", [square_image("a", group="g")], ontology=REFINED7, splits={"g": "train"})
    with pytest.raises(ValueError, match="holds a data set already"):
        write_dataset(tmp_path / "d", [square_image("b")], ontology=REFINED7)
    with pytest.raises(ValueError, match="already, 'a' first"):
        append_images(tmp_path / "d", [square_image("a")])
    with pytest.raises(ValueError, match=r"'g' is in split 'train'.*cannot move"):
        append_images(tmp_path / "d", [square_image("b", group="g")], splits={"g": "test"})


def test_a_group_keeps_its_split_when_images_are_added(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", [square_image("a", group="g")], ontology=REFINED7, splits={"g": "test"})
    more = [square_image(f"b{k}", group="g") for k in range(20)]
    assert append_images(tmp_path / "d", more).splits() == {"g": "test"}


@pytest.mark.parametrize("where", ["shards", "index", "dataset.json"])
def test_one_corrupt_file_among_many_is_named(tmp_path: Path, where: str) -> None:
    write_dataset(tmp_path / "d", [square_image("a")], ontology=REFINED7)
    append_images(tmp_path / "d", [square_image("b")])
    place = tmp_path / "d" / where
    path = sorted(place.iterdir())[-1] if place.is_dir() else place
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=path.name):
        list(open_dataset(tmp_path / "d").images())


def test_a_changed_pixel_in_a_shard_is_noticed() -> None:
    row = encode_row(square_image(), REFINED7)
    row["instances"] = row["instances"].replace(b"\1\0\0\0", b"\0\0\0\0", 1)
    with pytest.raises(ValueError, match="'a' is damaged: its content is not what its digest"):
        decode_row(row)


def test_a_copy_without_one_index_file_is_noticed(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", [square_image("a")], ontology=REFINED7)
    append_images(tmp_path / "d", [square_image("b")])
    (tmp_path / "d" / "index" / "000001.parquet").unlink()
    with pytest.raises(ValueError, match="missing or was changed"):
        open_dataset(tmp_path / "d")


def test_a_place_without_a_data_set_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="import-dataset"):
        open_dataset(tmp_path)


def test_labels_are_a_table_that_polars_counts(tmp_path: Path) -> None:
    labels = (
        CellLabel(("neoplastic", "epithelial"), OF_DATASET),
        CellLabel(("dead",), LabelOrigin("model", "lite@3", 0.75)),
        CellLabel((), LabelOrigin("annotator", "anna")),
    )
    dataset = write_dataset(tmp_path / "d", [square_image("a", labels=labels)], ontology=REFINED7)
    frame = pl.from_arrow(dataset.labels())
    assert isinstance(frame, pl.DataFrame)
    assert frame["instance"].to_list() == [1, 2, 3]
    assert frame["cell_types"].to_list() == [["neoplastic", "epithelial"], ["dead"], []]
    assert frame["origin_probability"].to_list() == [None, 0.75, None]
    shards = pl.read_parquet(f"{tmp_path}/d/shards/*.parquet", columns=["image_id", "labels"])
    assert shards.explode("labels").unnest("labels")["origin_by"].to_list() == ["made up", "lite@3", "anna"]


@pytest.mark.filterwarnings(*RAYS_OWN)
def test_ray_streams_the_images_of_a_split(tmp_path: Path, ray_session: None) -> None:
    images = [square_image(f"{k:02d}", seed=k) for k in range(40)]
    splits = {image.image_id: "train" if k % 4 else "test" for k, image in enumerate(images)}
    dataset = write_dataset(tmp_path / "d", images, ontology=REFINED7, splits=splits)
    rows = dataset.to_ray("test").take_all()
    assert sorted(row["image_id"] for row in rows) == [f"{k:02d}" for k in range(0, 40, 4)]
    for row in rows:
        assert_same(decode_row(row), images[int(row["image_id"])])
    brightness = dataset.to_ray().map(lambda row: {"mean": float(decode_row(row).image.mean())}).take_all()
    expected = sorted(float(image.image.mean()) for image in images)
    assert sorted(row["mean"] for row in brightness) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no image in split 'validation'"):
        dataset.to_ray("validation")


# ------------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mpp": 0.0}, "positive mpp"),
        ({"instances": np.full((24, 32), 2, np.int32)}, "without gaps, but \\[1\\]"),
        ({"instances": np.full((24, 32), -1, np.int32)}, "negative instance label -1"),
        ({"instances": np.ones((24, 31), np.int32)}, "\\(24, 31\\)"),
        ({"labels": ()}, "1 instances, but 0 labels"),
        ({"split_group": ""}, "split group"),
    ],
)
def test_an_image_that_contradicts_itself_cannot_be_made(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"Image 'a' of 'made up'.*{complaint}"):
        replace(square_image(), **change)  # pyright: ignore[reportArgumentType]


def test_origins_are_checked() -> None:
    with pytest.raises(ValueError, match=r"0 to 1, got 1.5"):
        LabelOrigin("model", "m", 1.5)
    with pytest.raises(ValueError, match="by whom"):
        LabelOrigin("model", "")
    with pytest.raises(ValueError, match="one of dataset"):
        LabelOrigin("rumour", "m")  # pyright: ignore[reportArgumentType]


def test_numbering_closes_gaps_in_order() -> None:
    dense, numbers = densely_numbered(np.array([[0, 7], [3, 900]]))
    assert dense.tolist() == [[0, 2], [1, 3]]
    assert numbers == (3, 7, 900)
    assert densely_numbered(np.array([[5]]))[0].tolist() == [[1]]
    assert densely_numbered(np.zeros((1, 2), np.int64))[1] == ()


def test_a_type_map_shows_certain_types_only() -> None:
    labels = (
        CellLabel(("lymphocyte",), OF_DATASET),
        CellLabel(("neoplastic", "epithelial"), OF_DATASET),
        CellLabel((), OF_DATASET),
    )
    types = square_image(labels=labels).type_map(REFINED7)
    assert types[5, 6] == 2
    assert np.count_nonzero(types) == 16
    with pytest.raises(ValueError, match=r"instance 1.*pannuke5"):
        square_image(labels=labels).type_map(get_ontology("pannuke5"))


# ----------------------------------------------------------------------------------------------------------- lineage


def test_labels_of_other_origin_become_unknown_pixels(tmp_path: Path) -> None:
    labels = (
        CellLabel(("dead",), LabelOrigin("annotator", "anna")),
        CellLabel(("lymphocyte",), LabelOrigin("model", "lite@3", 0.9)),
        CellLabel(("neoplastic",), LabelOrigin("annotator", "bert")),
    )
    image = square_image(labels=labels)
    dataset = write_dataset(tmp_path / "d", [image], ontology=REFINED7)
    (kept,) = dataset.images(origins=["annotator:anna", "model"])
    assert kept.labels == labels[:2]
    np.testing.assert_array_equal(kept.unknown, image.instances == 3)
    np.testing.assert_array_equal(kept.instances, np.where(image.instances == 3, 0, image.instances))
    (none,) = dataset.images(origins=["weak"])
    assert none.num_cells == 0
    np.testing.assert_array_equal(none.unknown, image.instances > 0)


def test_a_relabelled_nucleus_without_its_new_type_keeps_its_outline() -> None:
    image = square_image(labels=(CellLabel(("macrophage",), LabelOrigin("relabel", "r@1", 0.8)),))
    kept = with_origins(image, ["dataset"])
    assert kept.labels == (CellLabel((), image.labels[0].origin),)
    assert not kept.unknown.any()
    assert with_origins(image, ["annotator"]).num_cells == 0
    assert with_origins(image, ["relabel"]).labels == image.labels


def test_an_origin_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'kind:by'.*got 'anna'"):
        with_origins(square_image(), ["anna"])


# ---------------------------------------------------------------------------------------------------- one of several


def test_data_sets_become_one_in_one_ontology(tmp_path: Path) -> None:
    pannuke, monusac = get_ontology("pannuke5"), get_ontology("monusac4")
    inflamed = CellLabel(("inflammatory",), LabelOrigin("dataset", "pannuke"))
    epithelial = CellLabel(("epithelial",), LabelOrigin("dataset", "monusac"))
    one = write_dataset(tmp_path / "p", [square_image("p", labels=(inflamed,))], ontology=pannuke, splits={"p": "test"})
    other = write_dataset(tmp_path / "m", [square_image("m", labels=(epithelial,))], ontology=monusac)
    both = concatenate([one, other], tmp_path / "both", ontology=REFINED7)
    assert both.splits() == {"p": "test", "m": "train"}
    assert both.read("p").labels[0].cell_types == ("lymphocyte", "macrophage", "neutrophil")
    assert both.read("m").labels == (CellLabel(("neoplastic", "epithelial"), epithelial.origin),)
    with pytest.raises(ValueError, match=r"'p' is in split 'test'.*'train'"):
        again = write_dataset(tmp_path / "q", [square_image("q", group="p")], ontology=REFINED7, splits={"p": "train"})
        concatenate([again, one], tmp_path / "never", ontology=REFINED7)


def test_a_class_the_target_lacks_leaves_the_type_open(tmp_path: Path) -> None:
    plasma = (CellLabel(("plasma cell",), OF_DATASET), CellLabel(("plasma cell", "lymphocyte"), OF_DATASET))
    conic = write_dataset(tmp_path / "c", [square_image("c", labels=plasma)], ontology=get_ontology("conic6"))
    (image,) = mapped_images(conic, REFINED7)
    assert [label.cell_types for label in image.labels] == [(), ()]


# ----------------------------------------------------------------------------------------------------------- samples


def test_samples_hold_what_labels_leave_open() -> None:
    labels = (
        CellLabel(("lymphocyte",), OF_DATASET),
        CellLabel(("neoplastic", "epithelial"), OF_DATASET),
        CellLabel((), OF_DATASET),
    )
    image = square_image(labels=labels)
    unknown = np.zeros((24, 32), np.bool_)
    unknown[20:] = unknown[5, 6] = True
    made = labels_of(replace(image, unknown=unknown), REFINED7)
    assert made.allowed[0, 0] == 1  # background
    assert made.allowed[5, 6] == 1 << 2  # lymphocyte is class 1; an instance wins over unknown
    assert made.allowed[5, 11] == 1 << 1 | 1 << 5
    assert made.allowed[5, 16] == 0b11111110  # a nucleus of any type
    assert made.allowed[21, 0] == 0b11111111
    np.testing.assert_array_equal(made.flow_known, image.instances > 0)


def test_samples_are_of_one_split_in_the_networks_ontology(tmp_path: Path) -> None:
    inflamed = (CellLabel(("inflammatory",), OF_DATASET),)
    images = [square_image(name, labels=inflamed) for name in "ab"]
    splits = {"a": "train", "b": "test"}
    dataset = write_dataset(tmp_path / "d", images, ontology=get_ontology("pannuke5"), splits=splits)
    (sample,) = samples_of(dataset, "test")
    assert (sample.name, sample.split, sample.group, sample.source) == ("b", "test", "b", "made up")
    assert sample.classes[1] == 1 << 2 | 1 << 6 | 1 << 7
    (coarse,) = samples_of(dataset, "test", ontology=get_ontology("pannuke5"))
    assert coarse.classes[1] == 1 << 2


def test_folds_of_the_source_can_be_the_splits(tmp_path: Path) -> None:
    images = [square_image(f"{k}", fold=f"fold{k}") for k in (1, 2, 3)]
    plan = SplitPlan(folds={"fold1": "train", "fold2": "validation", "fold3": "test"})
    dataset = write_dataset(tmp_path / "d", images, ontology=REFINED7, splits=plan)
    assert dataset.splits() == {"1": "train", "2": "validation", "3": "test"}
    with pytest.raises(ValueError, match="'fold3' of group '3' has no split"):
        write_dataset(
            tmp_path / "e", images, ontology=REFINED7, splits=replace(plan, folds={"fold1": "train", "fold2": "test"})
        )
