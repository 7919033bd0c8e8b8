"""Spikes as lists of addresses, and what a list takes in bits.

Legend: C channels, B images times time steps, H x W map, D levels, n entries.

A map of spike counts is stored as lists. Lists are of one of two layouts: `pixel`, one list for
each of the B*H*W pixels, addresses are channels; or `channel`, one for each of the C*B channels of
an image, addresses are positions in the map, row by row. What is stored of a list depends on the
encoding:

- `address`: D passes, one for each virtual time step d; pass d holds the addresses whose count
  exceeds d, so that a spike is one address;
- `address+count`: one pass of (address, count);
- `bitmap`: D passes of a bit for every address;
- `dense`: the counts themselves, as a dense array of multipliers reads them.

Lists of addresses begin with their length. Of a list that holds a single address the count is
stored, in any encoding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from qsdformer.graph.ops import Array

Layout = Literal["pixel", "channel"]
Encoding = Literal["bitmap", "address", "address+count", "dense"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)


@dataclass(frozen=True, kw_only=True, eq=False)
class Spikes:
    """Spike counts of shape (C, B, H, W) as lists; entries ascend by list, then by address."""

    shape: tuple[int, int, int, int]
    levels: int  # D, the largest count
    layout: Layout
    lists: Array  # (n,) int64: which list
    addresses: Array  # (n,) int64
    counts: Array  # (n,) int64, 1..levels

    @property
    def list_count(self) -> int:
        """How many lists there are, empty ones among them."""
        channels, batch, height, width = self.shape
        return batch * height * width if self.layout == "pixel" else channels * batch

    @property
    def length(self) -> int:
        """How many addresses a list can hold."""
        channels, _, height, width = self.shape
        return channels if self.layout == "pixel" else height * width

    @functools.cached_property
    def spikes(self) -> int:
        """The sum of all counts."""
        return int(self.counts.sum())

    @property
    def rate(self) -> float:
        """Mean count / D."""
        return self.spikes / (self.levels * int(np.prod(self.shape)))

    @functools.cached_property
    def indices(self) -> tuple[Array, Array, Array]:
        """Channel, image and position in the map of each entry, (n,) each."""
        _, batch, height, width = self.shape
        if self.layout == "channel":
            channel, image = np.divmod(self.lists, batch)
            return channel, image, self.addresses
        image, position = np.divmod(self.lists, height * width)
        return self.addresses, image, position

    def decode(self) -> Array:
        """The counts as a map (C, B, H, W) int32."""
        channels, batch, height, width = self.shape
        dense = np.zeros((channels, batch, height * width), np.int32)
        dense[self.indices] = self.counts
        return dense.reshape(self.shape)

    def in_layout(self, layout: Layout) -> Spikes:
        """The same spikes in lists of another layout."""
        return self if layout == self.layout else encode(self.decode(), self.levels, layout)


def encode(counts: Array, levels: int, layout: Layout) -> Spikes:
    """The lists of a map of counts (C, B, H, W)."""
    channels, batch, height, width = counts.shape
    flat = counts.reshape(channels, batch, height * width)
    table = flat.transpose(1, 2, 0).reshape(-1, channels)
    if layout == "channel":
        table = flat.reshape(channels * batch, height * width)
    lists, addresses = np.nonzero(table)
    return Spikes(
        shape=(channels, batch, height, width),
        levels=levels,
        layout=layout,
        lists=lists,
        addresses=addresses,
        counts=table[lists, addresses].astype(np.int64),
    )


def bits_to_tell(states: int) -> int:
    """Bits that tell so many states apart."""
    return max(0, int(states) - 1).bit_length()


def address_bits(length: int) -> int:
    """Bits of an address in a list that can hold `length`; at least one."""
    return max(1, bits_to_tell(length))


def count_bits(levels: int) -> int:
    """Bits of a count 1..D beside its address."""
    return bits_to_tell(levels)


def list_bits(spikes: Spikes, encoding: Encoding) -> Array:
    """Bits of each list, (lists,) int64, its length and all passes among them."""
    lists, levels = spikes.list_count, spikes.levels
    address, header = address_bits(spikes.length), bits_to_tell(spikes.length + 1)
    if encoding == "dense" or spikes.length == 1:
        return np.full(lists, spikes.length * bits_to_tell(levels + 1), np.int64)
    if encoding == "bitmap":
        return np.full(lists, levels * spikes.length, np.int64)
    if encoding == "address+count":
        entries = np.bincount(spikes.lists, minlength=lists)
        return entries * (address + count_bits(levels)) + header
    stored = np.bincount(spikes.lists, spikes.counts, minlength=lists).astype(np.int64)
    return stored * address + levels * header


def stored_bits(spikes: Spikes, encoding: Encoding) -> int:
    """Bits of all lists together."""
    return int(list_bits(spikes, encoding).sum())
