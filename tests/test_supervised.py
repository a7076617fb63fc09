"""Training on a labelled data set: crops by step, known features, resumes, validation, pretraining, recipes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import labelled_image, small_dataset

from cellmill.models.feature_cache import FeatureCache
from cellmill.models.loading import load_model
from cellmill.models.networks import TokenNetwork, build_model
from cellmill_schemas.ontology import get_ontology
from cellmill_schemas.ontology_mappings import get_mapping
from cellmill_training.datasets.store import LabelledDataset, write_dataset
from cellmill_training.distill.comparison import Outcome, as_markdown, verdict
from cellmill_training.distill.job import DistillStudentSettings, runs_of
from cellmill_training.distill.recipe import ALONE, DistillRecipe, student_config
from cellmill_training.distill.teaching import Teacher, taught
from cellmill_training.loop import LossIsNotFiniteError, learnt_state
from cellmill_training.losses import DistillationConfig, DistillationLoss, LossParts, Targets, TeacherLoss
from cellmill_training.mixture import Batch
from cellmill_training.pretrain.autoencoder import AutoencoderConfig, MaskedAutoencoder
from cellmill_training.pretrain.views import UnlabelledImage, drawn_views
from cellmill_training.recipes import DISTILL_RECIPES, TEACHER_RECIPES, teacher_recipe
from cellmill_training.run import RunPlace
from cellmill_training.supervised.crops import LabelledCrops
from cellmill_training.supervised.data import open_training_set
from cellmill_training.supervised.features import DecodedFeatures, with_features
from cellmill_training.supervised.history import append_history, read_history, trim_history
from cellmill_training.supervised.overlays import drawn
from cellmill_training.supervised.run import fit_network
from cellmill_training.supervised.validation import Validation
from cellmill_training.teacher.job import TrainTeacherSettings, main
from cellmill_training.teacher.recipe import OwnEncoder, TeacherRecipe, loss_of, network_config

REFINED7 = get_ontology("refined7")
SMALLEST = OwnEncoder(
    "smallest",
    "vit_tiny_patch16_224",
    (("depth", 4), ("embed_dim", 16), ("img_size", 64), ("num_heads", 2), ("patch_size", 8)),
)


def _recipe() -> TeacherRecipe:
    """The demo's teacher, smaller still."""
    base = teacher_recipe("teacher-demo")
    crops = replace(base.crops, augment=replace(base.crops.augment, crop_px=64), batch_size=2)
    return replace(base, encoder=SMALLEST, decoder_channels=(4, 8, 8), crops=crops, pretrained=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    return small_dataset(tmp_path_factory.mktemp("data") / "set", num_images=4, side_px=128)


def _crops(
    dataset: LabelledDataset, recipe: TeacherRecipe, *, rank: int = 0, world: int = 1, threads: int = 1
) -> LabelledCrops:
    return LabelledCrops(
        dataset,
        dataset.image_ids("train"),
        recipe.crops_on_grid,
        mapping=get_mapping(dataset.ontology, dataset.ontology),
        rank=rank,
        world=world,
        threads=threads,
    )


def test_a_batch_is_a_function_of_the_step_alone(dataset: LabelledDataset) -> None:
    crops = _crops(dataset, _recipe())
    straight = crops.batches(0, prefetch=0)
    wanted = [next(straight) for _ in range(4)]
    resumed = _crops(dataset, _recipe(), threads=2).batches(2, prefetch=2)
    for batch in wanted[2:]:
        again = next(resumed)
        assert torch.equal(again.images, batch.images)
        assert torch.equal(again.targets.allowed_bits, batch.targets.allowed_bits)


def test_workers_share_an_epoch_and_an_epoch_shows_every_crop(dataset: LabelledDataset) -> None:
    recipe = _recipe()
    alone = _crops(dataset, recipe)
    assert alone.num_crops == 3 * 4  # 128 px images, 64 px crops
    pair = [_crops(dataset, recipe, rank=rank, world=2) for rank in range(2)]
    seen: list[tuple[int, int]] = []
    for step in range(pair[0].steps_per_epoch):
        for worker in pair:
            seen += worker._places(step)  # pyright: ignore[reportPrivateUsage]
    assert {item for _, item in seen} == set(range(12))
    assert len(seen) == 12


def test_fixed_variants_come_again_and_fresh_crops_do_not(dataset: LabelledDataset) -> None:
    def pictures(recipe: TeacherRecipe, epoch: int) -> set[bytes]:
        crops = _crops(dataset, recipe)
        steps = range(epoch * crops.steps_per_epoch, (epoch + 1) * crops.steps_per_epoch)
        return {image.numpy().tobytes() for step in steps for image in crops.batch(step).images}

    fresh = _recipe()
    fixed = replace(fresh, crops=replace(fresh.crops, fixed_variants=1))
    assert pictures(fixed, 0) == pictures(fixed, 1)
    assert not pictures(fresh, 0) & pictures(fresh, 1)


def test_memory_for_images_is_bounded(dataset: LabelledDataset) -> None:
    recipe = _recipe()
    crops = _crops(dataset, replace(recipe, crops=replace(recipe.crops, memory_bytes=1)))
    for step in range(crops.steps_per_epoch):
        crops.batch(step)
    assert len(crops._samples) == 1  # pyright: ignore[reportPrivateUsage]


def _train(dataset: LabelledDataset, folder: Path, *, steps: int, seed: int = 0) -> Path:
    recipe = _recipe()
    torch.manual_seed(seed)
    config = network_config(recipe, REFINED7)
    crops = _crops(dataset, recipe)
    # All rates follow the longer run's budget, as they do when the same command is given again.
    loop = replace(recipe.loop_of(crops.steps_per_epoch, max_steps=6), ema_decay=0.5, warmup_steps=1)
    if steps < 6:

        def ended(first: int) -> Iterator[Batch]:
            for number, batch in enumerate(crops.batches(first, prefetch=0), start=first):
                if number == steps:
                    raise KeyboardInterrupt  # the machine goes away
                yield batch

        batches = ended
    else:
        batches = lambda first: crops.batches(first, prefetch=0)  # noqa: E731
    with_checkpoints = replace(loop, checkpoint_steps=1)
    place = RunPlace(folder)
    try:
        fit_network(
            build_model(config), loss=TeacherLoss(torch.ones(7)), batches=batches, loop=with_checkpoints, place=place
        )
    except KeyboardInterrupt:
        assert steps < 6
    return place.model


def test_a_run_that_was_cut_off_ends_with_the_weights_of_one_that_was_not(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    straight = load_model(_train(dataset, tmp_path / "straight", steps=6))
    _train(dataset, tmp_path / "resumed", steps=3)
    assert not (tmp_path / "resumed" / "model").exists()
    # A fresh process builds other first weights if it likes: the frozen encoder must be the same, which is in no
    # checkpoint.
    resumed = load_model(_train(dataset, tmp_path / "resumed", steps=6))
    assert straight.digest == resumed.digest
    steps = [line["step"] for line in read_history(tmp_path / "resumed" / "history.jsonl")]
    assert steps == [6]


def test_frozen_weights_are_in_no_checkpoint_and_in_the_model(dataset: LabelledDataset, tmp_path: Path) -> None:
    model = load_model(_train(dataset, tmp_path, steps=6))
    learnt = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"]
    assert not any(name.startswith("encoder.") for name in learnt)
    assert any(name.startswith("encoder.") for name in model.weights)
    torch.manual_seed(0)
    first = build_model(network_config(_recipe(), REFINED7)).state_dict()
    same = [np.array_equal(model.weights[name], value.numpy()) for name, value in first.items() if "encoder" in name]
    assert all(same)


def test_kept_features_give_the_loss_that_the_encoder_gives(dataset: LabelledDataset, tmp_path: Path) -> None:
    recipe = _recipe()
    network = build_model(network_config(recipe, REFINED7)).eval()
    assert isinstance(network, TokenNetwork)
    cache = FeatureCache(tmp_path, network)
    batches = with_features(_crops(dataset, recipe).batches(0, prefetch=0), cache)
    batch = next(batches)
    images = batch.images.permute(0, 3, 1, 2).float()
    with torch.no_grad():
        kept, fresh = DecodedFeatures(network)(images, *batch.features), network(images)
    torch.testing.assert_close(kept, fresh, atol=2e-2, rtol=2e-2)  # tokens are kept in float16
    assert cache.num_computed == 2


def test_class_counts_are_those_of_the_training_images_and_an_empty_class_is_refused(tmp_path: Path) -> None:
    types = tuple(name for name in REFINED7.names if name != "dead")
    small_dataset(tmp_path / "set", num_images=3, side_px=128, types=types)
    training_set = open_training_set(str(tmp_path / "set"))
    wanted = sum(training_set.dataset.read(name).num_cells for name in training_set.train_ids)
    assert sum(training_set.class_counts().values()) == wanted
    with pytest.raises(ValueError, match="no nucleus of dead"):
        loss_of(_recipe(), network_config(_recipe(), REFINED7), training_set)


def test_folds_deal_out_images_as_in_table_2(dataset: LabelledDataset) -> None:
    chosen = open_training_set(dataset.store.url, train_folds=("fold1",), validation_folds=("fold2",))
    assert (chosen.train_ids, chosen.validation_ids) == (("image0", "image3"), ("image1",))
    with pytest.raises(ValueError, match="has no fold 'fold9'; its folds are fold1, fold2, fold3"):
        open_training_set(dataset.store.url, train_folds=("fold9",), validation_folds=("fold2",))
    with pytest.raises(ValueError, match="not both"):
        open_training_set(dataset.store.url, train_folds=("fold1",), validation_folds=("fold1",))


def test_a_wrong_ontology_and_missing_weights_are_refused_before_any_worker_starts(
    dataset: LabelledDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CELLMILL_ENCODERS", raising=False)
    common = ["--data", dataset.store.url, "--out", str(tmp_path / "run"), "--recipe", "teacher-demo"]
    assert main([*common, "--ontology", "consep7"]) == 2
    assert "no mapping from 'refined7' to 'consep7'" in capsys.readouterr().err
    assert main(common) == 2
    assert "CELLMILL_ENCODERS" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--fixed-variants"):
        TrainTeacherSettings(data="d", out="o", cache_features="c")
    with pytest.raises(ValueError, match="--recipe must be one of"):
        TrainTeacherSettings(data="d", out="o", recipe="none")


def test_a_loss_that_is_not_finite_ends_the_run_and_says_so(dataset: LabelledDataset, tmp_path: Path) -> None:
    def broken(outputs: torch.Tensor, targets: Targets) -> LossParts:
        return LossParts(outputs.sum() * float("nan"), {})

    recipe = _recipe()
    crops = _crops(dataset, recipe)
    network = build_model(network_config(recipe, REFINED7))
    with pytest.raises(LossIsNotFiniteError, match="Lower learning_rate"):
        fit_network(
            network,
            loss=broken,
            batches=lambda first: crops.batches(first, prefetch=0),
            loop=recipe.loop_of(crops.steps_per_epoch),
            place=RunPlace(tmp_path),
        )


def test_a_network_that_knows_the_truth_validates_at_one(tmp_path: Path) -> None:
    """Validation decodes, votes and counts: fed with the reference as maps, it finds nearly every cell and type."""
    image = labelled_image(0, side_px=192)
    dataset = write_dataset(tmp_path, [image], ontology=REFINED7, splits={"slide0": "validation"})
    validation = Validation(dataset, ["image0"], mapping=get_mapping(REFINED7, REFINED7))

    class Knowing(torch.nn.Module):
        config = student_config(DistillRecipe(architecture="lite"), load_model("lite").config)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            from cellmill.instances.targets import masks_to_flows

            height, width = batch.shape[-2:]
            outputs = torch.zeros(1, 10, height, width)
            outputs[:, 2] = 9.0
            at = slice(32, 32 + 192)
            types = image.type_map(REFINED7).astype(np.int64)
            outputs[0, 2:, at, at] = 9.0 * torch.nn.functional.one_hot(torch.from_numpy(types), 8).permute(2, 0, 1)
            outputs[0, :2, at, at] = torch.from_numpy(masks_to_flows(image.instances))
            return outputs

    figures, examples = validation.look(Knowing(), torch.device("cpu"), num_examples=1)  # pyright: ignore[reportArgumentType]
    assert figures["val_dq"] > 0.95
    assert figures["val_mean_f1"] > 0.95
    picture = drawn(examples[0], REFINED7)
    assert picture.shape == (3 * 192, 2 * 3 * 192 + 8, 3)
    color = np.array(REFINED7.classes[0].color_rgb)
    assert (picture[:, :576] == color).all(axis=2).any()


def test_history_keeps_one_line_a_step_over_resumes(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for step in (10, 20, 30):
        append_history(path, step, {"val_pq": step / 100})
    path.write_text(path.read_text() + '{"step": 4', encoding="utf-8")  # cut off while it was written
    assert [line["step"] for line in read_history(path)] == [10, 20, 30]
    trim_history(path, 20)
    append_history(path, 30, {"val_pq": 0.9})
    assert [json.loads(line)["val_pq"] for line in path.read_text().splitlines()] == [0.1, 0.2, 0.9]


def test_an_autoencoder_paints_only_what_was_hidden_and_learns_to(tmp_path: Path) -> None:
    config = network_config(_recipe(), REFINED7)
    torch.manual_seed(0)
    model = MaskedAutoencoder(config, AutoencoderConfig(decoder_width=16, decoder_blocks=1), side_px=64)
    image = UnlabelledImage(labelled_image(0, side_px=192).image, 0.5)
    views = drawn_views([image], _recipe().crops_on_grid.augment, batch_size=8, seed=0)
    images = next(views).images.permute(0, 3, 1, 2).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors: list[float] = []
    for _ in range(60):
        error = model(images).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    # A patch is normalised, so that its mean colour alone has an error of about 1.
    assert errors[0] > 0.9
    assert np.mean(errors[-5:]) < 0.9 * np.mean(errors[:5])
    names = learnt_state(model)
    assert any(name.startswith("encoder.body.blocks.0") for name in names)


def test_the_teacher_is_asked_on_the_students_own_pixels_and_remembers(tmp_path: Path) -> None:
    model = load_model("lite")
    teacher = Teacher(model, student_mpp=0.5, cache_folder=tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    with torch.no_grad():
        wanted = model.build()(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(teacher.says(images), wanted, atol=2e-2, rtol=1e-2)
    again = Teacher(model, student_mpp=0.5, cache_folder=tmp_path)
    assert torch.equal(again.says(images), teacher.says(images))
    assert (teacher.num_computed, again.num_computed) == (2, 0)
    # A finer teacher is shown the crop enlarged, and its maps come back at the student's size.
    finer = Teacher(model, student_mpp=1.0)
    assert finer.says(images).shape == wanted.shape
    with pytest.raises(ValueError, match="multiples of 32"):
        Teacher(model, student_mpp=0.5 * 0.7).says(images)


def test_distillation_pulls_a_student_towards_its_teacher(dataset: LabelledDataset, tmp_path: Path) -> None:
    model = load_model("lite")
    torch.manual_seed(0)
    student = build_model(student_config(DistillRecipe(architecture="lite"), model.config))
    recipe = _recipe()
    crops = _crops(dataset, recipe)
    batch = next(taught(crops.batches(0, prefetch=0), Teacher(model, student_mpp=0.5)))
    loss = DistillationLoss(TeacherLoss(torch.ones(7)), DistillationConfig(alpha=1.0, beta=0.0))
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    softs: list[float] = []
    for _ in range(12):
        parts = loss(student(batch.images.permute(0, 3, 1, 2).float()), batch.targets)
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        softs.append(float(parts.terms["soft"].detach()))
    assert softs[-1] < 0.9 * softs[0]


def test_a_sweep_is_every_temperature_in_both_readings_and_one_student_alone() -> None:
    settings = DistillStudentSettings(
        data="d", teacher="lite", out="o", sweep=("1", "14"), both_readings=True, compare=True
    )
    names = [run.name for run in runs_of(settings)]
    assert names == ["t1-alpha_soft", "t1-alpha_hard", "t14-alpha_soft", "t14-alpha_hard", ALONE]
    default = runs_of(DistillStudentSettings(data="d", teacher="lite", out="o"))
    assert [run.name for run in default] == ["t14-alpha_soft"]
    assert default[0].distillation is not None
    assert (default[0].distillation.soft_weight, default[0].distillation.hard_weight) == (0.3, 0.7)
    with pytest.raises(ValueError, match="temperatures"):
        DistillStudentSettings(data="d", teacher="lite", out="o", sweep=("warm",))


def test_a_teacher_of_the_other_family_is_refused() -> None:
    config = network_config(replace(_recipe(), architecture="cellvit"), REFINED7)
    with pytest.raises(ValueError, match="hv family"):
        student_config(DistillRecipe(), config)


def test_the_comparison_says_win_or_lose() -> None:
    better = Outcome("t14-alpha_soft", {"val_mean_pq": 0.5, "val_pq": 0.6})
    alone = Outcome(ALONE, {"val_mean_pq": 0.4})
    assert "is better than" in verdict([alone, better])
    assert "is not better than" in verdict([Outcome("t1-alpha_soft", {"val_mean_pq": 0.4}), alone])
    assert not verdict([better])
    assert as_markdown([alone, better]).splitlines()[2].startswith("| t14-alpha_soft | 0.500 |")


@pytest.mark.parametrize("name", TEACHER_RECIPES)
def test_every_teacher_recipe_names_a_network_that_can_be_built(name: str) -> None:
    config = network_config(TEACHER_RECIPES[name], get_ontology("pannuke5"))
    with torch.device("meta"):
        network = build_model(config)
        side = TEACHER_RECIPES[name].crops.augment.crop_px
        assert network(torch.zeros(1, 3, side, side)).shape == (1, config.num_outputs, side, side)


@pytest.mark.parametrize("name", DISTILL_RECIPES)
def test_every_student_recipe_names_a_network_that_can_be_built(name: str) -> None:
    config = student_config(DISTILL_RECIPES[name], load_model("lite").config)
    side = DISTILL_RECIPES[name].crops.augment.crop_px
    with torch.device("meta"):
        assert build_model(config)(torch.zeros(1, 3, side, side)).shape[-2:] == (side, side)
