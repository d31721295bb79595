import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.errors import UserError
from salmask.masks.unet import Norm, UNet
from salmask.masks.wiring import wire_mask
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.shapes import Wiring

MOCO = Wiring("moco", "moco v2", hard_negatives=True)
SIDES = {32: 4, 64: 5, 96: 5, 224: 6}  # px -> floor(log2(px)) - 1
NORMS: tuple[Norm, ...] = ("group", "instance")


def build(side: int = 16, masks: int = 3, base: int = 4, norm: Norm = "group") -> UNet:
    """A U-Net whose norms scale and shift every channel differently."""
    torch.manual_seed(0)
    unet = UNet(side, masks, base, norm)
    for name, parameter in unet.named_parameters():
        if parameter.dim() == 1 and not name.startswith("middle"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return unet


def noise(count: int, side: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", SIDES)
def test_masks_have_the_size_of_the_view_and_add_up_to_one(side, norm):
    unet = build(side, masks=4, norm=norm)
    assert len(unet.down) == len(unet.up) == SIDES[side] == math.floor(math.log2(side)) - 1
    values = {}
    unet.middle.register_forward_hook(lambda _, inputs, __: values.update(flat=inputs[0].shape))
    with torch.no_grad():
        masks = unet(noise(2, side))
    assert masks.shape == (2, 4, side, side) and masks.dtype == torch.float32
    assert (masks > 0).all()
    torch.testing.assert_close(masks.sum(1), torch.ones(2, side, side))
    # halved between two blocks, so one halving fewer than blocks
    coarsest = side // 2 ** (SIDES[side] - 1)
    assert values["flat"] == (2, 2 * 4 * coarsest**2)


@pytest.mark.parametrize(
    ("side", "down", "up"),
    [
        (96, (8, 8, 16, 16, 16), (16, 16, 8, 8, 8)),
        (224, (8,) * 3 + (16,) * 3, (16,) * 2 + (8,) * 4),
    ],
)
def test_widths_are_those_of_the_public_code(side, down, up):
    unet = build(side, base=8)
    assert tuple(block[0].out_channels for block in unet.down) == down
    assert tuple(block[0].out_channels for block in unet.up) == up
    inner = [layer.out_features for layer in unet.middle if isinstance(layer, nn.Linear)]
    assert inner[:2] == [128, 128]


def reference(state: dict[str, Tensor], images: Tensor, blocks: int, norm: str) -> Tensor:
    """The forward pass from the weights alone: every other pixel, every pixel twice."""

    def block(name: str, x: Tensor) -> Tensor:
        x = F.conv2d(x, state[f"{name}.0.weight"], padding=1)
        groups = 8 if norm == "group" and x.shape[1] % 8 == 0 else 4
        parts = x.unflatten(1, (x.shape[1] if norm == "instance" else groups, -1))
        mean = parts.mean((2, 3, 4), keepdim=True)
        spread = parts.var((2, 3, 4), correction=0, keepdim=True)
        x = ((parts - mean) / torch.sqrt(spread + 1e-5)).flatten(1, 2)
        weight, bias = (state[f"{name}.1.{part}"][:, None, None] for part in ("weight", "bias"))
        return (x * weight + bias).clamp(min=0)

    x, maps = images, []
    for i in range(blocks):
        x = block(f"down.{i}", x if i == 0 else x[:, :, ::2, ::2])
        maps.append(x)
    flat = x.flatten(1)
    for i in (0, 2, 4):
        flat = (flat @ state[f"middle.{i}.weight"].T + state[f"middle.{i}.bias"]).clamp(min=0)
    x = flat.view_as(x)
    for i in range(blocks):
        x = x if i == 0 else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = block(f"up.{i}", torch.cat([x, maps[-1 - i]], 1))
    weight, bias = state["divide.weight"][:, :, 0, 0], state["divide.bias"]
    powers = (torch.einsum("nc,bchw->bnhw", weight, x) + bias[:, None, None]).exp()
    return powers / powers.sum(1, keepdim=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", [16, 24, 32])
def test_it_follows_the_slow_reference(side, norm):
    unet = build(side, norm=norm).double()
    images = noise(2, side).double()
    with torch.no_grad():
        expected = reference(unet.state_dict(), images, len(unet.down), norm)
        torch.testing.assert_close(unet(images), expected.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", [16, 32])
def test_gradients_reach_every_parameter(side, norm):
    unet = build(side, norm=norm)
    masks = unet(noise(4, side))
    (masks * torch.randn(masks.shape)).sum().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("norm", NORMS)
def test_an_images_masks_depend_on_no_other_image(norm):
    unet, images = build(norm=norm), noise(3, 16)
    alone = unet(images[1:2])
    changed = torch.cat([images[:1] * 9, images[1:2], images[2:] + 4])
    torch.testing.assert_close(unet(changed)[1:2], alone, atol=1e-6, rtol=1e-5)


def test_far_pixels_matter_through_the_perceptron_alone():
    unet = build(64, norm="instance")
    for layer in (*unet.down, *unet.up):
        layer[1] = nn.Identity()  # norms use statistics of the whole map

    def reach() -> float:
        images = noise(1, 64).requires_grad_()
        unet(images)[0, 0, 0, 0].backward()
        return float(images.grad[0, :, 56:, 56:].abs().sum())

    assert reach() > 0
    nn.init.zeros_(unet.middle[0].weight)
    assert reach() == 0


def test_details_bypass_the_perceptron():
    unet = build()
    for parameter in unet.middle.parameters():
        nn.init.zeros_(parameter)
    masks = unet(noise(2, 16))
    assert (masks[0] - masks[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("side", "advice"), [(100, "96 or 112"), (50, "48 or 56"), (33, "32 or 40")]
)
def test_a_side_that_cannot_be_halved_is_refused_with_sides_that_can(side, advice):
    with pytest.raises(UserError, match=rf"view\.size: {side} px .*{advice}"):
        wire_mask(Choice("adios", {}), MOCO, ViewConfig(size=side, grid=1))
    for near in map(int, advice.split(" or ")):
        wire_mask(Choice("adios", {}), MOCO, ViewConfig(size=near, grid=1))


@pytest.mark.parametrize("side", [1, 4, 7])
def test_a_side_too_small_for_two_blocks_is_refused_as_that(side):
    with pytest.raises(ValueError, match=rf"{side} px is too small.*8"):
        build(side)
    with torch.no_grad():
        assert build(8)(noise(1, 8)).shape == (1, 3, 8, 8)
