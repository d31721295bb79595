"""Supervised training, the baseline that reads the labels (He et al. 2016; Jing et al. 2022,
Sec. 5.1)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.encoders.backbones import build_encoder, feature_dim
from salmask.frameworks import BaseFramework
from salmask.params.encoder import EncoderConfig
from salmask.params.ranges import NonNegativeInt, Units
from salmask.shapes import Views, Wiring


class Framework(BaseFramework):
    """An encoder and a linear classifier, trained on the classes of the training images.

    The classifier is not saved. Evaluations read the encoder, as for every other framework.

    Args:
        encoder: the section `encoder`.
        wiring: result of `check`.
        classes: number of classes of the data set.
        bn_group: samples that share batch-norm statistics; 0 for all.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        wiring: Wiring,
        *,
        classes: Units,
        bn_group: NonNegativeInt = 32,
    ) -> None:
        super().__init__(encoder, wiring)
        self.encoder = build_encoder(encoder, bn_group)
        self.classifier = nn.Linear(feature_dim(encoder), classes)

    @classmethod
    def check(cls, batch: int, options: Mapping[str, Any]) -> Wiring:
        return Wiring("supervised", "supervised training", classes=options["classes"])

    def forward(self, views: Views, progress: float) -> dict[str, Tensor]:
        """One step: the losses."""
        return self.losses(views)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """The loss (), the mean cross entropy of the queries, and a metric ().

        top1: share of queries whose class has the highest score.

        Raises ValueError for views without labels.
        """
        if views.labels is None:
            raise ValueError("the views have no labels, which supervised training needs")
        query, _, _ = views.pairs[0]
        scores = self.classifier(self.encoder(views.images[query])).float()
        with torch.no_grad():
            top1 = (scores.argmax(dim=1) == views.labels).float().mean()
        return {"loss": F.cross_entropy(scores, views.labels), "top1": top1}
