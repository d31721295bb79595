"""Momentum Contrast: v2 (Chen et al. 2020b), and v1 (He et al. 2020) with `head: linear`."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from salmask.distributed import gather, local_rows, world_size
from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import mlp
from salmask.errors import UserError
from salmask.frameworks import BaseFramework
from salmask.losses import first_wins, info_nce_logits, lambda_mix
from salmask.params.encoder import EncoderConfig
from salmask.shapes import Views, Wiring


class Framework(BaseFramework):
    """A query encoder, a key encoder that is its moving average, and a queue of past keys.

    A step: momentum update, queries, keys, hard negatives, logits, update of the queue. The buffer
    `queue` is (D,K) float32 and equal in all processes; new keys replace the oldest.

    Args:
        encoder: the section `encoder`.
        wiring: result of `check`.
        dim: dimensions of the embedding (D).
        hidden: hidden units of the projector; None for as many as features.
        temperature: of the loss.
        queue: number of keys in the queue (K).
        momentum: of the moving average.
        penalty: factor of the similarity with hard negatives (rho in Chin et al. 2024).
        bn_group: samples that share batch-norm statistics; 0 for all.
        head: projector, `mlp` (v2) or `linear` (v1).
        symmetric: whether each of the two views is both query and key. Both keys enter the queue.
            Keys of further views never do.
    """

    queue: Tensor
    cursor: Tensor

    def __init__(
        self,
        encoder: EncoderConfig,
        wiring: Wiring,
        *,
        dim: int = 128,
        hidden: int | None = 2048,
        temperature: float = 0.2,
        queue: int = 65536,
        momentum: float = 0.999,
        penalty: float = 2.0,
        bn_group: int = 32,
        head: Literal["mlp", "linear"] = "mlp",
        symmetric: bool = False,
    ) -> None:
        super().__init__(encoder, wiring)
        self.keys_per_image = 2 if symmetric else 1
        self.temperature, self.momentum, self.penalty = temperature, momentum, penalty
        self.bn_group = bn_group
        self.encoder = build_encoder(encoder, bn_group)
        features = feature_dim(encoder)
        middle = [hidden or features] if head == "mlp" else []
        self.projector = mlp([features, *middle, dim], norm=False)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue), dim=0))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    @classmethod
    def check(cls, batch: int, options: Mapping[str, Any]) -> Wiring:
        """The wiring. Raises UserError when the batches do not fill the queue evenly."""
        symmetric, queue = options["symmetric"], options["queue"]
        keys = batch * (2 if symmetric else 1)
        if queue % keys:
            raise UserError(
                f"framework.queue: {queue} is not a multiple of {'twice ' if symmetric else ''}"
                f"train.batch ({batch}), so batches do not fill the queue evenly; choose "
                f"{queue // keys * keys or keys}"
            )
        version = "MoCo v2" if options["head"] == "mlp" else "MoCo v1"
        return Wiring(
            "moco",
            f"symmetric {version}" if symmetric else version,
            roles="both" if symmetric else "query",
            hard_negatives=True,
            published=version == "MoCo v2" and not symmetric,
            target_encoder=True,
        )

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step: momentum update, losses, update of the queue. He et al. 2020, Alg. 1."""
        self._update_key_encoder()
        keys = self._keys(views)
        metrics = self._compare(views, keys)
        newest = list(keys.values())[: self.keys_per_image]
        self._enqueue(torch.cat([gather(key) for key in newest]))
        return metrics

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss () and metrics ().

        accuracy: share of queries that are more similar to their key than to all keys in the queue.
        """
        return self._compare(views, self._keys(views))

    def _compare(self, views: Views, keys: Mapping[int, Tensor]) -> dict[str, Tensor]:
        queue = self.queue.clone()  # the backward pass needs it after `_enqueue`

        def logits(query: Tensor, key: Tensor, negative: Tensor | None = None) -> Tensor:
            return info_nce_logits(
                query,
                key,
                queue,
                temperature=self.temperature,
                hard_negative=negative,
                penalty=self.penalty,
            )

        queries = {i: self._query(views.images[i]) for i in views.online}
        negatives = self._negatives(views)
        compared = [logits(queries[i], keys[j], negatives.get(j)) for i, j, _ in views.pairs]
        terms = [
            weight * first_wins(x).mean()
            for x, (_, _, weight) in zip(compared, views.pairs, strict=True)
        ]
        for mixed in views.mixed:
            query = self._query(mixed.images)
            terms += [
                lambda_mix(first_wins(logits(query, keys[1][rows])), share)
                for rows, share in mixed.positives
            ]
        loss = torch.stack(terms).sum()
        i, j, _ = views.pairs[0]
        with torch.no_grad():
            best = compared[0][:, : 1 + queue.shape[1]].argmax(dim=1)
            metrics = {
                "loss": loss,
                "accuracy": (best == 0).float().mean(),
                "positive_similarity": (queries[i] * keys[j]).sum(dim=1).mean(),
            }
            if j in negatives:
                similar = (queries[i][:, None] * negatives[j]).sum(dim=2)
                metrics["negative_similarity"] = similar.mean()
        return metrics

    def _query(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,D), of unit length."""
        return F.normalize(self.projector(self.encoder(images)).float(), dim=1)

    def _key(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,D), of unit length."""
        return F.normalize(self.key_projector(self.key_encoder(images)).float(), dim=1)

    @torch.no_grad()
    def _keys(self, views: Views) -> dict[int, Tensor]:
        """Keys (B,D) by view. Their batch-norm groups differ from those of the queries, so that the
        two share no statistics (He et al. 2020, Sec. 3.3)."""
        if not self.bn_group and world_size() > 1:  # one group: shuffling would change nothing
            return {view: self._key(views.images[view]) for view in views.targets}
        keys = {}
        for view in views.targets:
            shuffled = self._key(gather(views.images[view])[local_rows(views.shuffle)])
            keys[view] = local_rows(gather(shuffled)[torch.argsort(views.shuffle)])
        return keys

    @torch.no_grad()
    def _negatives(self, views: Views) -> dict[int, Tensor]:
        """Embedded hard negatives (B,n,D) by the view that they were made from. They never enter
        the queue."""
        return {
            view: torch.stack([self._key(images) for images in negatives], dim=1)
            for view, negatives in views.negatives.items()
        }

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        """key parameters <- momentum * key + (1 - momentum) * query (He et al. 2020, Eq. 2)."""
        key: list[Tensor] = [*self.key_encoder.parameters(), *self.key_projector.parameters()]
        query: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(key, query, 1 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Writes the keys (B,D) of all processes over the oldest keys."""
        start = int(self.cursor)
        self.queue[:, start : start + len(keys)] = keys.T
        self.cursor.copy_((self.cursor + len(keys)) % self.queue.shape[1])
