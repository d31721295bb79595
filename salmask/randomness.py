"""Random numbers without state: each is a hash of (seed, epoch, sample id, purpose, counter).

No generator has to be saved. A random number depends neither on the other samples of the batch, nor
on the number of workers, nor on earlier draws, so a resumed run equals an uninterrupted one. The
hash function is lowbias32 (public domain, by Chris Wellons).
"""

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio; spreads consecutive counters


def mix(x: Tensor) -> Tensor:
    """The hashes of 32-bit words in an int64 tensor of any shape: int64, of the same shape."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _mix32(x: Tensor) -> Tensor:
    """`mix` in int32, with half the memory traffic: for pixel noise."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)


def _chain(*words: int | Tensor) -> Tensor:
    """One hash of several words. Scalars and tensors are broadcast."""
    state = torch.zeros((), dtype=torch.int64)
    for word in words:
        word = torch.as_tensor(word, dtype=torch.int64)
        state = mix((state.to(word.device) + word * _GOLDEN + 1) & _WORD)
    return state


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch.

    Equal purposes give equal numbers, different purposes give independent numbers.

    Args:
        key: (B,) int64, one hashed word per sample.
    """

    key: Tensor

    @classmethod
    def of(cls, seed: int, epoch: int, ids: Tensor) -> "Draws":
        """The random numbers of the samples `ids` (B,) int64 in one epoch."""
        return cls(_chain(seed, epoch, ids))

    def fork(self, purpose: str) -> "Draws":
        """Independent random numbers for the same samples and all purposes."""
        return Draws(mix(self.key ^ (zlib.crc32(purpose.encode()) & _WORD)))

    def shared(self) -> "Draws":
        """One set of random numbers for the whole batch: those of its first sample."""
        return Draws(self.key[:1])

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(B, *shape) float32, uniform in [0, 1) with 24 bits."""
        count = math.prod(shape)
        counter = torch.arange(count, dtype=torch.int64, device=self.key.device) * _GOLDEN
        stream = mix(self.key ^ (zlib.crc32(purpose.encode()) & _WORD))
        bits = mix(mix((stream[:, None] + counter) & _WORD))
        return ((bits >> 8).to(torch.float32) * 2.0**-24).reshape(-1, *shape)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal, by Box-Muller from two 16-bit uniform numbers.

        The tails end at 4.8 standard deviations. Use it for pixel noise, not for statistics.
        """
        count = math.prod(shape)
        half = (count + 1) // 2
        counter = torch.arange(half, dtype=torch.int64, device=self.key.device) * _GOLDEN
        stream = mix(self.key ^ (zlib.crc32(purpose.encode()) & _WORD))
        start = _as_int32(stream)[:, None] + _as_int32(counter & _WORD)
        bits = _mix32(_mix32(start))
        radius = torch.sqrt(-2.0 * torch.log(((bits & 0xFFFF).float() + 0.5) * 2.0**-16))
        angle = ((bits >> 16) & 0xFFFF).float() * (2.0 * math.pi * 2.0**-16)
        pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return pairs[:, :count].reshape(-1, *shape)


def _as_int32(words: Tensor) -> Tensor:
    """The same 32 bits as signed int32. A plain cast overflows differently between devices."""
    return torch.where(words > 0x7FFFFFFF, words - (1 << 32), words).to(torch.int32)


def epoch_order(seed: int, epoch: int, ids: Tensor) -> Tensor:
    """The sample ids (N,) int64 in the order of an epoch."""
    return ids[torch.argsort(_chain(seed, epoch, zlib.crc32(b"order"), ids), stable=True)]


def batch_shuffle(seed: int, epoch: int, step: int, count: int) -> Tensor:
    """Two independent permutations (2,count) int64 of a batch. They form the batch-norm groups of
    keys and of hard negatives in the key encoder."""
    purposes = torch.tensor([[zlib.crc32(b"shuffle")], [zlib.crc32(b"shuffle of negatives")]])
    keys = _chain(seed, epoch, step, purposes, torch.arange(count))
    return torch.argsort(keys, dim=1, stable=True)
