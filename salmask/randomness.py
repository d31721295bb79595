"""Random numbers without state: each is a hash of (seed, epoch, sample id, purpose, counter).

No generator has to be saved. A random number depends neither on the other samples of the batch, nor
on the number of workers, nor on earlier draws, so a resumed run equals an uninterrupted one. The
hash function is lowbias32 (public domain, by Chris Wellons).
"""

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio; spreads consecutive counters


Words = TypeVar("Words", int, Tensor)


def mix(x: Words) -> Words:
    """The hashes of 32-bit words: an int, or an int64 tensor of any shape."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _chain(*words: int, last: Tensor) -> Tensor:
    """Hashes (n,) int64 of several words, of which the last is one of the words `last` (n,)."""
    state = 0
    for word in words:
        state = mix((state + word * _GOLDEN + 1) & _WORD)
    return mix((state + last * _GOLDEN + 1) & _WORD)


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
        return cls(_chain(seed, epoch, last=ids))

    def fork(self, purpose: str) -> "Draws":
        """Independent random numbers for the same samples and all purposes."""
        return Draws(self._stream(purpose))

    def shared(self) -> "Draws":
        """One set of random numbers for the whole batch: those of its first sample."""
        return Draws(self.key[:1])

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(B, *shape) float32, uniform in [0, 1) with 24 bits."""
        count = math.prod(shape)
        counter = torch.arange(count, dtype=torch.int64, device=self.key.device) * _GOLDEN
        bits = mix(mix((self._stream(purpose)[:, None] + counter) & _WORD))
        return ((bits >> 8).to(torch.float32) * 2.0**-24).reshape(-1, *shape)

    def normal(self, purpose: str, *shape: int, std: float = 1.0) -> Tensor:
        """(B, *shape) float32, normal with mean 0: a random section of one fixed list of numbers.

        The list has at least 2^20 numbers, and at least twice as many as the section. Sections of
        different images may overlap, and the tails end at 4.8 standard deviations. Use it for
        pixel noise, not for statistics.
        """
        count = math.prod(shape)
        length = 1 << max(20, count.bit_length() + 1)
        sections = _normals(length, std, self.key.device).unfold(0, count, 1)
        start = self._stream(purpose) % len(sections)
        return sections.index_select(0, start).view(-1, *shape)

    def _stream(self, purpose: str) -> Tensor:
        return mix(self.key ^ _code(purpose))


def _code(purpose: str) -> int:
    """A 32-bit word for a purpose."""
    return zlib.crc32(purpose.encode())


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _normals(count: int, std: float, device: torch.device) -> Tensor:
    """Normal numbers, equal on all devices: Box-Muller from two 16-bit uniform numbers."""
    bits = mix(mix(torch.arange(count // 2) * _GOLDEN & _WORD))
    radius = torch.sqrt(-2.0 * torch.log(((bits & 0xFFFF).float() + 0.5) * 2.0**-16))
    angle = (bits >> 16).float() * (2.0 * math.pi * 2.0**-16)
    standard = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
    return standard.to(device) * std


def epoch_order(seed: int, epoch: int, ids: Tensor) -> Tensor:
    """The sample ids (N,) int64 in the order of an epoch."""
    return ids[torch.argsort(_chain(seed, epoch, _code("order"), last=ids), stable=True)]


def batch_shuffle(
    seed: int, epoch: int, step: int, count: int, device: torch.device | None = None
) -> Tensor:
    """Two independent permutations (2,count) int64 of a batch. They form the batch-norm groups of
    keys and of hard negatives in the key encoder."""
    rows = torch.arange(count, device=device)
    codes = (_code("shuffle"), _code("shuffle of negatives"))
    keys = torch.stack([_chain(seed, epoch, step, code, last=rows) for code in codes])
    return torch.argsort(keys, dim=1, stable=True)
