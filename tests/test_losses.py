"""Losses of the training stages, each by hand or against an independent computation."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cellmill_schemas.ontology import get_ontology
from cellmill_training.losses import (
    CellLoss,
    CellVitLoss,
    DistillationConfig,
    DistillationLoss,
    Loss,
    Targets,
    TeacherLoss,
    TeacherLossConfig,
    allowed_planes,
    inverse_frequency_weights,
)
from cellmill_training.losses.cellvit_loss import dice_loss, focal_tversky, gradient_error
from cellmill_training.losses.distillation import soft_divergence, taught_flow_error
from cellmill_training.losses.smoothing import smoothed_cross_entropy, smoothing_kernel, spectral_decoupling
from cellmill_training.losses.teacher_loss import focal_loss

ALL = (1 << 8) - 1
CLASSES = torch.ones(7)


def _targets(bits: Tensor, *, hv: bool = False) -> Targets:
    batch, height, width = bits.shape
    return Targets(
        allowed_bits=bits,
        flow=torch.zeros(batch, 2, height, width),
        flow_known=torch.zeros(batch, height, width, dtype=torch.bool),
        hv=torch.zeros(batch, 2, height, width) if hv else None,
    )


def _one_class(side: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    classes = torch.randint(0, 8, (2, side, side), generator=torch.Generator().manual_seed(seed))
    return classes, 1 << classes


def test_a_pixels_own_label_has_half_the_weight_and_neighbours_share_the_rest_by_distance() -> None:
    kernel = smoothing_kernel(3, 1.0)
    near, far = math.exp(-0.5), math.exp(-1.0)
    ring = 4 * near + 4 * far
    assert float(kernel.sum()) == pytest.approx(1.0)
    assert float(kernel[1, 1]) == pytest.approx(0.5)
    assert float(kernel[0, 1]) == pytest.approx(0.5 * near / ring)
    assert float(kernel[2, 2]) == pytest.approx(0.5 * far / ring)
    with pytest.raises(ValueError, match="odd"):
        smoothing_kernel(4)


def test_smoothed_cross_entropy_is_cross_entropy_against_smoothed_one_hot_labels() -> None:
    classes, bits = _one_class()
    logits = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(1))
    kernel = smoothing_kernel()
    # Independently: one-hot labels, edges repeated, blurred plane by plane.
    one_hot = functional.one_hot(classes, 8).permute(0, 3, 1, 2).float()
    padded = functional.pad(one_hot, (1, 1, 1, 1), mode="replicate")
    soft = functional.conv2d(padded.flatten(0, 1).unsqueeze(1), kernel.view(1, 1, 3, 3)).view_as(one_hot)
    expected = -(soft * functional.log_softmax(logits, dim=1)).sum(dim=1)
    torch.testing.assert_close(smoothed_cross_entropy(logits, bits, kernel), expected)


def test_smoothing_changes_nothing_where_all_labels_agree() -> None:
    bits = torch.full((1, 4, 4), 1 << 3)
    logits = torch.randn(1, 8, 4, 4)
    expected = functional.cross_entropy(logits, torch.full((1, 4, 4), 3), reduction="none")
    torch.testing.assert_close(smoothed_cross_entropy(logits, bits, smoothing_kernel()), expected)


def test_a_neighbour_of_which_nothing_is_known_adds_nothing() -> None:
    bits = torch.tensor([[[1 << 3, ALL]]])  # one row of two pixels
    logits = torch.zeros(1, 8, 1, 2)
    kernel = smoothing_kernel()
    # Of the unknown pixel's window, the left column shows class 3; of the known one's, two columns do.
    right = float(kernel[:, 0].sum())
    expected = torch.tensor([[[(1.0 - right) * math.log(8), right * math.log(8)]]])
    torch.testing.assert_close(smoothed_cross_entropy(logits, bits, kernel), expected)


def test_spectral_decoupling_is_half_the_mean_squared_length_of_known_logits() -> None:
    logits = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    assert float(spectral_decoupling(logits, torch.tensor([[[True, False]]]))) == pytest.approx(12.5)


def test_focal_loss_by_hand() -> None:
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    allowed = torch.tensor([[[[False, False]], [[True, True]], [[False, True]]]])
    weights = torch.tensor([1.0, 2.0, 6.0])
    got = focal_loss(logits, allowed, weights, gamma=2.0)[0, 0]
    expected = [2.0 * 0.8**2 * -math.log(0.2), 4.0 * 0.7**2 * -math.log(0.3)]
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_certain_pixel_has_a_finite_focal_gradient() -> None:
    logits = torch.tensor([80.0, -80.0]).view(1, 2, 1, 1).requires_grad_()
    focal_loss(logits, torch.tensor([[[[True]], [[False]]]]), torch.ones(2), gamma=2.0).sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_class_weights_are_inverse_to_counts_and_average_one_over_nuclei() -> None:
    ontology = get_ontology("pannuke5")
    counts = dict(zip(ontology.names, (600, 200, 100, 60, 40), strict=True))
    weights = inverse_frequency_weights(counts, ontology, most=100.0)
    assert [round(float(weight), 4) for weight in weights] == [round(1000 / 5 / n, 4) for n in counts.values()]
    average = sum(float(w) * n for w, n in zip(weights, counts.values(), strict=True)) / 1000
    assert average == pytest.approx(1.0)
    assert float(inverse_frequency_weights({**counts, ontology.names[-1]: 1}, ontology).max()) == 10.0


def test_a_class_without_nuclei_is_named() -> None:
    ontology = get_ontology("refined7")
    counts = {name: 5 for name in ontology.names if name != "macrophage"}
    with pytest.raises(ValueError, match="no nucleus of macrophage"):
        inverse_frequency_weights(counts, ontology)


def test_the_teachers_loss_is_the_sum_of_its_terms_by_hand() -> None:
    config = TeacherLossConfig(
        cross_entropy_weight=2.0, focal_weight=3.0, flow_weight=5.0, decoupling=0.1, focal_gamma=2.0
    )
    outputs = torch.zeros(1, 10, 2, 2)
    outputs[:, 2:] = 1.0  # all classes 1/8, squared length 8
    targets = replace(
        _targets(torch.full((1, 2, 2), 1 << 1)),
        flow=torch.ones(1, 2, 2, 2),
        flow_known=torch.ones(1, 2, 2, dtype=torch.bool),
    )
    parts = TeacherLoss(2.0 * CLASSES, config)(outputs, targets)
    entropy, focal = math.log(8), 2.0 * (7 / 8) ** 2 * math.log(8)
    flow = 8.0 / (8.0 + 100.0)
    assert float(parts.terms["cross_entropy"]) == pytest.approx(entropy, rel=1e-5)
    assert float(parts.terms["decoupling"]) == pytest.approx(4.0)
    assert float(parts.terms["focal"]) == pytest.approx(focal, rel=1e-5)
    assert float(parts.terms["flow"]) == pytest.approx(flow, rel=1e-5)
    assert float(parts.total) == pytest.approx(2.0 * (entropy + 0.1 * 4.0) + 3.0 * focal + 5.0 * flow, rel=1e-5)


@pytest.mark.parametrize(
    "loss", [TeacherLoss(CLASSES), CellVitLoss(), CellLoss(CLASSES)], ids=lambda loss: type(loss).__name__
)
def test_unknown_pixels_push_no_loss(loss: Loss) -> None:
    channels = 12 if isinstance(loss, CellVitLoss) else 10
    outputs = torch.randn(1, channels, 6, 6, requires_grad=True)
    loss(outputs, _targets(torch.full((1, 6, 6), ALL), hv=True)).total.backward()
    assert outputs.grad is not None
    assert float(outputs.grad.abs().max()) < 1e-7


def test_open_types_push_the_student_towards_none_of_them() -> None:
    """Neoplastic or epithelial: both logits get the same push, whichever they are."""
    outputs = torch.zeros(1, 10, 6, 6, requires_grad=True)
    bits = torch.full((1, 6, 6), 1 << 1 | 1 << 5)
    TeacherLoss(CLASSES, TeacherLossConfig(decoupling=0.0))(outputs, _targets(bits)).total.backward()
    assert outputs.grad is not None
    pushed = outputs.grad[0, 2:, 0, 0]
    assert float(pushed[1]) == pytest.approx(float(pushed[5]))
    assert float(pushed[1]) < 0 < float(pushed[0])


def test_soft_divergence_by_hand_and_at_high_temperature() -> None:
    teacher = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1)
    student = torch.tensor([0.0, 0.0]).view(1, 2, 1, 1)
    temperature = 2.0
    p = math.exp(1.0) / (math.exp(1.0) + 1.0)
    expected = temperature**2 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert float(soft_divergence(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)
    # Hinton et al. 2015, equation 4: for high T it is half the mean squared distance of zero-meaned logits over K.
    far = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    centred = [logits - logits.mean(dim=1, keepdim=True) for logits in far]
    limit = float(((centred[0] - centred[1]) ** 2).sum(dim=1).mean() / (2 * 4))
    assert float(soft_divergence(*(x.double() for x in far), 1e4)) == pytest.approx(limit, rel=1e-3)


def test_a_student_that_says_what_its_teacher_says_has_only_the_hard_loss_left() -> None:
    hard = TeacherLoss(CLASSES)
    outputs = torch.randn(2, 10, 5, 5)
    targets = _targets(_one_class()[1]).taught(outputs.clone())
    parts = DistillationLoss(hard)(outputs, targets)
    assert float(parts.terms["soft"]) == pytest.approx(0.0, abs=1e-5)
    assert float(parts.terms["taught_flow"]) == 0.0
    assert float(parts.total) == pytest.approx(0.7 * float(hard(outputs, targets).total), rel=1e-4)


@pytest.mark.parametrize(
    ("reading", "soft_weight", "hard_weight"), [("alpha_soft", 0.3, 0.7), ("alpha_hard", 0.7, 0.3)]
)
def test_the_reading_says_which_coefficient_weighs_which_loss(
    reading: str, soft_weight: float, hard_weight: float
) -> None:
    hard = TeacherLoss(CLASSES)
    config = DistillationConfig(temperature=14.0, reading=reading, flow_weight=2.0)  # pyright: ignore[reportArgumentType]
    outputs, teacher = torch.randn(2, 10, 5, 5), torch.randn(2, 10, 5, 5)
    targets = _targets(_one_class()[1]).taught(teacher)
    parts = DistillationLoss(hard, config)(outputs, targets)
    soft = float(soft_divergence(outputs[:, 2:], teacher[:, 2:], 14.0))
    flow = float(taught_flow_error(outputs, teacher))
    expected = soft_weight * (soft + 2.0 * flow) + hard_weight * float(hard(outputs, targets).total)
    assert float(parts.total) == pytest.approx(expected, rel=1e-5)


def test_the_teachers_flows_count_where_the_teacher_sees_a_nucleus() -> None:
    teacher = torch.zeros(1, 4, 1, 2)
    teacher[0, 2, 0, 0] = 50.0  # background for certain
    teacher[0, 3, 0, 1] = 50.0  # a nucleus for certain
    student = teacher.clone()
    student[0, :2, 0, 0] = 9.0
    assert float(taught_flow_error(student, teacher)) == pytest.approx(0.0)
    student[0, :2, 0, 1] = 3.0
    assert float(taught_flow_error(student, teacher)) == pytest.approx(9.0)


def test_distillation_refuses_a_teacher_of_another_ontology_and_none() -> None:
    targets = _targets(_one_class()[1])
    with pytest.raises(ValueError, match="one ontology"):
        DistillationLoss(TeacherLoss(CLASSES))(torch.zeros(2, 10, 5, 5), targets.taught(torch.zeros(2, 8, 5, 5)))
    with pytest.raises(ValueError, match="got none"):
        DistillationLoss(TeacherLoss(CLASSES))(torch.zeros(2, 10, 5, 5), targets)
    with pytest.raises(ValueError, match="temperature above 0"):
        DistillationConfig(temperature=0.0)


def test_dice_and_focal_tversky_by_hand() -> None:
    probabilities = torch.tensor([[[[0.8, 0.4, 0.1]]]])
    labels = torch.tensor([[[[1.0, 1.0, 0.0]]]])
    known = torch.ones(1, 1, 3, dtype=torch.bool)
    right, invented, missed = 1.2, 0.1, 0.8
    assert float(dice_loss(probabilities, labels, known, smooth=0.0)) == pytest.approx(1 - 2.4 / 3.3, rel=1e-5)
    index = right / (right + 0.7 * missed + 0.3 * invented)
    assert float(focal_tversky(probabilities, labels, known)) == pytest.approx((1 - index) ** (4 / 3), rel=1e-4)
    # The pixel that is not known counts for neither.
    known[0, 0, 1] = False
    assert float(dice_loss(probabilities, labels, known, smooth=0.0)) == pytest.approx(1 - 1.6 / 1.9, rel=1e-5)


def test_gradient_error_is_zero_for_a_constant_offset_and_right_for_a_slope() -> None:
    inside = torch.zeros(1, 9, 9, dtype=torch.bool)
    inside[0, 4, 4] = True
    slope = torch.arange(9, dtype=torch.float32).expand(1, 2, 9, 9)  # both channels rise by 1 a pixel along x
    assert float(gradient_error(torch.full((1, 2, 9, 9), 0.5), torch.zeros(1, 2, 9, 9), inside)) < 1e-10
    # d/dx of the slope is the sum of x^2 / (x^2 + y^2) over the 5 x 5 window: 12 by symmetry in x and y; d/dy is 0.
    expected = 12.0**2 / 2.0
    assert float(gradient_error(slope, torch.zeros_like(slope), inside)) == pytest.approx(expected, rel=1e-5)


def test_a_perfect_cellvit_output_has_next_to_no_loss() -> None:
    classes, bits = _one_class(side=16)
    distances = torch.rand(2, 2, 16, 16) * 2 - 1
    inside = classes > 0
    distances = distances * inside.unsqueeze(1)
    outputs = torch.zeros(2, 12, 16, 16)
    outputs[:, :2] = 40.0 * functional.one_hot(inside.long(), 2).permute(0, 3, 1, 2)
    outputs[:, 2:4] = distances
    outputs[:, 4:] = 40.0 * functional.one_hot(classes, 8).permute(0, 3, 1, 2)
    targets = replace(_targets(bits), hv=distances, flow_known=inside)
    assert float(CellVitLoss()(outputs, targets).total) < 1e-3
    worse = outputs.clone()
    worse[:, 2:4] = 0.0
    assert float(CellVitLoss()(worse, targets).total) > 0.5
    with pytest.raises(ValueError, match="distances"):
        CellVitLoss()(outputs, replace(targets, hv=None))


def test_open_types_leave_cellvits_nuclei_and_respect_its_types() -> None:
    bits = torch.full((1, 8, 8), 1 << 1 | 1 << 5)
    outputs = torch.zeros(1, 12, 8, 8, requires_grad=True)
    CellVitLoss()(outputs, _targets(bits, hv=True)).total.backward()
    assert outputs.grad is not None
    nucleus, types = outputs.grad[0, :2, 0, 0], outputs.grad[0, 4:, 0, 0]
    assert float(nucleus[1]) < 0 < float(nucleus[0])
    assert float(types[1]) == pytest.approx(float(types[5]))
    assert float(types[1]) < 0 < float(types[2])
    assert bool(allowed_planes(bits, 8)[0, 5].all())
