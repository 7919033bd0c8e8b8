"""In which order images are served, to which process; a pure function of (seed, epoch, rank)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from qsdformer.data.augment import image_keys
from qsdformer.errors import UserError


def train_order(size: int, seed: int, epoch: int) -> Tensor:
    """A permutation (size,) int64 of the image indices for one epoch."""
    key = image_keys(seed, torch.tensor([epoch]), torch.tensor([size]))[0]
    generator = torch.Generator().manual_seed(int(key) % 2**63)
    return torch.randperm(size, generator=generator)


def train_count(size: int, batch_size: int, ranks: int) -> int:
    """How many images all ranks together use: whole batches, or all if there is not one batch."""
    _require_share(size, "training", ranks)
    together = batch_size * ranks
    return size if size < together else size - size % together


def _require_share(size: int, kind: str, ranks: int) -> None:
    """`UserError` if there is not an image for each process."""
    if size < ranks:
        raise UserError(f"{size} {kind} images cannot be shared by {ranks} processes; use fewer")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes, (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class TrainSampler(Sampler[int]):
    """Requests `index + epoch * size` in an order shuffled anew each epoch, split over ranks.

    Step k uses the same images together whatever the number of ranks, if `batch_size` (per rank)
    times ranks is the same. What does not fill a last batch is left out.
    """

    def __init__(self, size: int, *, batch_size: int, seed: int) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self._skipped_batches = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration serves."""
        self.epoch = epoch

    def skip_batches(self, count: int) -> None:
        """Let only the next iteration start after its first `count` batches (resuming)."""
        self._skipped_batches = count

    def __len__(self) -> int:
        return len(self._share())

    def __iter__(self) -> Iterator[int]:
        share = self._share()[self._skipped_batches * self.batch_size :]
        self._skipped_batches = 0
        order = train_order(self.size, self.seed, self.epoch)
        yield from (order[list(share)] + self.epoch * self.size).tolist()

    def _share(self) -> range:
        """Positions in the epoch's order that belong to this rank."""
        rank, ranks = rank_and_world()
        return range(rank, train_count(self.size, self.batch_size, ranks), ranks)


class EvalSampler(Sampler[int]):
    """Every image exactly once over all ranks, in order; shares may differ by one image."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return len(self._share())

    def __iter__(self) -> Iterator[int]:
        return iter(self._share())

    def _share(self) -> range:
        rank, ranks = rank_and_world()
        _require_share(self.size, "evaluation", ranks)
        return range(rank, self.size, ranks)
