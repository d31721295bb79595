"""Momentum Contrast: v2 (Chen et al. 2020b), and v1 (He et al. 2020) without the MLP."""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.backbones import build_encoder, feature_dim
from salmask.config import EncoderConfig
from salmask.errors import UserError
from salmask.losses import info_nce_logits
from salmask.shapes import Views


class Framework(nn.Module):
    """A query encoder that learns, a key encoder that follows it, a queue of past keys.

    queue: (D,K) float32, the newest keys in place of the oldest. The order of a step: query
    forward, momentum update, key forward, hard-negative forward, logits, enqueue once.
    """

    queue: Tensor
    cursor: Tensor

    def __init__(
        self,
        encoder: EncoderConfig,
        batch: int,
        steps: int,
        *,
        dim: int = 128,
        hidden: int | None = 2048,
        temperature: float = 0.2,
        queue: int = 65536,
        momentum: float = 0.999,
        penalty: float = 2.0,
        bn_group: int = 32,
        head: Literal["mlp", "linear"] = "mlp",
    ) -> None:
        super().__init__()
        if queue % batch:
            raise UserError(
                f"framework.queue: {queue} is not a multiple of train.batch ({batch}), so keys "
                f"would wrap around in mid-batch; choose {queue // batch * batch or batch}"
            )
        if bn_group and batch % bn_group:
            raise UserError(f"framework.bn_group: {bn_group} does not divide train.batch ({batch})")
        self.temperature, self.momentum, self.penalty = temperature, momentum, penalty
        self.encoder = build_encoder(encoder, bn_group)
        self.projector = _projector(feature_dim(encoder), hidden or feature_dim(encoder), dim, head)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue), dim=0))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step's loss () and what to watch. progress: share of the training done.

        accuracy: how often the key beats the whole queue (the hard negative left aside).
        """
        query = F.normalize(self.projector(self.encoder(views.query)).float(), dim=1)  # (B,D)
        with torch.no_grad():
            self._follow()
            key = self._shuffled_key(views.key, views.shuffle)  # (B,D)
            negative = None if views.negative is None else self._key(views.negative)
        logits = info_nce_logits(
            query,
            key,
            self.queue.clone(),  # the graph keeps what the enqueue below overwrites
            temperature=self.temperature,
            hard_negative=negative,
            penalty=self.penalty,
        )
        loss = F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))
        self._enqueue(key)
        with torch.no_grad():
            seen = {
                "loss": loss,
                "accuracy": (logits[:, : 1 + self.queue.shape[1]].argmax(dim=1) == 0)
                .float()
                .mean(),
                "positive_similarity": (query * key).sum(dim=1).mean(),
            }
            if negative is not None:
                seen["negative_similarity"] = (query * negative).sum(dim=1).mean()
        return seen

    def _key(self, images: Tensor) -> Tensor:
        return F.normalize(self.key_projector(self.key_encoder(images)).float(), dim=1)

    def _shuffled_key(self, images: Tensor, shuffle: Tensor) -> Tensor:
        """Keys in other batch-norm groups than their queries: no shared statistics."""
        return self._key(images[shuffle])[torch.argsort(shuffle)]

    @torch.no_grad()
    def _follow(self) -> None:
        """key parameters <- momentum * key + (1 - momentum) * query (He et al. 2020, Eq. 2)."""
        theirs: list[Tensor] = [*self.key_encoder.parameters(), *self.key_projector.parameters()]
        ours: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(theirs, ours, 1 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, key: Tensor) -> None:
        start = int(self.cursor)
        self.queue[:, start : start + len(key)] = key.T
        self.cursor.copy_((self.cursor + len(key)) % self.queue.shape[1])


def _projector(features: int, hidden: int, dim: int, head: str) -> nn.Module:
    if head == "linear":
        return nn.Linear(features, dim)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, dim))
