"""Saliency against hand-drawn masks: how well SCDA's map separates the animal from the rest."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.views_and_maps import ViewMaps
from salmask.data.decode import decode
from salmask.data.resample import resample


def table(network: ViewMaps, pets: Path, levels: Sequence[int]) -> str:
    """AUC and IoU in Markdown, means over images. Maps are enlarged bilinearly to the mask.

    The ring of edge pixels (3) is left out, or counted as animal. Images without any animal or any
    background in their mask are left out.
    """
    masks = sorted((pets / "trimaps").rglob("*.png"))
    lines = [
        "| level | edges | AUC | IoU at the mean | box of that area | IoU at mean - 0.6 std | "
        "box of that area | everything |",
        "|---|---" + "|--:" * 6 + "|",
    ]
    used = 0
    for level in levels:
        result = [scores for path in masks if (scores := _scores(network, path, level, pets))]
        for edges in ("left out", "animal"):
            means = np.mean([scores[edges] for scores in result], axis=0)
            numbers = " | ".join(f"{mean:.3f}" for mean in means)
            lines.append(f"| {level} | {edges} | {numbers} |")
        used = len(result)
    return "\n".join([*lines, "", f"{used} of {len(masks)} images show both."])


def _scores(network: ViewMaps, mask: Path, level: int, pets: Path) -> dict[str, list[float]] | None:
    trimap = torch.from_numpy(np.array(Image.open(mask)))
    if not ((trimap == 1).any() and (trimap == 2).any()):
        return None
    photo = pets / "images" / mask.relative_to(pets / "trimaps").with_suffix(".jpg")
    raw = network(resample(decode(photo), (level, level))[None])
    size = (int(trimap.shape[0]), int(trimap.shape[1]))
    activation = F.interpolate(raw[None], size=size, mode="bilinear", align_corners=False)[0, 0]
    every = torch.ones_like(trimap, dtype=torch.bool)
    cases = {"left out": (trimap == 1, trimap != 3), "animal": (trimap != 2, every)}
    result = {}
    for edges, (animal, known) in cases.items():
        some = known & _every_other(known)  # AUC sorts all pixels; a quarter of them is enough
        scores = [float(roc_auc_score(animal[some].numpy(), activation[some].numpy()))]
        for threshold in (0.0, 0.6):
            salient = activation >= raw.mean() - threshold * raw.std(correction=0)
            scores += [_iou(salient, animal, known), _iou(_box(salient), animal, known)]
        result[edges] = [*scores, _iou(every, animal, known)]
    return result


def _every_other(mask: Tensor) -> Tensor:
    some = torch.zeros_like(mask)
    some[::2, ::2] = True
    return some


def _iou(result: Tensor, expected: Tensor, known: Tensor) -> float:
    both, either = (result & expected & known).sum(), ((result | expected) & known).sum()
    return float(both / either.clamp(min=1))


def _box(result: Tensor) -> Tensor:
    """A centred box with the aspect ratio of the image and the area of `result`."""
    high, wide = result.shape
    side = float(result.float().mean()) ** 0.5
    top, left = round(high * (1 - side) / 2), round(wide * (1 - side) / 2)
    box = torch.zeros_like(result)
    box[top : high - top, left : wide - left] = True
    return box
