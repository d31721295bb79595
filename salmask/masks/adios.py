"""ADIOS (Shi et al. 2022): masks that are learned by an adversary of the encoder."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from salmask.errors import UserError
from salmask.masks.unet import Norm, UNet
from salmask.randomness import Draws
from salmask.shapes import Pair, Views, Wiring

_CLOSEST = 1e-6  # to all or nothing that a mask's mean is taken for, where the penalty is infinite


class Masker(nn.Module):
    """N masks per image that make the encoder's task hard; the encoder learns in spite of them.

    A masked view is x * (1 - m), 0 after normalisation. The encoder minimises sum_n L_n with the
    masks as they are; the masker maximises it, less a penalty for masks that cover nothing or all.
    single: ADIOS-s, one of the masks drawn for each image. penalty: of uneven masks (alpha1).
    entropy: of undecided ones (alpha2). lr, momentum, weight_decay: of the masker's own SGD, whose
    rate follows the encoder's schedule. base, norm: of the U-Net.
    """

    def __init__(
        self,
        side: int,
        wiring: Wiring,
        *,
        masks: int = 4,
        single: bool = True,
        penalty: float = 0.75,
        entropy: float = 0.0,
        lr: float = 0.499,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        base: int = 8,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        if masks < 2:
            raise UserError(
                f"mask.masks: {masks} leaves nothing to divide: ADIOS needs 2 or more masks"
            )
        for option, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise UserError(f"mask (name: adios): {option}: must be at least 0, got {value:g}")
        if base < 1:
            raise UserError(f"mask (name: adios): base: must be at least 1, got {base}")
        self.count, self.single, self.wiring = masks, single, wiring
        self.penalty, self.entropy = penalty, entropy
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        try:
            self.unet = UNet(side, masks, base, norm)
        except ValueError as error:
            raise UserError(f"mask (name: adios): view.size: {error}") from None

    def forward(self, images: Tensor) -> Tensor:
        """Soft masks (B,N,H,W) of normalised views (B,3,H,W); they add up to 1 in every pixel."""
        masks: Tensor = self.unet(images)
        return masks

    def views(self, pair: Pair, draws: Draws, shuffle: Tensor) -> Views:
        """What the encoder trains on; the masks get no gradient."""
        with torch.no_grad():
            return self._views(pair, draws, shuffle, self)

    def loss(
        self,
        losses: Callable[[Views], dict[str, Tensor]],
        pair: Pair,
        draws: Draws,
        shuffle: Tensor,
    ) -> dict[str, Tensor]:
        """What the masker minimises, (), and what to watch. losses: the framework's, whose
        parameters should be frozen. Shi et al. 2022, Eq. 5 and 7."""
        made: list[Tensor] = []

        def kept(images: Tensor) -> Tensor:
            made.append(self(images))
            return made[-1]

        task = losses(self._views(pair, draws, shuffle, kept))["loss"]
        masks = torch.cat(made)
        cost = self.penalty * unevenness(masks)
        if self.entropy:
            cost = cost + self.entropy * undecidedness(masks)
        return {"masker_loss": cost - task, "mask_mean_max": masks.mean(dim=(2, 3)).amax(1).mean()}

    def _views(
        self, pair: Pair, draws: Draws, shuffle: Tensor, masker: Callable[[Tensor], Tensor]
    ) -> Views:
        """MoCo, SimCLR: maskings of the query against the key. BYOL: maskings of the second view
        as query and as target of the first. SimSiam: each direction masks its own query."""
        wiring = self.wiring
        if wiring.name == "byol":
            hidden = self._hidden(pair.key, draws.fork("adios.key"), masker)
            ids = range(1, 1 + len(hidden))
            both = [(0, n, wiring.weight) for n in ids] + [(n, 0, wiring.weight) for n in ids]
            return Views((pair.query, *hidden), tuple(both), shuffle)
        hidden = self._hidden(pair.query, draws.fork("adios.query"), masker)
        images = [hidden[0], pair.key, *hidden[1:]]
        pairs = [(n, 1, wiring.weight) for n in range(len(images)) if n != 1]
        if wiring.roles == "both":
            first = len(images)
            other = self._hidden(pair.key, draws.fork("adios.key"), masker)
            images += [pair.query, *other]
            pairs += [(n, first, wiring.weight) for n in range(first + 1, len(images))]
        return Views(tuple(images), tuple(pairs), shuffle)

    def _hidden(
        self, images: Tensor, draws: Draws, masker: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """N maskings of a view, or one with a mask drawn per image: (B,3,H,W) each."""
        masks = masker(images)
        if not self.single:
            return [images * (1 - mask[:, None]) for mask in masks.unbind(1)]
        drawn = (draws.uniform("single", 1)[:, 0] * self.count).long()
        chosen = masks[torch.arange(len(masks), device=masks.device), drawn]
        return [images * (1 - chosen[:, None])]


def unevenness(masks: Tensor) -> Tensor:
    """sum_n mean_batch 1 / sin(pi * mean(m_n)): (B,N,H,W) -> (). N at the least, where each mask
    covers half of its image. Shi et al. 2022, Eq. 6."""
    share = masks.mean(dim=(2, 3)).clamp(_CLOSEST, 1 - _CLOSEST)
    return (1 / torch.sin(torch.pi * share)).mean(dim=0).sum()


def undecidedness(masks: Tensor) -> Tensor:
    """The mean entropy, in nats, of which mask a pixel belongs to: (B,N,H,W) -> ()."""
    return torch.special.entr(masks).sum(dim=1).mean()
