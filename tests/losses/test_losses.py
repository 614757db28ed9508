"""The losses, in four parts: reference parity, gradients, properties, dtypes."""

from __future__ import annotations

import math
import re

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teachonce.errors import ConfigError
from teachonce.losses.losses import average_probs, kd_loss, kd_loss_from_probs, label_loss, label_probs, soften
from tests.support import reference

# float32 sums of C terms of size |x|: relative error about C * 2^-24 of the largest; 1e-5 of max(1, |x|) is far above.
RELATIVE = 1e-5

temperatures = st.sampled_from([0.5, 1.0, 2.0, 4.0, 20.0])


@st.composite
def logit_pairs(draw: st.DrawFn, has_missing: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(student, teacher) logits [B, C], float32, with ties; the teacher's with -inf columns where asked."""
    batch, classes = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    scale = draw(st.sampled_from([0.0, 1.0, 10.0, 100.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    student, teacher = np.round(rng.normal(size=(2, batch, classes)) * scale, 1).astype(np.float32)
    if has_missing and classes > 1:
        missing = rng.permutation(classes)[: draw(st.integers(1, classes - 1))]
        teacher[:, missing] = -np.inf
    return torch.from_numpy(student), torch.from_numpy(teacher)


def close(found: torch.Tensor, expected: float, scale: float = 1.0) -> bool:
    return math.isclose(float(found), expected, rel_tol=RELATIVE, abs_tol=RELATIVE * max(scale, 1.0))


# 1. Reference parity


@given(logit_pairs(), temperatures)
def test_kd_loss_is_the_plain_loop(pair: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    student, teacher = pair
    expected = reference.kd_loss(student.tolist(), teacher.tolist(), temperature)
    assert close(kd_loss(student, teacher, temperature), expected, temperature * 100)


@given(logit_pairs(has_missing=True), temperatures)
def test_kd_loss_with_classes_that_the_teacher_lacks(
    pair: tuple[torch.Tensor, torch.Tensor], temperature: float
) -> None:
    student, teacher = pair
    expected = reference.kd_loss(student.tolist(), teacher.tolist(), temperature)
    assert close(kd_loss(student, teacher, temperature), expected, temperature * 100)
    assert (soften(teacher, temperature)[torch.isinf(teacher)] == 0).all()


@given(logit_pairs(), st.sampled_from([0.0, 0.1, 0.9]), st.integers(0, 2**32 - 1))
def test_label_loss_is_the_plain_loop(
    pair: tuple[torch.Tensor, torch.Tensor], smoothing: float, label_seed: int
) -> None:
    student, _ = pair
    labels = torch.from_numpy(np.random.default_rng(label_seed).integers(0, student.shape[1], len(student)))
    one_hot = label_probs(labels, student.shape[1])
    expected = reference.label_loss(student.tolist(), one_hot.tolist(), smoothing)
    assert close(label_loss(student, labels, smoothing), expected, 100)
    assert close(label_loss(student, one_hot, smoothing), expected, 100)


@given(logit_pairs(), temperatures, st.sampled_from([0.0, 0.1]), st.integers(0, 2**32 - 1))
def test_weighted_rows_are_the_plain_loop(
    pair: tuple[torch.Tensor, torch.Tensor], temperature: float, smoothing: float, seed: int
) -> None:
    student, teacher = pair
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 8, len(student)).astype(np.float32)
    row_weights = torch.from_numpy(weights)
    labels = torch.from_numpy(rng.integers(0, student.shape[1], len(student)))
    one_hot = label_probs(labels, student.shape[1])
    expected = reference.weighted(reference.label_loss, student.tolist(), one_hot.tolist(), smoothing, weights.tolist())
    for targets in (labels, one_hot):
        assert close(label_loss(student, targets, smoothing, row_weights), expected, 800)
    expected = reference.weighted(reference.kd_loss, student.tolist(), teacher.tolist(), temperature, weights.tolist())
    found = kd_loss_from_probs(student, soften(teacher, temperature), temperature, row_weights)
    assert close(found, expected, temperature * 800)


def test_a_value_by_hand() -> None:
    # Teacher certain of class 0 or of class 1 alike, student even: ln 2 nats at T = 1, and T^2 of it at T = 3.
    even, torn = torch.zeros(1, 2), torch.tensor([[5.0, 5.0]])
    assert kd_loss(even, torn, 1.0).item() == pytest.approx(math.log(2))
    assert kd_loss(even, torn, 3.0).item() == pytest.approx(9 * math.log(2))


# 2. Gradients


@given(logit_pairs(has_missing=True), temperatures)
def test_kd_gradient_is_the_closed_form(pair: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    student, teacher = pair
    student.requires_grad_()
    kd_loss(student, teacher, temperature).backward()
    expected = torch.tensor(reference.kd_gradient(student.tolist(), teacher.tolist(), temperature))
    assert student.grad is not None
    # A probability has an error of a few 2^-24 plus that of its exponent, |logit / T| * 2^-24: at most 200 of them.
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=temperature * 200 * 2**-24)


@settings(max_examples=20)
@given(logit_pairs(), temperatures)
def test_kd_gradient_against_finite_differences(pair: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    student, teacher = (logits.double() / 30 for logits in pair)
    student.requires_grad_()
    kd_loss(student, teacher, temperature).backward()
    assert student.grad is not None
    step = 1e-5
    for index in np.ndindex(*student.shape):
        above, below = student.detach().clone(), student.detach().clone()
        above[index] += step
        below[index] -= step
        slope = reference.kd_loss(above.tolist(), teacher.tolist(), temperature)
        slope -= reference.kd_loss(below.tolist(), teacher.tolist(), temperature)
        # Central differences of the float64 loop: step^2 of curvature and 1e-16 / step of rounding, times T^2.
        assert float(student.grad[index]) == pytest.approx(slope / (2 * step), abs=temperature**2 * 1e-6)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = torch.randn(2, 3, 5, requires_grad=True).unbind()
    teacher = teacher.detach().requires_grad_()
    kd_loss(student, teacher, 2.0).backward()
    assert teacher.grad is None


# 3. Properties


@given(logit_pairs(), temperatures)
def test_equal_logits_have_no_gradient_and_the_entropy_as_loss(
    pair: tuple[torch.Tensor, torch.Tensor], temperature: float
) -> None:
    student = pair[0].requires_grad_()
    loss = kd_loss(student, student.detach().clone(), temperature)
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().max() <= temperature * 1e-6
    probs = soften(student.detach().double(), temperature)
    entropy = -torch.special.xlogy(probs, probs).sum(dim=1).mean()
    assert close(loss.detach(), temperature**2 * float(entropy), temperature**2)


@given(logit_pairs(), temperatures, st.sampled_from([-64.0, 0.5, 64.0]))
def test_a_shift_of_the_logits_changes_nothing(
    pair: tuple[torch.Tensor, torch.Tensor], temperature: float, shift: float
) -> None:
    student, teacher = pair
    loss = float(kd_loss(student, teacher, temperature))
    # The shifted logits are rounded to float32 (up to 500 * 2^-24 each), times T^2 / T.
    tolerance = max(RELATIVE * abs(loss), temperature * 600 * 2**-23)
    assert float(kd_loss(student + shift, teacher, temperature)) == pytest.approx(loss, abs=tolerance)
    # A teacher's probabilities move by as much as its rounded exponents, times the student's log-probabilities.
    tolerance *= 100
    assert float(kd_loss(student, teacher + shift, temperature)) == pytest.approx(loss, abs=tolerance)


@given(logit_pairs(), temperatures)
def test_the_best_student_is_the_teacher(pair: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    student, teacher = pair
    least = float(kd_loss(teacher, teacher, temperature))
    assert float(kd_loss(student, teacher, temperature)) >= least - RELATIVE * max(1, least)


@given(logit_pairs(), temperatures, st.floats(0, 1))
def test_loss_is_linear_in_mixed_teacher_probs(
    pair: tuple[torch.Tensor, torch.Tensor], temperature: float, share: float
) -> None:
    student, teacher = pair
    one, other = soften(teacher, temperature), soften(teacher.flip(1), temperature)
    mixed = kd_loss_from_probs(student, share * one + (1 - share) * other, temperature)
    apart = share * kd_loss_from_probs(student, one, temperature)
    apart += (1 - share) * kd_loss_from_probs(student, other, temperature)
    assert close(mixed, float(apart), temperature * 100)


def test_order_in_the_batch_does_not_matter() -> None:
    student, teacher = torch.randn(2, 64, 10, generator=torch.Generator().manual_seed(1)).unbind()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    assert close(kd_loss(student[order], teacher[order], 2.0), float(kd_loss(student, teacher, 2.0)))


# 4. Dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (torch.randn(2, 16, 1000, generator=torch.Generator().manual_seed(0)) * 5).to(dtype).unbind()
    labels = torch.arange(16)
    loss = kd_loss(student, teacher, 2.0)
    assert loss.dtype == torch.float32
    assert loss == kd_loss(student.float(), teacher.float(), 2.0)
    assert label_loss(student, labels, 0.1) == label_loss(student.float(), labels, 0.1)
    both = torch.stack([student, teacher], dim=1)
    averaged = average_probs(both, 2.0, [0.3, 0.7])
    assert averaged.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kd_loss(student, teacher, 2.0) == loss
        assert torch.equal(average_probs(both, 2.0, [0.3, 0.7]), averaged)


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e30, -1e30, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-float("inf"), 1e30, -float("inf")]])
    loss = kd_loss(student, teacher, 4.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(Exception, match=r"kd_loss"):
        kd_loss(torch.zeros(2, 3), torch.zeros(3, 3), 1.0)


# 5. Shapes and settings


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user calls them: the annotations, which only tests check, are not."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@given(logit_pairs(), temperatures, st.integers(1, 3))
def test_of_several_teachers_the_softened_probabilities_are_averaged(
    pair: tuple[torch.Tensor, torch.Tensor], temperature: float, num_teachers: int
) -> None:
    student, teacher = pair
    teachers = torch.stack([teacher.roll(shift, dims=1) for shift in range(num_teachers)], dim=1)
    apart = sum(float(kd_loss(student, one, temperature)) for one in teachers.unbind(1)) / num_teachers
    assert close(kd_loss(student, teachers, temperature), apart, temperature * 100)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (3,), (4, 4), (4, 4, 1), (4, 0, 3), (1, 4, 3), (3, 4, 3)])
def test_teacher_logits_of_another_shape_are_refused_and_not_broadcast(shape: tuple[int, ...]) -> None:
    expected = (
        rf"^teacher_logits {re.escape(str(list(shape)))}: expected \[4, 3\] as student_logits, or \[4, M, 3\] of M"
    )
    with pytest.raises(ConfigError, match=expected):
        kd_loss(torch.zeros(4, 3), torch.zeros(shape), 1.0)
    if len(shape) < 3:
        with pytest.raises(ConfigError, match=r"^teacher_probs \[.*: expected \[4, 3\], after student_logits"):
            kd_loss_from_probs(torch.zeros(4, 3), torch.zeros(shape), 1.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 3, 1)])
def test_student_logits_without_rows_or_of_another_rank_are_refused(shape: tuple[int, ...]) -> None:
    student = torch.zeros(shape)
    message = rf"^student_logits {re.escape(str(list(shape)))}: expected \[B, C\] with at least one row"
    with pytest.raises(ConfigError, match=message):
        kd_loss(student, student, 1.0)
    with pytest.raises(ConfigError, match=message):
        label_loss(student, torch.zeros(shape[0], dtype=torch.int64))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("labels", [torch.zeros(1, dtype=torch.int64), torch.zeros(4, 1).long(), torch.zeros(4)])
def test_labels_and_row_weights_of_another_shape_are_refused(labels: torch.Tensor) -> None:
    student = torch.zeros(4, 3)
    with pytest.raises(ConfigError, match=r"^labels \[.*: expected \[4"):
        label_loss(student, labels)
    # [4, 1] times [4] would be [4, 4].
    weights = torch.ones(4, 1)
    with pytest.raises(ConfigError, match=r"^row_weights \[4, 1\]: expected \[4\]"):
        label_loss(student, torch.zeros(4, dtype=torch.int64), 0.0, weights)
    with pytest.raises(ConfigError, match=r"^row_weights \[4, 1\]: expected \[4\]"):
        kd_loss_from_probs(student, soften(student, 1.0), 1.0, weights)
    with pytest.raises(ConfigError, match=r"^weights: 1, expected one of each of the 2 teachers"):
        average_probs(torch.zeros(4, 2, 3), 1.0, [1.0])


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_or_smoothing_out_of_range_is_refused(value: float) -> None:
    student = torch.zeros(4, 3)
    for compute in (
        lambda: kd_loss(student, student, value),
        lambda: kd_loss(student, student[:, None], value),
        lambda: kd_loss_from_probs(student, student, value),
    ):
        with pytest.raises(ConfigError, match=rf"^temperature {value}: expected a finite number above 0"):
            compute()
    with pytest.raises(ConfigError, match=r"^smoothing .*: expected 0 to 1"):
        label_loss(student, torch.zeros(4, dtype=torch.int64), value or 1.5)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_the_checks_leave_one_graph_to_the_compiler() -> None:
    student, teachers = torch.randn(6, 5), torch.randn(6, 2, 5)
    compiled = torch.compile(kd_loss, backend="eager", fullgraph=True)
    for rows in (6, 4):
        for teacher in (teachers[:rows], teachers[:rows, 0]):
            assert compiled(student[:rows], teacher, 2.0) == kd_loss(student[:rows], teacher, 2.0)
