"""SimSiam (Chen & He 2021)."""

import torch
from torch import Tensor, nn

from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import mlp
from salmask.losses import cosine, lambda_mix, spread
from salmask.params.encoder import EncoderConfig
from salmask.shapes import Views, Wiring


class Framework(nn.Module):
    """One network whose prediction from one view meets its own projection of another, which gets
    no gradient. layers: of the projector."""

    constant_rate = ("predictor",)

    def __init__(
        self,
        encoder: EncoderConfig,
        batch: int,
        steps: int,
        *,
        dim: int = 2048,
        hidden: int = 512,
        layers: int = 3,
        bn_group: int = 32,
    ) -> None:
        super().__init__()
        self.wiring = Wiring("simsiam", roles="both", weight=0.5)
        self.encoder = build_encoder(encoder, bn_group, zero_init=True)
        sizes = [feature_dim(encoder), *[dim] * layers]
        self.projector = mlp(sizes, norm=True, last="plain_norm", bn_group=bn_group)
        self.predictor = mlp([dim, hidden, dim], norm=True, bn_group=bn_group)

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step."""
        return self.losses(views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss () and what to watch. spread: 1 when projections fill their space, 0 when all
        have become one."""
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
        return self._project(images)
