"""A split in which no image has a label is left out by the protocols that score labels."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from salmask.encoders.backbones import build_encoder
from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.evaluate import finetune, knn, linear, linear_fast
from salmask.params.encoder import EncoderConfig

SMALL = EncoderConfig("resnet10", 8, "small")
TRAINED = Encoder(build_encoder(SMALL, seed=0), SMALL, InputSpec(8, 8, None)).eval()
SHORT = {"epochs": 1, "batch": 4, "milestones": (), "images": "resident"}


@pytest.mark.parametrize(
    ("protocol", "options", "metric"),
    [
        (knn, {"k": (3,)}, "knn3_top1"),
        (linear_fast, {"iterations": 3}, "linear_fast_top1"),
        (linear, SHORT, "linear_top1"),
        (finetune, SHORT | {"shares": (100,)}, "finetune100_top1"),
    ],
)
def test_only_splits_with_labels_have_scores(
    make_manifest: Any, job: Any, protocol: ModuleType, options: dict[str, Any], metric: str
) -> None:
    pixels = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(0)).byte()
    shown = [pixels.numpy(), np.full((8, 8, 3), 200, np.uint8)]
    rows = make_manifest(
        [(shown[i % 2], i % 2, "train") for i in range(12)]
        + [(shown[i % 2], i % 2, "val") for i in range(4)]
        + [(shown[i % 2], -1, "unknown") for i in range(4)]
    )
    result = protocol.run({"trained": TRAINED}, rows, job, **options)
    assert metric in result and not any(name.startswith("unknown") for name in result)
