"""SimCLR (Chen et al. 2020a), with hard negatives as in Chin et al. 2024."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import mlp
from salmask.frameworks import BaseFramework
from salmask.losses import in_batch, lambda_mix, nt_xent_logits
from salmask.params.encoder import EncoderConfig
from salmask.params.ranges import Finite, NonNegativeInt, Positive, Units
from salmask.shapes import Views, Wiring


class Framework(BaseFramework):
    """One encoder that contrasts two views of an image with all views of the other images.

    All views are embedded in one forward pass, also the hard negatives, which get a gradient.

    Args:
        encoder: the section `encoder`.
        wiring: result of `check`.
        dim: dimensions of the embedding.
        hidden: hidden units of the projector; None for as many as features.
        temperature: of the loss.
        penalty: factor of the similarity with hard negatives (rho in Chin et al. 2024).
        bn_group: samples that share batch-norm statistics; 0 for all.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        wiring: Wiring,
        *,
        dim: Units = 128,
        hidden: Units | None = 2048,
        temperature: Positive = 0.1,
        penalty: Finite = 2.0,
        bn_group: NonNegativeInt = 32,
    ) -> None:
        super().__init__(encoder, wiring)
        self.temperature, self.penalty = temperature, penalty
        self.encoder = build_encoder(encoder, bn_group)
        features = feature_dim(encoder)
        self.projector = mlp(
            [features, hidden or features, dim], norm=True, last="norm", bn_group=bn_group
        )

    @classmethod
    def check(cls, batch: int, options: Mapping[str, Any]) -> Wiring:
        return Wiring("simclr", "SimCLR", roles="pairs", hard_negatives=True)

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step: the losses. Chen et al. 2020a, Alg. 1."""
        return self.losses(views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss () and metrics ().

        accuracy: share of views that are most similar to the other view of their image.
        """
        embedded = self._embed([*views.images, *(n for s in views.negatives.values() for n in s)])
        rest = iter(embedded[len(views.images) :])
        negatives = {
            view: torch.stack([next(rest) for _ in images], dim=1)
            for view, images in views.negatives.items()
        }
        comparisons = [
            nt_xent_logits(
                embedded[i],
                embedded[j],
                temperature=self.temperature,
                hard_negative=negatives.get(j),
                penalty=self.penalty,
            )
            for i, j, _ in views.pairs
        ]
        terms = [
            weight * F.cross_entropy(logits, positive)
            for (logits, positive), (_, _, weight) in zip(comparisons, views.pairs, strict=True)
        ]
        for mixed in views.mixed:
            (query,) = self._embed([mixed.images])
            terms += [
                lambda_mix(in_batch(query, embedded[1], rows, temperature=self.temperature), share)
                for rows, share in mixed.positives
            ]
        loss = torch.stack(terms).sum()
        i, j, _ = views.pairs[0]
        with torch.no_grad():
            logits, positive = comparisons[0]
            others = logits[:, : logits.shape[1] - (negatives[j].shape[1] if negatives else 0)]
            metrics = {
                "loss": loss,
                "accuracy": (others.argmax(dim=1) == positive).float().mean(),
                "positive_similarity": (embedded[i] * embedded[j]).sum(dim=1).mean(),
            }
            if j in negatives:
                similar = (embedded[i][:, None] * negatives[j]).sum(dim=2)
                metrics["negative_similarity"] = similar.mean()
        return metrics

    def _embed(self, images: list[Tensor]) -> tuple[Tensor, ...]:
        """Views (B,C,H,W) each -> (B,D) each, of unit length."""
        projected = self.projector(self.encoder(torch.cat(images))).float()
        return F.normalize(projected, dim=1).chunk(len(images))
