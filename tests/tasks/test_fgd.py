"""Distillation losses against hand computations, and what they promise about gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qsdformer.errors import UserError
from qsdformer.recipes.learning import DistillConfig
from qsdformer.tasks.fgd import (
    RECOMPUTED_TOKENS,
    block_distance,
    fgd_loss,
    logit_loss,
    match_blocks,
    schedule_factor,
    similarity,
    single_token_note,
    token_features,
)


def blocks(
    *shape: int, count: int = 2, seed: int = 0, grad: bool = False
) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.rand(shape, generator=generator).requires_grad_(grad) for name in "qkv"}
        for _ in range(count)
    ]


def test_similarity_of_two_tokens_matches_a_hand_computation() -> None:
    # F = [[1, 0], [1, 1]]: F F^T = [[1, 1], [1, 2]], of Frobenius norm sqrt(7).
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([[1.0, 1.0], [1.0, 2.0]]) / math.sqrt(7)
    torch.testing.assert_close(similarity(features), expected)


def test_the_loss_of_two_tokens_matches_a_hand_computation() -> None:
    # Student F F^T = [[1, 1], [1, 1]] / 2; teacher F F^T = identity / sqrt(2).
    student = torch.tensor([[[[1.0], [1.0]]]])
    teacher = torch.eye(2)[None, None]
    off = 0.5
    on = 1 / math.sqrt(2) - 0.5
    expected = math.sqrt(2 * off**2 + 2 * on**2)
    loss = fgd_loss([{"q": student}], [{"q": teacher}])
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_the_mean_over_blocks_and_features() -> None:
    student, teacher = blocks(2, 3, 5, 4), blocks(2, 3, 5, 4, seed=1)
    parts = [
        block_distance(own[name], other[name])
        for own, other in zip(student, teacher, strict=True)
        for name in "qkv"
    ]
    assert float(fgd_loss(student, teacher)) == pytest.approx(sum(map(float, parts)) / 6, abs=1e-6)


def test_the_loss_of_identical_features_is_zero_with_finite_gradients() -> None:
    student = blocks(2, 3, 5, 4, grad=True)
    loss = fgd_loss(student, [{k: v.detach() for k, v in block.items()} for block in student])
    loss.backward()
    assert loss.item() == 0.0
    assert all(bool(v.grad.isfinite().all()) for b in student for v in b.values())


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_loss_does_not_depend_on_the_scale_of_features(scale: float) -> None:
    student, teacher = blocks(2, 3, 5, 4), blocks(2, 3, 5, 4, seed=1)
    scaled = [{k: v * scale for k, v in block.items()} for block in student]
    expected = float(fgd_loss(student, teacher))
    assert float(fgd_loss(scaled, teacher)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tokens", [5, RECOMPUTED_TOKENS])
def test_gradients_reach_the_student_alone(tokens: int) -> None:
    student = blocks(1, 2, tokens, 4, grad=True)
    teacher = blocks(1, 2, tokens, 4, seed=1, grad=True)
    fgd_loss(student, teacher).backward()
    assert all(float(v.grad.abs().sum()) > 0 for b in student for v in b.values())
    assert all(v.grad is None for b in teacher for v in b.values())


def test_recomputing_in_the_backward_pass_changes_neither_loss_nor_gradients() -> None:
    student = torch.rand(2, 2, RECOMPUTED_TOKENS, 4, requires_grad=True)
    teacher = torch.rand(2, 2, RECOMPUTED_TOKENS, 4)
    kept = block_distance(student, teacher)
    (expected,) = torch.autograd.grad(kept, student)
    recomputed = fgd_loss([{"q": student}], [{"q": teacher}])
    (gradient,) = torch.autograd.grad(recomputed, student)
    assert torch.equal(kept, recomputed)
    torch.testing.assert_close(gradient, expected)


def test_silent_features_give_finite_values_and_gradients() -> None:
    silent = torch.zeros(2, 2, 5, 4, requires_grad=True)
    loss = fgd_loss([{"v": silent}], [{"v": torch.rand(2, 2, 5, 4)}])
    loss.backward()
    assert loss.item() == pytest.approx(1.0)  # the norm of the teacher's G
    assert bool(silent.grad.isfinite().all())


def test_where_heads_differ_the_means_over_heads_are_compared() -> None:
    student, teacher = torch.rand(2, 2, 5, 4), torch.rand(2, 3, 5, 6)
    difference = similarity(student).mean(1) - similarity(teacher).mean(1)
    expected = difference.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(block_distance(student, teacher), expected)


def test_widths_may_differ_with_equal_heads() -> None:
    assert float(block_distance(torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 16))) > 0


def test_different_token_grids_are_an_error_with_both_grids() -> None:
    with pytest.raises(UserError, match=r"4x4.*7x7") as error:
        fgd_loss([{"q": torch.rand(1, 2, 16, 4)}], [{"q": torch.rand(1, 2, 49, 4)}])
    assert "\n" not in str(error.value)


def test_blocks_and_features_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 student blocks and 1 teacher"):
        fgd_loss(blocks(1, 1, 2, 2), blocks(1, 1, 2, 2, count=1))
    with pytest.raises(ValueError, match="features"):
        fgd_loss([{"q": torch.rand(1, 1, 2, 2)}], [{"k": torch.rand(1, 1, 2, 2)}])


def test_the_loss_is_taken_in_float32_under_autocast() -> None:
    student, teacher = blocks(2, 3, 5, 4), blocks(2, 3, 5, 4, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fgd_loss(student, teacher)
    assert torch.equal(loss, fgd_loss(student, teacher))


def test_the_logit_loss_is_zero_for_logits_that_differ_by_a_constant() -> None:
    logits = torch.randn(4, 7)
    assert float(logit_loss(logits, logits + 3.0, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_the_logit_loss_matches_a_hand_computation() -> None:
    # At T = 2: teacher probabilities (3/4, 1/4), student (1/2, 1/2).
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3.0), 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(logit_loss(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_schedules_start_at_one_and_the_falling_ones_end_at_zero() -> None:
    assert schedule_factor("constant", 99, 100) == 1.0
    for schedule in ("linear", "cosine"):
        assert schedule_factor(schedule, 0, 101) == 1.0
        assert schedule_factor(schedule, 50, 101) == pytest.approx(0.5)
        assert schedule_factor(schedule, 100, 101) == pytest.approx(0.0)


def test_blocks_are_matched_evenly_and_last_to_last() -> None:
    assert match_blocks([4] * 3, [4] * 3) == [0, 1, 2]
    assert match_blocks([4] * 3, [4] * 12) == [3, 7, 11]
    assert match_blocks([4] * 4, [4] * 2) == [0, 0, 1, 1]


def test_blocks_of_other_grids_are_left_out_unless_the_student_needs_them() -> None:
    assert match_blocks([16, 16], [16, 16, 16, 4, 4, 4]) == [1, 2]
    assert match_blocks([16, 16, 4], [64, 16, 4, 4]) == [1, 1, 3]
    with pytest.raises(UserError, match=r"block 1: .* is 3x3, the teacher's 4x4 and 2x2;"):
        match_blocks([16, 9], [16, 16, 4])


def test_token_features_average_time_steps_and_split_heads() -> None:
    output = torch.rand(2 * 3, 8, 2, 2)  # T=2, B=3
    features = token_features(output, heads=4, time_steps=2)
    mean = (output[:3] + output[3:]) / 2
    assert features.shape == (3, 4, 4, 2)
    torch.testing.assert_close(features[1, 2, 3], mean[1, 4:6, 1, 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fgd_weight": -1.0}, "fgd_weight=-1.0: must be 0 or more"),
        ({"logit_weight": -0.1}, "logit_weight=-0.1"),
        ({"logit_weight": math.nan}, "logit_weight=nan"),
        ({"fgd_weight": 0.0}, "leave out distill"),
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"features": ()}, "at least one of q, k, v"),
        ({"features": ("q", "q")}, "at most once"),
        ({"teacher_epochs": 0}, "teacher_epochs=0"),
        ({"teacher": ""}, "teacher=''"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as error:
        DistillConfig(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_blocks_of_a_single_token_are_told_of_and_refused_where_nothing_else_teaches() -> None:
    # Of one token the similarity is 1 whatever its features.
    one, other = ({"q": torch.rand(2, 2, 1, 4) + 0.1} for _ in range(2))
    assert fgd_loss([one], [other]) == 0
    both = DistillConfig(logit_weight=1.0)
    assert single_token_note(DistillConfig(), [16, 4]) is None
    assert single_token_note(DistillConfig(fgd_weight=0, logit_weight=1.0), [1, 1]) is None
    note = single_token_note(DistillConfig(), [4, 4, 1])
    assert note is not None
    assert "nothing about 1 of 3 blocks" in note
    assert "only the teacher's logits teach" in (single_token_note(both, [1, 1]) or "")
    with pytest.raises(UserError, match=r"1x1.*nothing would be learnt.*logit_weight, or raise"):
        single_token_note(DistillConfig(), [1, 1])
