"""Bootstrap Your Own Latent (Grill et al. 2020)."""

import copy
import math

import torch
from torch import Tensor, nn

from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import mlp
from salmask.losses import cosine, lambda_mix, spread
from salmask.params.encoder import EncoderConfig
from salmask.shapes import Views, Wiring


class Framework(nn.Module):
    """An online network that predicts what its slowly moving average makes of another view.

    momentum: of the average at the start; it climbs to 1 by half a cosine.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        batch: int,
        steps: int,
        *,
        dim: int = 256,
        hidden: int = 4096,
        momentum: float = 0.996,
        bn_group: int = 32,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.wiring = Wiring("byol", roles="both")
        self.encoder = build_encoder(encoder, bn_group)
        features = feature_dim(encoder)
        self.projector = mlp([features, hidden, dim], norm=True, bn_group=bn_group)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.predictor = mlp([dim, hidden, dim], norm=True, bn_group=bn_group)

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step. progress: share of the training done, which sets the momentum."""
        self._follow(1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2)
        return self.losses(views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss () and what to watch. spread: 1 when targets fill their space, 0 when all have
        become one."""
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
        return self.target_projector(self.target_encoder(images)).float()

    @torch.no_grad()
    def _follow(self, momentum: float) -> None:
        """target parameters <- momentum * target + (1 - momentum) * online."""
        theirs: list[Tensor] = [
            *self.target_encoder.parameters(),
            *self.target_projector.parameters(),
        ]
        ours: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(theirs, ours, 1 - momentum)


def _distance(online: Tensor, target: Tensor) -> Tensor:
    """||q - z||^2 of the two unit vectors: (B,). Grill et al. 2020, Eq. 2."""
    return 2 + 2 * cosine(online, target)
