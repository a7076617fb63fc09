"""Claims about the chain as a whole: it recovers what the weak source got wrong, resumes, and says who said what."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from weak_helpers import ROUND_OR_LONG, nuclei_image

from cellmill.models.mlflow_client import embedded_store, open_client
from cellmill_schemas.ontology import get_ontology
from cellmill_training import recipes
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.store import open_dataset, write_dataset
from cellmill_training.ray_trainer import WorkerPlan
from cellmill_training.relabel import learning
from cellmill_training.relabel.cells import CellIndex
from cellmill_training.relabel.classifier import CellClassifier, ClassifierConfig, load_classifier, predict
from cellmill_training.relabel.crops import CropConfig, cell_boxes, cell_crops
from cellmill_training.relabel.fitting import FitConfig, FitState, LabelledCrops, fit_classifier
from cellmill_training.relabel.learning import LearnConfig
from cellmill_training.weak import job, nucleus_training
from cellmill_training.weak.chain import ChainData, run_chain
from cellmill_training.weak.demo import true_images
from cellmill_training.weak.job import WeakChainSettings, main, recipe_of
from cellmill_training.weak.nucleus_networks import NucleusNetworkConfig
from cellmill_training.weak.nucleus_patches import PatchConfig
from cellmill_training.weak.nucleus_training import NucleusFit
from cellmill_training.weak.recipe import TuningConfig, WeakChainRecipe
from cellmill_training.weak.scoring import score
from cellmill_training.weak.tuning import ExpertNuclei, drawn_rows, possible_counts
from cellmill_training.weak.typing_nuclei import BACKGROUND
from cellmill_training.weak.weak_source import WeakSource, weakly_labelled

pytestmark = [
    # Ray copies its own data context attribute by attribute and warns about some of them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning"),
]

_LEARN = LearnConfig(
    encoder="test_resnet",
    weights="random",
    dropout=0.0,
    fit=FitConfig(epochs=14, batch_size=16, learning_rate=3e-3, weight_decay=0.0, warmup_steps=20),
)
_TINY = WeakChainRecipe(
    networks=(
        NucleusNetworkConfig("unet", widths=(4, 8, 16), dropout=0.0),
        NucleusNetworkConfig("unetplusplus", widths=(4, 8), dropout=0.0),
    ),
    nuclei=NucleusFit(
        PatchConfig(patch_px=128, factors=(1,)), epochs=8, batch_size=2, learning_rate=2e-2, ema_decay=0.5
    ),
    crop=CropConfig(side_px=32, context_px=0, context_mpp=0.5, framing="window"),
    teacher=_LEARN,
    student=_LEARN,
    tuning=TuningConfig(
        counts=(4, 8, 5000),
        learning_rates=(1e-3,),
        dropouts=(0.0,),
        learn=replace(_LEARN, fit=replace(_LEARN.fit, epochs=2)),
    ),
)
_EXPERTS = tuple(f"expert{number}" for number in range(5))
_OTHERS = tuple(f"slide{number}" for number in range(18))
_PLAN = WorkerPlan(num_workers=0, device="cpu")


def _tissue(name: str) -> LabelledImage:
    return nuclei_image(name, side=128, number=36)


def _write(folder: Path) -> list[str]:
    """The two data sets, as arguments of the job."""
    splits: dict[str, Split] = dict.fromkeys(_OTHERS[:13], "train")
    splits |= dict.fromkeys(_OTHERS[13:17], "validation") | dict.fromkeys((*_OTHERS[17:], *_EXPERTS), "test")
    source = WeakSource(error_rate=0.25, name="quick classifier")

    def weak() -> Iterator[LabelledImage]:
        for name in (*_OTHERS, *_EXPERTS):
            yield weakly_labelled(_tissue(name), source)

    write_dataset(folder / "weak", weak(), ontology=ROUND_OR_LONG, splits=splits)
    held_out: dict[str, Split] = {name: "test" if number > 2 else "train" for number, name in enumerate(_EXPERTS)}
    write_dataset(folder / "expert", map(_tissue, _EXPERTS), ontology=ROUND_OR_LONG, splits=held_out)
    return ["--weak", str(folder / "weak"), "--expert", str(folder / "expert"), "--recipe", "tiny"]


@pytest.fixture(scope="module")
def tiny_recipe() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.WEAK_CHAIN_RECIPES, "tiny", _TINY)
        yield


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: None) -> Path:
    """A finished chain, made by the job in this process."""
    folder = tmp_path_factory.mktemp("chain")
    arguments = [*_write(folder), "--out", str(folder / "out"), "--num-workers", "0", "--device", "cpu"]
    assert main(arguments) == 0
    return folder / "out"


def _report(out: Path) -> dict[str, dict[str, dict[str, float]]]:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_teacher_and_student_are_nearer_the_truth_than_the_labels_they_learned_from(
    chain: Path,
) -> None:
    report = _report(chain)
    weak = json.loads((chain / "report.json").read_text(encoding="utf-8"))["weak_labels"]["accuracy"]
    assert weak < 0.85
    assert report["teacher"]["expert"]["accuracy"] > weak + 0.03
    assert report["student"]["expert"]["accuracy"] > weak + 0.03


def _crops(images: Sequence[LabelledImage], config: ClassifierConfig) -> LabelledCrops:
    cut = [cell_crops(i.image, cell_boxes(i.instances), mpp=i.mpp, config=config.crop) for i in images]
    classes = [config.class_names.index(label.cell_types[0]) for image in images for label in image.labels]
    return LabelledCrops(np.concatenate(cut), np.array(classes, np.int64))


def _learned(crops: LabelledCrops, validation: LabelledCrops, config: ClassifierConfig) -> CellClassifier:
    settings = FitConfig(epochs=6, batch_size=32, learning_rate=3e-3, weight_decay=0.0, warmup_steps=20)
    state = FitState.fresh(config, settings)
    fit_classifier(state, train=crops, validation=validation, config=settings)
    network = CellClassifier(config)
    network.load_state_dict(state.best)
    return network


def test_on_synthetic_tissue_teacher_and_student_mend_errors_that_depend_on_the_nucleus() -> None:
    # The classes of nuclei that the weak source has found, against the truth, on slides that taught nothing.
    truth = list(true_images(range(620_000, 620_042)))
    source = WeakSource(error_rate=0.35, missed_share=0.0)
    weak = [weakly_labelled(image, source) for image in truth]
    window = CropConfig(side_px=24, context_px=0, context_mpp=0.67, framing="window")
    config = ClassifierConfig(get_ontology("ikem3").names, "test_resnet", dropout=0.0, crop=window)
    labels = _crops(weak[:24], config)
    validation, unseen, unseen_weak = (_crops(images, config) for images in (weak[24:32], truth[32:], weak[32:]))
    own = float((unseen_weak.classes == unseen.classes).mean())
    teacher = _learned(labels, validation, config)
    taught = LabelledCrops(labels.crops, predict(teacher, labels.crops).argmax(axis=1).astype(np.int64))
    student = _learned(taught, validation, config)
    found = [float((predict(one, unseen.crops).argmax(axis=1) == unseen.classes).mean()) for one in (teacher, student)]
    counts = f"{len(labels.classes)} nuclei to learn from, {len(unseen.classes)} to test on"
    print(f"{counts}: weak {own:.3f}, teacher {found[0]:.3f}, student {found[1]:.3f}")  # noqa: T201
    assert own < 0.70
    assert min(found) > own + 0.05


def test_every_label_on_the_way_says_who_gave_it(chain: Path) -> None:
    out = chain
    teacher = load_classifier(out / "teacher" / "classifier")
    by = {
        name: {
            (label.origin.kind, label.origin.by, label.origin.probability is not None)
            for image in open_dataset(out / name).images()
            for label in image.labels
        }
        for name in ("nuclei/weak", "nuclei/expert", "taught")
    }
    assert by["nuclei/weak"] == {("weak", "quick classifier", False)}
    assert by["nuclei/expert"] == {("annotator", "truth", False)}
    assert by["taught"] == {("model", teacher.name, True)}
    assert open_dataset(out / "taught").ontology.names == ("round", "long", BACKGROUND)


def test_the_tables_of_the_paper_are_there_and_counts_beyond_the_experts_are_left_out(
    chain: Path,
) -> None:
    page = (chain / "report.md").read_text(encoding="utf-8")
    for table in ("table 2", "table 3", "tables 4 and 5", "table 6"):
        assert table in page
    rows = json.loads((chain / "report.json").read_text(encoding="utf-8"))["tuning"]
    assert [row["count"] for row in rows] == [4, 8]
    assert rows[0]["before"] == rows[1]["before"]  # one test set: other slides
    for row in rows:
        assert f"| {row['count']} | {100 * row['before']['f1']:.2f} | {100 * row['after']['f1']:.2f} |" in page
        assert (chain / row["classifier"] / "classifier.json").is_file()


def test_the_run_is_tracked_with_its_data_and_figures(chain: Path) -> None:
    client = open_client(embedded_store(chain))
    (experiment,) = [one for one in client.search_experiments() if one.name == "weak-chain"]
    run = client.search_runs([experiment.experiment_id])[-1]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["student/expert/accuracy"] == pytest.approx(_report(chain)["student"]["expert"]["accuracy"])
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"weak", "expert"}


def _data(out: Path) -> ChainData:
    return ChainData(open_dataset(out.parent / "weak"), open_dataset(out.parent / "expert"))


def test_a_chain_goes_on_at_the_stage_it_was_stopped_in(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(chain, out)
    shutil.rmtree(out / "student")
    shutil.rmtree(out / "tuning")
    asked: list[str] = []

    def noted(worker: object, config: dict[str, str], *, out: Path, plan: WorkerPlan) -> None:
        asked.append(out.name)
        shutil.copytree(chain / "student", out, dirs_exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(learning, "fit", noted)
    monkeypatch.setattr(nucleus_training, "fit", noted)
    with pytest.raises(KeyboardInterrupt):
        run_chain(_data(chain), _TINY, plan=_PLAN, out=out)
    assert asked == ["student"]  # what was done before is not done again
    shutil.copytree(chain / "tuning", out / "tuning")
    again = run_chain(_data(chain), _TINY, plan=_PLAN, out=out)
    assert asked == ["student"]
    assert json.loads(json.dumps(asdict(again.student))) == _report(chain)["student"]


def test_another_recipe_on_the_same_folder_is_refused(chain: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a chain of another recipe \(chain.json says which\)"):
        run_chain(_data(chain), replace(_TINY, seed=1), plan=_PLAN, out=chain)


def test_expert_slides_that_would_teach_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    weak = open_dataset(tmp_path / "weak")
    learnt = write_dataset(tmp_path / "learnt", [_tissue("slide0")], ontology=ROUND_OR_LONG, splits={"slide0": "test"})
    with pytest.raises(ValueError, match="'slide0' is annotated by the expert and trains in the weak data set"):
        ChainData(weak, learnt)
    classes = write_dataset(
        tmp_path / "other",
        [replace(_tissue("x"), labels=(), instances=np.zeros_like(_tissue("x").instances))],
        ontology=get_ontology("ikem3"),
    )
    with pytest.raises(ValueError, match=r"must be the weak source's \(round, long\), got muscle, immune, other"):
        ChainData(weak, classes)


def test_one_expert_slide_is_too_few_and_that_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    _write(tmp_path)
    alone = write_dataset(tmp_path / "alone", [_tissue("expert0")], ontology=ROUND_OR_LONG, splits={"expert0": "train"})
    with pytest.raises(ValueError, match=r"The 1 slide\(s\) of the expert are all on one side"):
        run_chain(ChainData(open_dataset(tmp_path / "weak"), alone), _TINY, plan=_PLAN, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_slides_with_annotations_become_data_sets_whose_expert_slides_only_test(tmp_path: Path) -> None:
    pixels = np.full((1400, 1400, 3), 245, np.uint8)
    pixels[100:1300, 100:1300] = (225, 160, 200)
    ring = [[200, 200], [220, 200], [220, 220], [200, 220], [200, 200]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "immune"}},
    }
    names = [f"s{number}" for number in range(6)]
    for name in names:
        for folder in ("slides", "weak", *(["experts"] if name in names[:2] else [])):
            (tmp_path / folder).mkdir(exist_ok=True)
            if folder != "slides":
                (tmp_path / folder / f"{name}.geojson").write_text(json.dumps([feature]), encoding="utf-8")
        tifffile.imwrite(
            tmp_path / "slides" / f"{name}.tif", pixels, photometric="rgb", tile=(256, 256),
            resolution=(40_000, 40_000), resolutionunit="CENTIMETER",
        )  # fmt: skip
    settings = WeakChainSettings(
        slides=(str(tmp_path / "slides"),),
        annotations=str(tmp_path / "weak"),
        expert_annotations=str(tmp_path / "experts"),
        annotator="A. B.",
        out=str(tmp_path / "out"),
        mpp=0.5,
    )
    weak, expert = job._from_slides(settings, recipe_of(settings), tmp_path / "out")  # pyright: ignore
    assert expert is not None
    assert {name: weak.splits()[name] for name in names[:2]} == {"s0": "test", "s1": "test"}
    assert set(weak.splits().values()) == {"train", "validation", "test"}
    assert set(expert.splits()) == {"s0", "s1"}
    ChainData(weak, expert)
    assert {label.origin.by for image in expert.images() for label in image.labels} == {"A. B."}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "--out must be a folder"),
        ({"out": "o"}, "either --weak DATASET, or --slides"),
        ({"out": "o", "slides": ("s",)}, "--slides and --annotations go together"),
        ({"out": "o", "weak": "w", "expert_annotations": "e"}, "--expert-annotations needs --slides"),
        ({"out": "o", "slides": ("s",), "annotations": "a", "expert_annotations": "e"}, "--annotator must say who"),
        ({"out": "o", "weak": "w", "counts": ("ten",)}, "--counts must be whole numbers"),
        ({"out": "o", "weak": "w", "recipe": "ikem"}, "--recipe must be one of weak-chain-ikem"),
    ],
)
def test_settings_that_cannot_be_used_say_what_to_give(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        WeakChainSettings(**settings)  # pyright: ignore[reportArgumentType]


def test_the_paper_s_own_figures_are_in_its_recipe() -> None:
    recipe = recipes.weak_chain_recipe("weak-chain-ikem")
    assert [config.name for config in recipe.networks] == ["unet", "unetplusplus"]
    assert all(config.dropout == 0.3 for config in recipe.networks)
    fit = recipe.nuclei
    assert (fit.epochs, fit.learning_rate, fit.patches.patch_px, fit.patches.factors) == (30, 1e-4, 512, (1, 2, 4))
    assert (recipe.teacher.encoder, recipe.student.encoder) == ("resnet18_patch32", "rccnet")
    assert recipe.teacher.fit.epochs == recipe.student.fit.epochs == 30
    assert (recipe.crop.side_px, recipe.crop.framing, recipe.fractions) == (32, "window", (0.7, 0.15, 0.15))
    tuning = recipe.tuning
    assert tuning.counts == (100, 250, 400, 550, 750, 850, 1000, 1250, 1500, 1750, 1900)
    assert (min(tuning.learning_rates), max(tuning.learning_rates)) == (5e-5, 1e-3)
    assert (min(tuning.dropouts), max(tuning.dropouts)) == (0.0, 0.5)


def _expert(counts: tuple[int, ...]) -> ExpertNuclei:
    classes = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    names = np.array([f"i{k}" for k in range(len(classes))])
    index = CellIndex("e", ("a", "b", BACKGROUND), names, np.ones(len(classes), np.int32), classes, names)
    return ExpertNuclei(None, index, {}, Path(), (0, 1))  # pyright: ignore[reportArgumentType]


def test_a_larger_count_holds_the_nuclei_of_a_smaller_one_and_as_many_of_each_class() -> None:
    expert = _expert((50, 20))
    pool = np.arange(70, dtype=np.int64)
    small, large = (drawn_rows(expert, pool, count, validation_share=0.2, seed=0) for count in (10, 20))
    for drawn, count in ((small, 10), (large, 20)):
        assert expert.index.counts(np.concatenate(list(drawn.values()))) == {"a": count, "b": count, BACKGROUND: 0}
        assert len(drawn["validation"]) == 2 * count * 0.2
        assert not set(drawn["train"].tolist()) & set(drawn["validation"].tolist())
    assert set(np.concatenate(list(small.values())).tolist()) <= set(np.concatenate(list(large.values())).tolist())


def test_counts_that_the_rarest_class_cannot_give_are_left_out_or_named() -> None:
    expert = _expert((50, 20))
    pool = np.arange(70, dtype=np.int64)
    assert possible_counts(expert, pool, (30, 20, 5)) == (5, 20)
    with pytest.raises(ValueError, match=r"needs more: there are 20 of 'b'"):
        possible_counts(expert, pool, (30,))


def test_scores_are_weighted_by_class_as_in_the_paper() -> None:
    # Class 0: 3 nuclei, 2 called so; class 1: 1 nucleus, called so, as is one of class 0.
    found = score(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    assert found.accuracy == found.recall == pytest.approx(0.75)
    assert found.precision == pytest.approx(0.75 * 1.0 + 0.25 * 0.5)
    assert found.f1 == pytest.approx(0.75 * 0.8 + 0.25 * 2 / 3)
    with pytest.raises(ValueError, match="no nucleus to score"):
        score(np.zeros(0, np.int64), np.zeros(0, np.int64))
