"""Bootstrap Your Own Latent (Grill et al. 2020)."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import mlp
from salmask.encoders.norms import without_statistics
from salmask.frameworks import BaseFramework
from salmask.losses import cosine, lambda_mix, spread
from salmask.params.encoder import EncoderConfig
from salmask.params.ranges import NonNegativeInt, Share, Units
from salmask.shapes import Views, Wiring


class Framework(BaseFramework):
    """An online network predicts the output of its moving average for another view.

    Args:
        encoder: the section `encoder`.
        wiring: result of `check`.
        dim: output dimensions of projector and predictor.
        hidden: hidden units of projector and predictor.
        momentum: of the moving average at the start; it rises to 1 along half a cosine.
        bn_group: samples that share batch-norm statistics; 0 for all.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        wiring: Wiring,
        *,
        dim: Units = 256,
        hidden: Units = 4096,
        momentum: Share = 0.996,
        bn_group: NonNegativeInt = 32,
    ) -> None:
        super().__init__(encoder, wiring)
        self.momentum = momentum
        self.encoder = build_encoder(encoder, bn_group)
        features = feature_dim(encoder)
        self.projector = mlp([features, hidden, dim], norm=True, bn_group=bn_group)
        self.target_encoder, self.target_projector = (
            without_statistics(copy.deepcopy(part)).requires_grad_(False)
            for part in (self.encoder, self.projector)
        )
        self.predictor = mlp([dim, hidden, dim], norm=True, bn_group=bn_group)

    @classmethod
    def check(cls, batch: int, options: Mapping[str, Any]) -> Wiring:
        return Wiring(
            "byol", "BYOL", roles="both", learned_masks="second_view", target_encoder=True
        )

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step: the momentum update, then the losses. Grill et al. 2020, Sec. 3.1."""
        self._update_target(1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2)
        return self.losses(views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss () and metrics ().

        spread: 1 for targets in random directions, 0 when all targets are equal.
        """
        online = {i: self._predict(views.images[i]) for i in views.online}
        targets = {j: self._target(views.images[j]) for j in views.targets}
        terms = [w * _distance(online[i], targets[j]).mean() for i, j, w in views.pairs]
        for mixed in views.mixed:
            prediction = self._predict(mixed.images)
            terms += [
                lambda_mix(_distance(prediction, targets[1][rows]), share)
                for rows, share in mixed.positives
            ]
        loss = torch.stack(terms).sum()
        i, j, _ = views.pairs[0]
        with torch.no_grad():
            return {
                "loss": loss,
                "positive_similarity": -cosine(online[i], targets[j]).mean(),
                "spread": spread(targets[j]),
            }

    def _predict(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,D)."""
        return self.predictor(self.projector(self.encoder(images))).float()

    @torch.no_grad()
    def _target(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,D)."""
        return self.target_projector(self.target_encoder(images)).float()

    @torch.no_grad()
    def _update_target(self, momentum: float) -> None:
        """target parameters <- momentum * target + (1 - momentum) * online."""
        target: list[Tensor] = [
            *self.target_encoder.parameters(),
            *self.target_projector.parameters(),
        ]
        online: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(target, online, 1 - momentum)


def _distance(online: Tensor, target: Tensor) -> Tensor:
    """||q - z||^2 of the two unit vectors: (B,D), (B,D) -> (B,). Grill et al. 2020, Eq. 2."""
    return 2 + 2 * cosine(online, target)
