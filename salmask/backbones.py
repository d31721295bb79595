"""Encoders: torchvision's residual networks at any width, with stems for small images, and batch
norm over groups of samples."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from salmask.config import EncoderConfig

LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}
_REFERENCE_WIDTH = 64  # what torchvision builds


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of consecutive groups of `group` samples.

    What MoCo gets from one process per GPU, on any number of devices: a query cannot find its key
    by the statistics that the two share. The running statistics average over groups. In eval mode
    it is ordinary batch norm, and its state is that of `nn.BatchNorm2d`.
    """

    def __init__(self, features: int, group: int = 0) -> None:
        super().__init__(features)
        self.group = group  # 0: the whole batch is one group

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W). Raises ValueError in training when groups do not divide B."""
        if not self.training or not self.group or len(x) == self.group:
            return super().forward(x)
        if len(x) % self.group:
            raise ValueError(f"a batch of {len(x)} does not split into groups of {self.group}")
        parts = [self._normalised(part) for part in x.split(self.group)]
        self._update([stats for _, stats in parts])
        return torch.cat([out for out, _ in parts])

    def _normalised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One group, and its mean and unbiased variance (2,C)."""
        stats = torch.stack([x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])]).float()
        out = F.batch_norm(x, stats[0], stats[1], self.weight, self.bias, True, 1.0, self.eps)
        return out, stats

    @torch.no_grad()
    def _update(self, stats: list[Tensor]) -> None:
        mean, variance = torch.stack(stats).mean(dim=0)
        self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
        self.running_var.lerp_(variance, self.momentum)  # type: ignore[union-attr, arg-type]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]


class _Network(ResNet):
    """torchvision's ResNet with a first stage of `width` channels. Same parameter names."""

    def __init__(self, config: EncoderConfig, norm: partial[GroupedBatchNorm2d]) -> None:
        self.width = config.width
        block, layers = LAYERS[config.arch]
        super().__init__(block, layers, norm_layer=norm)
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(3, self.width, 7, stride=2, padding=3, bias=False)
        else:
            stride = 2 if config.stem == "small2" else 1
            self.conv1 = nn.Conv2d(3, self.width, 3, stride=stride, padding=1, bias=False)
            self.maxpool = nn.Identity()
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = norm(self.width)
        self.fc = nn.Identity()

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):  # type: ignore[no-untyped-def]
        if planes == _REFERENCE_WIDTH:  # the first stage: forget the stem that was built before it
            self.inplanes = self.width
        return super()._make_layer(
            block, planes * self.width // _REFERENCE_WIDTH, blocks, stride, dilate
        )


def build_encoder(config: EncoderConfig, bn_group: int = 0, seed: int | None = None) -> nn.Module:
    """An encoder with random weights: (B,3,H,W) -> pooled features (B,D).

    bn_group: samples that share training statistics, 0 for the whole batch. seed: of the weights;
    without one, torch's global generator decides.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return _Network(config, partial(GroupedBatchNorm2d, group=bn_group))


def feature_dim(config: EncoderConfig) -> int:
    """D of an encoder's pooled features."""
    return 8 * config.width * LAYERS[config.arch][0].expansion
