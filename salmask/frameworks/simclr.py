"""SimCLR (Chen et al. 2020a), with hard negatives as Chin et al. 2024 add them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import mlp
from salmask.losses import in_batch, lambda_mix, nt_xent_logits
from salmask.params.encoder import EncoderConfig
from salmask.shapes import Views, Wiring


class Framework(nn.Module):
    """One encoder; every view of the batch is told from all other images' views.

    Everything is embedded in one forward, the hard negatives too, which get a gradient.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        batch: int,
        steps: int,
        *,
        dim: int = 128,
        hidden: int | None = 2048,
        temperature: float = 0.1,
        penalty: float = 2.0,
        bn_group: int = 32,
    ) -> None:
        super().__init__()
        self.temperature, self.penalty = temperature, penalty
        self.wiring = Wiring("simclr", roles="pairs", hard_negatives=True)
        self.encoder = build_encoder(encoder, bn_group)
        features = feature_dim(encoder)
        self.projector = mlp(
            [features, hidden or features, dim], norm=True, last="norm", bn_group=bn_group
        )

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step."""
        return self.losses(views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss () and what to watch.

        accuracy: how often the other view of an image beats all other images' views.
        """
        embedded = self._embed([*views.images, *(n for s in views.negatives.values() for n in s)])
        rest = iter(embedded[len(views.images) :])
        negatives = {
            view: torch.stack([next(rest) for _ in several], dim=1)
            for view, several in views.negatives.items()
        }
        found = [
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
            for (logits, positive), (_, _, weight) in zip(found, views.pairs, strict=True)
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
            logits, positive = found[0]
            others = logits[:, : logits.shape[1] - (negatives[j].shape[1] if negatives else 0)]
            seen = {
                "loss": loss,
                "accuracy": (others.argmax(dim=1) == positive).float().mean(),
                "positive_similarity": (embedded[i] * embedded[j]).sum(dim=1).mean(),
            }
            if j in negatives:
                similar = (embedded[i][:, None] * negatives[j]).sum(dim=2)
                seen["negative_similarity"] = similar.mean()
        return seen

    def _embed(self, images: list[Tensor]) -> tuple[Tensor, ...]:
        """Views (B,C,H,W) each -> (B,D) each, of unit length."""
        projected = self.projector(self.encoder(torch.cat(images))).float()
        return F.normalize(projected, dim=1).chunk(len(images))
