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
from salmask.encoders.norms import without_statistics
from salmask.errors import UserError
from salmask.frameworks import BaseFramework
from salmask.losses import first_wins, info_nce_logits, lambda_mix
from salmask.params.encoder import EncoderConfig
from salmask.params.ranges import Finite, NonNegativeInt, Positive, Queue, Share, Units
from salmask.shapes import Views, Wiring


class Framework(BaseFramework):
    """A query encoder, a key encoder that is its moving average, and a queue of past keys.

    A step: momentum update, queries, keys, hard negatives, logits; after the backward pass, update
    of the queue. The buffer `queue` is (D,K) float32 and equal in all processes; new keys replace
    the oldest, from the column `cursor` on. The cursor is a number of the host, which need not ask
    the device for it, and part of the module's state.

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

    def __init__(
        self,
        encoder: EncoderConfig,
        wiring: Wiring,
        *,
        dim: Units = 128,
        hidden: Units | None = 2048,
        temperature: Positive = 0.2,
        queue: Queue = 65536,
        momentum: Share = 0.999,
        penalty: Finite = 2.0,
        bn_group: NonNegativeInt = 32,
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
        self.key_encoder = without_statistics(copy.deepcopy(self.encoder)).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue), dim=0))
        self.cursor = 0

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
        """One step: momentum update and losses. He et al. 2020, Alg. 1."""
        self._update_key_encoder()
        keys = self._keys(views)
        metrics = self._compare(views, keys)
        newest = list(keys.values())[: self.keys_per_image]
        self._newest = torch.cat([gather(key) for key in newest])
        return metrics

    @torch.no_grad()
    def finish_step(self) -> None:
        """Writes the keys of all processes over the oldest keys of the queue. The backward pass
        reads the queue, so this follows it."""
        count = len(self._newest)  # divides the length of the queue, see `check`
        self.queue[:, self.cursor : self.cursor + count] = self._newest.T
        self.cursor = (self.cursor + count) % self.queue.shape[1]

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.cursor)

    def set_extra_state(self, state: Tensor) -> None:
        self.cursor = int(state)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss () and metrics ().

        accuracy: share of queries that are more similar to their key than to all keys in the queue.
        """
        return self._compare(views, self._keys(views))

    def _compare(self, views: Views, keys: Mapping[int, Tensor]) -> dict[str, Tensor]:
        def logits(query: Tensor, key: Tensor, negative: Tensor | None = None) -> Tensor:
            return info_nce_logits(
                query,
                key,
                self.queue,
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
            best = compared[0][:, : 1 + self.queue.shape[1]].argmax(dim=1)
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
        """Keys (B,D) by view."""
        return {
            view: self._shuffled(views.images[view], views.shuffle[0]) for view in views.targets
        }

    @torch.no_grad()
    def _negatives(self, views: Views) -> dict[int, Tensor]:
        """Embedded hard negatives (B,n,D) by the view that they were made from. They never enter
        the queue."""
        return {
            view: torch.stack([self._shuffled(n, views.shuffle[1]) for n in negatives], dim=1)
            for view, negatives in views.negatives.items()
        }

    def _shuffled(self, images: Tensor, order: Tensor) -> Tensor:
        """Embeds images (B,C,H,W) in batch-norm groups of their own: (B,D), of unit length.

        Queries form groups in the order of the batch. With other groups, the similarity of a query
        with an embedding of the same image is not raised by statistics that the two share (He et
        al. 2020, Sec. 3.3).

        Args:
            images: the part of this process.
            order: permutation of the global batch.
        """
        if not self.bn_group and world_size() > 1:  # one group: shuffling would change nothing
            return self._key(images)
        device = images.device.type
        if world_size() > 1 and torch.is_autocast_enabled(device):  # the encoder would cast anyway
            images = images.to(torch.get_autocast_dtype(device))
        shuffled = gather(images)[local_rows(order)]
        embedded = self._key(shuffled.contiguous(memory_format=torch.channels_last))
        return local_rows(gather(embedded)[torch.argsort(order)])

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        """key parameters <- momentum * key + (1 - momentum) * query (He et al. 2020, Eq. 2)."""
        key: list[Tensor] = [*self.key_encoder.parameters(), *self.key_projector.parameters()]
        query: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(key, query, 1 - self.momentum)
