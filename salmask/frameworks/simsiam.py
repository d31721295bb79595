"""SimSiam (Chen & He 2021)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import mlp
from salmask.frameworks import BaseFramework
from salmask.losses import cosine, lambda_mix, spread
from salmask.params.encoder import EncoderConfig
from salmask.params.ranges import Few, NonNegativeInt, Units
from salmask.shapes import Views, Wiring


class Framework(BaseFramework):
    """One network, trained to predict its own projection of another view without a gradient.

    Args:
        encoder: the section `encoder`.
        wiring: result of `check`.
        dim: output dimensions of projector and predictor.
        hidden: hidden units of the predictor.
        layers: linear layers of the projector.
        bn_group: samples that share batch-norm statistics; 0 for all.
    """

    constant_rate: ClassVar[tuple[str, ...]] = ("predictor",)

    def __init__(
        self,
        encoder: EncoderConfig,
        wiring: Wiring,
        *,
        dim: Units = 2048,
        hidden: Units = 512,
        layers: Few = 3,
        bn_group: NonNegativeInt = 32,
    ) -> None:
        super().__init__(encoder, wiring)
        self.encoder = build_encoder(encoder, bn_group, zero_init=True)
        sizes = [feature_dim(encoder), *[dim] * layers]
        self.projector = mlp(sizes, norm=True, last="plain_norm", bn_group=bn_group)
        self.predictor = mlp([dim, hidden, dim], norm=True, bn_group=bn_group)

    @classmethod
    def check(cls, batch: int, options: Mapping[str, Any]) -> Wiring:
        return Wiring("simsiam", "SimSiam", roles="both", weight=0.5)

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step: the losses. Chen & He 2021, Alg. 1."""
        return self.losses(views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss () and metrics ().

        spread: 1 for projections in random directions, 0 when all projections are equal.
        """
        online = {i: self._project(views.images[i]) for i in views.online}
        targets = {
            j: online[j].detach() if j in online else self._target(views.images[j])
            for j in views.targets
        }
        predicted = {i: self.predictor(z).float() for i, z in online.items()}
        terms = [w * cosine(predicted[i], targets[j]).mean() for i, j, w in views.pairs]
        for mixed in views.mixed:
            prediction = self.predictor(self._project(mixed.images)).float()
            terms += [
                lambda_mix(cosine(prediction, targets[1][rows]), share)
                for rows, share in mixed.positives
            ]
        loss = torch.stack(terms).sum()
        i, j, _ = views.pairs[0]
        with torch.no_grad():
            return {
                "loss": loss,
                "positive_similarity": -cosine(predicted[i], targets[j]).mean(),
                "spread": spread(targets[j]),
            }

    def _project(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,D)."""
        return self.projector(self.encoder(images))

    @torch.no_grad()
    def _target(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,D), without a gradient."""
        return self._project(images)
