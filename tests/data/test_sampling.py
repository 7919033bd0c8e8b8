from __future__ import annotations

from itertools import chain

import pytest

from qsdformer.data import sampling
from qsdformer.data.sampling import EvalSampler, TrainSampler
from qsdformer.errors import UserError


def act_as(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setattr(sampling, "rank_and_world", lambda: (rank, ranks))


def train_shares(monkeypatch: pytest.MonkeyPatch, size: int, batch: int, ranks: int) -> list:
    sampler = TrainSampler(size, batch_size=batch, seed=0)
    shares = []
    for rank in range(ranks):
        act_as(monkeypatch, rank, ranks)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    return shares


@pytest.mark.parametrize(("size", "ranks"), [(40, 2), (43, 2), (100, 3)])
def test_training_shares_are_whole_batches_without_overlap(
    monkeypatch: pytest.MonkeyPatch, size: int, ranks: int
) -> None:
    shares = train_shares(monkeypatch, size, 5, ranks)
    assert {len(share) for share in shares} == {size // (5 * ranks) * 5}
    everything = list(chain.from_iterable(shares))
    assert len(set(everything)) == len(everything)
    assert set(everything) <= set(range(size))


def test_ranks_together_take_the_steps_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    (alone,) = train_shares(monkeypatch, 48, 8, 1)
    first, second = train_shares(monkeypatch, 48, 4, 2)
    for step in range(6):
        together = first[4 * step : 4 * step + 4] + second[4 * step : 4 * step + 4]
        assert sorted(together) == sorted(alone[8 * step : 8 * step + 8])


def test_a_training_set_smaller_than_one_batch_is_used_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sorted(train_shares(monkeypatch, 7, 16, 1)[0]) == list(range(7))
    assert sorted(chain.from_iterable(train_shares(monkeypatch, 7, 16, 2))) == list(range(7))


def test_more_processes_than_training_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, 0, 4)
    with pytest.raises(UserError, match="3 training images"):
        list(TrainSampler(3, batch_size=1, seed=0))


def test_more_processes_than_evaluation_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, 0, 4)
    with pytest.raises(UserError, match="3 evaluation images cannot be shared by 4 processes"):
        list(EvalSampler(3))


@pytest.mark.parametrize(("size", "ranks"), [(20, 1), (21, 2), (5, 4)])
def test_evaluation_sees_every_image_exactly_once(
    monkeypatch: pytest.MonkeyPatch, size: int, ranks: int
) -> None:
    seen = []
    for rank in range(ranks):
        act_as(monkeypatch, rank, ranks)
        seen += list(EvalSampler(size))
    assert sorted(seen) == list(range(size))


def test_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, *epochs: int) -> list[int]:
        sampler = TrainSampler(50, batch_size=10, seed=seed)
        for epoch in epochs:
            sampler.set_epoch(epoch)
            requests = list(sampler)
        assert {request // 50 for request in requests} == {epochs[-1]}
        return [request % 50 for request in requests]

    assert order(0, 3) == order(0, 0, 1, 2, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert order(0, 3) != list(range(50))


def test_skipped_batches_are_missing_from_the_next_iteration_only() -> None:
    sampler = TrainSampler(50, batch_size=10, seed=0)
    whole = list(sampler)
    sampler.skip_batches(2)
    assert list(sampler) == whole[20:]
    assert list(sampler) == whole
    assert len(sampler) == 50
