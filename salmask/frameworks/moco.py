"""Momentum Contrast: v2 (Chen et al. 2020b), and v1 (He et al. 2020) with `head: linear`."""

import copy
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.distributed import gather, local_rows, world_size
from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.encoders.heads import mlp
from salmask.errors import UserError
from salmask.losses import first_wins, info_nce_logits, lambda_mix
from salmask.params.encoder import EncoderConfig
from salmask.shapes import Views, Wiring


class Framework(nn.Module):
    """A query encoder that learns, a key encoder that follows it, a queue of past keys.

    queue: (D,K) float32, the newest keys in place of the oldest; equal in all processes. A step:
    momentum update, query forward, key forward, hard-negative forwards, logits, enqueue once.
    symmetric: both views are query and key, and both enter the queue; further views do not.
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
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        self.keys_per_image = 2 if symmetric else 1
        keys = self.keys_per_image * batch
        if queue % keys:
            raise UserError(
                f"framework.queue: {queue} is not a multiple of {'twice ' if symmetric else ''}"
                f"train.batch ({batch}), so keys would wrap around in mid-batch; choose "
                f"{queue // keys * keys or keys}"
            )
        self.temperature, self.momentum, self.penalty = temperature, momentum, penalty
        name = "moco v2" if head == "mlp" else "moco v1"
        self.wiring = Wiring(
            f"symmetric {name}" if symmetric else name,
            roles="both" if symmetric else "query",
            hard_negatives=True,
        )
        self.bn_group = bn_group
        self.encoder = build_encoder(encoder, bn_group)
        features = feature_dim(encoder)
        middle = [hidden or features] if head == "mlp" else []
        self.projector = mlp([features, *middle, dim], norm=False)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue), dim=0))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step. progress: share of the training done."""
        self._follow()
        keys = self._keys(views)
        seen = self._compare(views, keys)
        newest = list(keys.values())[: self.keys_per_image]
        self._enqueue(torch.cat([gather(key) for key in newest]))
        return seen

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss () and what to watch.

        accuracy: how often the key beats the whole queue (the hard negative left aside).
        """
        return self._compare(views, self._keys(views))

    def _compare(self, views: Views, keys: Mapping[int, Tensor]) -> dict[str, Tensor]:
        queue = self.queue.clone()  # the graph keeps what enqueueing overwrites

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
        found = [logits(queries[i], keys[j], negatives.get(j)) for i, j, _ in views.pairs]
        terms = [w * first_wins(x).mean() for x, (_, _, w) in zip(found, views.pairs, strict=True)]
        for mixed in views.mixed:
            query = self._query(mixed.images)
            terms += [
                lambda_mix(first_wins(logits(query, keys[1][rows])), share)
                for rows, share in mixed.positives
            ]
        loss = torch.stack(terms).sum()
        i, j, _ = views.pairs[0]
        with torch.no_grad():
            best = found[0][:, : 1 + queue.shape[1]].argmax(dim=1)
            seen = {
                "loss": loss,
                "accuracy": (best == 0).float().mean(),
                "positive_similarity": (queries[i] * keys[j]).sum(dim=1).mean(),
            }
            if j in negatives:
                similar = (queries[i][:, None] * negatives[j]).sum(dim=2)
                seen["negative_similarity"] = similar.mean()
        return seen

    def _query(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,D), of unit length."""
        return F.normalize(self.projector(self.encoder(images)).float(), dim=1)

    def _key(self, images: Tensor) -> Tensor:
        return F.normalize(self.key_projector(self.key_encoder(images)).float(), dim=1)

    @torch.no_grad()
    def _keys(self, views: Views) -> dict[int, Tensor]:
        """Keys (B,D) in other batch-norm groups than their queries: no shared statistics."""
        if not self.bn_group and world_size() > 1:  # one group: nothing to send images around for
            return {view: self._key(views.images[view]) for view in views.targets}
        found = {}
        for view in views.targets:
            shuffled = self._key(gather(views.images[view])[local_rows(views.shuffle)])
            found[view] = local_rows(gather(shuffled)[torch.argsort(views.shuffle)])
        return found

    @torch.no_grad()
    def _negatives(self, views: Views) -> dict[int, Tensor]:
        """Hard negatives (B,n,D) of the views they are cut from; they never enter the queue."""
        return {
            view: torch.stack([self._key(images) for images in several], dim=1)
            for view, several in views.negatives.items()
        }

    @torch.no_grad()
    def _follow(self) -> None:
        """key parameters <- momentum * key + (1 - momentum) * query (He et al. 2020, Eq. 2)."""
        theirs: list[Tensor] = [*self.key_encoder.parameters(), *self.key_projector.parameters()]
        ours: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(theirs, ours, 1 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        start = int(self.cursor)
        self.queue[:, start : start + len(keys)] = keys.T
        self.cursor.copy_((self.cursor + len(keys)) % self.queue.shape[1])
