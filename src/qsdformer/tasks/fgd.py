"""Distillation losses: fine-grained (FGD, the paper's upper level) and on logits (Hinton).

FGD compares which tokens are alike, not the features themselves, so that student and teacher may
differ in width and heads and need only the same token grid.
Legend: B batch, h heads, N tokens, d channels per head, G token similarity (N, N).

Source: Quantized Spike-driven Transformer (Qiu et al., ICLR 2025); definitions as in the docs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qsdformer.errors import UserError
from qsdformer.nn.attention import to_heads
from qsdformer.recipes.learning import DistillConfig

Schedule = Literal["constant", "linear", "cosine"]
Features = Mapping[str, Tensor]  # of one block: "q", "k", "v" -> (B, h, N, d)

# From this many tokens on, similarities are recomputed in the backward pass instead of kept.
RECOMPUTED_TOKENS = 64
# Below this norm of F F^T a neuron counts as silent: its similarity is 0, not 0/0.
SILENT = 1e-20


def similarity(features: Tensor) -> Tensor:
    """Token similarity G = F F^T / ||F F^T||_F of features (..., N, d), as (..., N, N).

    Invariant to the features' scale. Silent features (all zero) give 0 with a gradient of 0.
    """
    features = features.contiguous()  # matmul would copy both factors, one of them slowly
    products = features @ features.transpose(-2, -1)
    norm = torch.linalg.vector_norm(products, dim=(-2, -1), keepdim=True)
    return products / norm.clamp_min(SILENT)


def block_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """||G_student - G_teacher||_F of one block's features (B, h, N, d), mean over B and h.

    Where the numbers of heads differ, the means of G over the heads are compared.
    """
    g_student, g_teacher = similarity(student), similarity(teacher)
    if g_student.shape[1] != g_teacher.shape[1]:
        g_student, g_teacher = g_student.mean(dim=1), g_teacher.mean(dim=1)
    return torch.linalg.vector_norm(g_student - g_teacher, dim=(-2, -1)).mean()


def fgd_loss(student: Sequence[Features], teacher: Sequence[Features]) -> Tensor:
    """The fine-grained distillation loss: mean of `block_distance` over blocks and features.

    `student` and `teacher` have one entry a block with the same features; gradients flow into
    the student only. Block by block and feature by feature: on large grids the N x N matrices of
    only one feature exist at a time, also in the backward pass. Always in float32.
    Raises ValueError if blocks or features do not pair up, `UserError` if token grids differ.
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"{len(student)} student blocks and {len(teacher)} teacher blocks")
    distances = []
    for number, (own, other) in enumerate(zip(student, teacher, strict=True)):
        if set(own) != set(other) or not own:
            raise ValueError(f"block {number}: features {sorted(own)} and {sorted(other)}")
        for name in own:
            check_tokens(number, own[name].shape[-2], other[name].shape[-2])
            distances.append(_distance(own[name], other[name].detach()))
    return torch.stack(distances).mean()


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        if student.shape[-2] < RECOMPUTED_TOKENS:
            return block_distance(student, teacher)
        result: Tensor = checkpoint(
            block_distance, student, teacher, use_reentrant=False, preserve_rng_state=False
        )
        return result


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of logits (B, classes) softened by T, mean over the batch."""
    log_p = F.log_softmax(student.float() / temperature, dim=1)
    log_q = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def schedule_factor(schedule: Schedule, step: int, total: int) -> float:
    """What the loss weights are multiplied by at `step` of `total`: 1, or falling from 1 to 0."""
    if schedule == "constant":
        return 1.0
    progress = min(1.0, step / max(1, total - 1))
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def token_features(output: Tensor, heads: int, time_steps: int = 1) -> Tensor:
    """A projection's output (T*B, C, H, W) as features (B, h, N, d).

    Time steps are averaged before G is taken: the mean of spike values over T is the firing rate,
    which is what stands for the teacher's real value.
    """
    if time_steps > 1:
        output = output.unflatten(0, (time_steps, -1)).mean(dim=0)
    return to_heads(output, heads)


def match_blocks(student: Sequence[int], teacher: Sequence[int]) -> list[int]:
    """For each of the student's blocks the teacher's it learns from, by numbers of tokens.

    Blocks of one token grid pair up evenly, last to last: equal depths give one to one, a
    shallower teacher serves several of the student's blocks. The teacher's blocks of other grids
    (a CAFormer's last stage) are left out. Raises `UserError` for a grid the teacher lacks.
    """
    matched = []
    for number, tokens in enumerate(student):
        check_tokens(number, tokens, *teacher)
        same = [index for index, count in enumerate(teacher) if count == tokens]
        depth, place = student.count(tokens), student[: number + 1].count(tokens)
        matched.append(same[-(-place * len(same) // depth) - 1])
    return matched


def single_token_note(config: DistillConfig, grids: Sequence[int]) -> str | None:
    """What to tell of blocks with one token, whose similarity is 1 whatever it learns; or None.

    `grids` has the student's tokens a block. Raises `UserError` where nothing else would teach.
    """
    single = [number for number, tokens in enumerate(grids) if tokens == 1]
    if not single or config.fgd_weight == 0:
        return None
    if len(single) < len(grids):
        return (
            f"fgd_loss compares tokens: it says nothing about {len(single)} of {len(grids)} "
            "blocks, whose token grid is 1x1; larger images have more tokens"
        )
    reason = "fgd_loss compares tokens, and the token grid of every block is 1x1"
    if config.logit_weight == 0:
        raise UserError(
            f"{reason}, so nothing would be learnt from the teacher: set distill.logit_weight, "
            "or raise data.image_size"
        )
    return f"{reason}: only the teacher's logits teach; larger images have more tokens"


def check_tokens(block: int, student: int, *teacher: int) -> None:
    """`UserError` with both token grids where the teacher has none like the student's block."""
    if student not in teacher:
        grids = " and ".join(dict.fromkeys(map(grid_text, teacher)))
        raise UserError(
            f"block {block}: the student's token grid is {grid_text(student)}, the teacher's "
            f"{grids}; choose a teacher or data.image_size for which they agree"
        )


def grid_text(tokens: int) -> str:
    """A token grid in words: 4x4 where the number is a square."""
    side = math.isqrt(tokens)
    return f"{side}x{side}" if side * side == tokens else f"{tokens} tokens"
