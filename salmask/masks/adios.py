"""ADIOS (Shi et al. 2022): masks that are learned by an adversary of the encoder."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from salmask.errors import UserError
from salmask.masks import LearnedMask, Mask
from salmask.masks.unet import Norm, UNet
from salmask.params.ranges import Finite, Momentum, NonNegative, TwoOrMore, Width
from salmask.pieces import in_pieces
from salmask.randomness import Draws
from salmask.shapes import Pair, Views, Wiring

_MIN_SHARE = 1e-6  # means of masks are clamped to this, since the penalty is infinite at 0 and 1


class Masker(LearnedMask):
    """A network that divides each image into N masks that make the encoder's task hard.

    A masked view is x * (1 - m), which is 0 under the mask. The encoder minimises sum_n L_n with
    fixed masks; the masker maximises it, minus a penalty for masks that cover nothing or all.

    Args:
        side: side of the views in px.
        wiring: of the framework.
        masks: N.
        single: ADIOS-s: one mask, drawn for each image, instead of all N.
        penalty: weight of `unevenness` (alpha1 in the paper).
        entropy: weight of `mean_entropy` (alpha2 in the paper).
        lr: learning rate of the masker's own SGD. It follows the encoder's schedule.
        momentum: of this SGD.
        weight_decay: of this SGD.
        base: channels of the U-Net's upper blocks.
        norm: normalisation in the U-Net.

    Raises UserError for a side that the U-Net cannot divide.
    """

    def __init__(
        self,
        side: int,
        wiring: Wiring,
        *,
        masks: TwoOrMore = 4,
        single: bool = True,
        penalty: Finite = 0.75,
        entropy: Finite = 0.0,
        lr: NonNegative = 0.499,
        momentum: Momentum = 0.9,
        weight_decay: NonNegative = 1e-4,
        base: Width = 8,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        self.count, self.single, self.wiring = masks, single, wiring
        self.penalty, self.entropy = penalty, entropy
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        try:
            self.unet = UNet(side, masks, base, norm)
        except ValueError as error:
            raise UserError(f"view.size: {error}") from None

    def forward(self, images: Tensor) -> Tensor:
        """Soft masks (B,N,H,W) of normalised views (B,3,H,W). They sum to 1 in every pixel.

        Always in float32, so that the steps of encoder and masker see the same masks: the views of
        the encoder's step are made outside of autocast, the masker's step runs inside.
        """
        with torch.autocast(images.device.type, enabled=False):
            masks: Tensor = self.unet(images)
        return masks

    def views(self, pair: Pair, draws: Draws, shuffle: Tensor) -> Views:
        """The views that the encoder trains on. The masks get no gradient."""
        with torch.no_grad():
            return self._views(pair, draws, shuffle, partial(in_pieces, self))

    def loss(
        self,
        losses: Callable[[Views], dict[str, Tensor]],
        pair: Pair,
        draws: Draws,
        shuffle: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of the masker. Shi et al. 2022, Eq. 5 and 7.

        Returns `masker_loss` (), and `mask_mean_max` (), the mean over images of the share of the
        largest mask.
        """
        computed: list[Tensor] = []

        def record_masks(images: Tensor) -> Tensor:
            computed.append(self(images))
            return computed[-1]

        task = losses(self._views(pair, draws, shuffle, record_masks))["loss"]
        masks = torch.cat(computed)
        cost = self.penalty * unevenness(masks)
        if self.entropy:
            cost = cost + self.entropy * mean_entropy(masks)
        return {"masker_loss": cost - task, "mask_mean_max": masks.mean(dim=(2, 3)).amax(1).mean()}

    def _views(
        self, pair: Pair, draws: Draws, shuffle: Tensor, masker: Callable[[Tensor], Tensor]
    ) -> Views:
        """The masked views and their comparisons.

        MoCo and SimCLR compare the masked query with the key. SimSiam masks the query of each
        direction. BYOL masks the second view only, as query and as target of the first view.
        """
        wiring = self.wiring
        if wiring.learned_masks == "second_view":
            hidden = self._masked(pair.key, draws.fork("adios.key"), masker)
            ids = range(1, 1 + len(hidden))
            both = [(0, n, wiring.weight) for n in ids] + [(n, 0, wiring.weight) for n in ids]
            return Views((pair.query, *hidden), tuple(both), shuffle)
        hidden = self._masked(pair.query, draws.fork("adios.query"), masker)
        images = [hidden[0], pair.key, *hidden[1:]]
        pairs = [(n, 1, wiring.weight) for n in range(len(images)) if n != 1]
        if wiring.roles == "both":
            first = len(images)
            other = self._masked(pair.key, draws.fork("adios.key"), masker)
            images += [pair.query, *other]
            pairs += [(n, first, wiring.weight) for n in range(first + 1, len(images))]
        return Views(tuple(images), tuple(pairs), shuffle)

    def _masked(
        self, images: Tensor, draws: Draws, masker: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """N maskings of a view, or one masking with a mask drawn per image: (B,3,H,W) each."""
        masks = masker(images)
        if not self.single:
            return [images * (1 - mask[:, None]) for mask in masks.unbind(1)]
        index = (draws.uniform("single", 1)[:, 0] * self.count).long()
        chosen = masks[torch.arange(len(masks), device=masks.device), index]
        return [images * (1 - chosen[:, None])]


def unevenness(masks: Tensor) -> Tensor:
    """sum_n mean_batch 1 / sin(pi * mean(m_n)): (B,N,H,W) -> ().

    The minimum is N, where each mask covers half of its image. Shi et al. 2022, Eq. 6.
    """
    share = masks.mean(dim=(2, 3)).clamp(_MIN_SHARE, 1 - _MIN_SHARE)
    return (1 / torch.sin(torch.pi * share)).mean(dim=0).sum()


def mean_entropy(masks: Tensor) -> Tensor:
    """The mean over pixels of the entropy of the masks, in nats: (B,N,H,W) -> ()."""
    return torch.special.entr(masks).sum(dim=1).mean()


MASK = Mask(
    Masker,
    label="ADIOS",
    learns=True,
    frameworks=("moco", "simclr", "byol", "simsiam"),
    extra_passes=lambda options: options["masks"],
)
