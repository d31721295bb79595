from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import maskrcnn_loss
from torchvision.ops import box_iou

from salmask.data.normalisation import normalise
from salmask.detection import detector as model
from salmask.detection.batches import example
from salmask.detection.detector import Detector
from salmask.detection.training import on_device
from salmask.encoders.backbones import build_encoder
from salmask.encoders.norms import GroupedBatchNorm
from salmask.encoders.on_disk import Encoder, InputSpec
from salmask.errors import UserError
from salmask.filters import high_pass
from salmask.params.encoder import EncoderConfig
from salmask.randomness import Draws
from tests.helpers.drawn_scenes import detector, drawn, encoder, noise


@pytest.fixture
def batch(tmp_path):
    pictures = drawn(tmp_path / "drawn", 4).pictures[:3]
    examples = [example(p, (64, 80), False, True) for p in pictures]
    return on_device(keyed(examples, 0), torch.device("cpu"))


def keyed(examples, seed):
    keys = Draws.of(seed, 0, torch.arange(len(examples))).key
    both = zip(examples, keys, strict=True)
    return [(image, target | {"key": key}) for (image, target), key in both]


def test_the_trunk_is_the_encoder_up_to_layer3_and_layer4_the_head():
    whole = encoder("imagenet")
    found = Detector(whole, 2).eval()
    assert found.stride == 16 and whole.network.training is False
    images = noise((64, 96))
    with torch.inference_mode():
        features = found.trunk(found.prepared(images).tensors)
        assert features.shape == (1, 32, 4, 6)
        norm = found.heads.box_head[1]
        pooled = found.heads.box_head[0](features).mean((2, 3))
        assert torch.allclose(pooled, whole(images[0][None]), atol=1e-5)
    assert norm.num_features == 64 and torch.equal(norm.weight, torch.ones(64))


def test_the_encoder_that_is_given_stays_as_it_is(batch):
    whole = encoder().requires_grad_(False)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    found = Detector(whole, 2, regions=8).train()
    losses = found(*batch)
    sum(losses.values()).backward()
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert not any(p.requires_grad for p in whole.parameters())
    assert found.trunk[0].weight.grad is not None


@pytest.mark.parametrize(("stem", "stride"), [("imagenet", 16), ("small2", 8), ("small", 4)])
def test_images_are_padded_to_whole_cells_and_anchors_stand_on_them(stem, stride):
    """33 px at stride 16 are three cells, not 33 // 3 = 11 px apart."""
    found = Detector(encoder(stem), 2, anchors=(32,)).eval()
    assert found.stride == stride
    images = found.prepared(noise((33, 50), (40, 20)))
    assert images.image_sizes == [(33, 50), (40, 20)]
    assert images.tensors.shape[2:] == (-(-40 // stride) * stride, -(-50 // stride) * stride)
    assert (images.tensors[0, :, 33:] == 0).all() and (images.tensors[1, :, :, 20:] == 0).all()
    features = found.trunk(images.tensors)
    assert features.shape[3] * stride == images.tensors.shape[3]
    anchors = found.rpn.anchor_generator(images, [features])[0].view(*features.shape[2:], 3, 4)
    assert anchors[1, 2, 1].tolist() == [2 * stride - 16, stride - 16, 2 * stride + 16, stride + 16]


def test_regions_are_read_where_they_lie():
    """Cell k of a map at stride 8 has its centre at 8k + 4 px, so a box around 32 px reads 3.5."""
    found = Detector(encoder("small2"), 2)
    across = torch.arange(10.0).expand(1, 1, 6, 10)
    pooled = found.heads.box_roi_pool(across, [torch.tensor([[16.0, 8, 48, 40]])])
    assert pooled.shape == (1, 1, 14, 14)
    assert pooled.mean().item() == pytest.approx(3.5, abs=1e-5)


def test_anchors_are_five_sides_by_three_ratios():
    generator = Detector(encoder(), 2).rpn.anchor_generator
    corners = generator.cell_anchors[0]
    sides = (corners[:, 2:] - corners[:, :2]).prod(dim=1).sqrt()
    assert sorted(sides.round().tolist())[::3] == pytest.approx([32, 64, 128, 256, 512], abs=2)
    assert len(corners) == 15


def test_the_input_is_normalised_and_filtered_at_its_own_size():
    wanted = {"kernel": 3, "sigma": 1.4}
    images = noise((40, 48), (32, 32))
    plain = Detector(encoder(), 2).prepared(images).tensors
    filtered = Detector(encoder(blur=wanted), 2).prepared(images).tensors
    theirs = encoder()
    theirs.spec = replace(theirs.spec, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert torch.equal(Detector(theirs, 2).prepared(images).tensors[0], 2 * images[0] - 1)
    assert torch.equal(plain[0], normalise(images[0][None])[0])
    for index, image in enumerate(images):
        high, wide = image.shape[1:]
        own = high_pass(normalise(image[None]), 3, 1.4)[0]
        assert torch.allclose(filtered[index, :, :high, :wide], own, atol=1e-6)


@pytest.mark.parametrize("masks", [False, True])
def test_the_loss_falls_on_a_fixed_batch(batch, masks):
    found = detector(masks=masks).train()
    optimizer = torch.optim.SGD(found.parameters(), 0.05, 0.9)
    history = []
    for _ in range(20):
        losses = found(*batch)
        history.append({name: value.item() for name, value in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    first, last = history[0], history[-1]
    assert set(first) == {"loss_objectness", "loss_rpn_box_reg", "class", "box"} | (
        {"mask"} if masks else set()
    )
    assert sum(last.values()) < 0.6 * sum(first.values())
    assert all(last[name] < first[name] for name in ("loss_objectness", "class"))
    assert not masks or last["mask"] < 0.9 * first["mask"]


def test_masks_are_learned_from_the_features_of_regions_that_show_objects(batch, monkeypatch):
    found = detector(masks=True).train()
    found.trunk.eval()
    found.heads.box_head.eval()  # or a region's features would depend on the others'
    seen = {}

    def kept(logits, regions, masks, labels, matched):
        seen.update(logits=logits, regions=regions, matched=matched)
        return maskrcnn_loss(logits, regions, masks, labels, matched)

    monkeypatch.setattr(model, "maskrcnn_loss", kept)
    images, targets = batch
    found(images, targets)
    assert min(len(some) for some in seen["regions"]) > 0
    for regions, matched, target in zip(seen["regions"], seen["matched"], targets, strict=True):
        assert (box_iou(regions, target["boxes"][matched]).diagonal() >= 0.5).all()
    with torch.inference_mode():
        features = {"0": found.trunk(found.prepared(images).tensors)}
        pooled = found.heads.box_head(found.heads.box_roi_pool(features["0"], seen["regions"]))
        assert torch.allclose(found.heads.mask_predictor(pooled), seen["logits"], atol=1e-5)


def test_what_the_losses_are_taken_on_is_drawn_by_each_images_key(batch):
    found = detector().train()
    found.trunk.eval()
    found.heads.box_head.eval()  # or an image's losses would depend on the others'
    before = torch.random.get_rng_state()

    def losses(*places, seed=0):
        both = keyed([(batch[0][i], batch[1][i]) for i in range(3)], seed)
        images, targets = zip(*[both[i] for i in places], strict=True)
        return list(found(list(images), list(targets)).values())

    assert torch.equal(torch.stack(losses(0, 1)), torch.stack(losses(0, 1)))
    assert not torch.allclose(torch.stack(losses(0, 1)), torch.stack(losses(0, 1, seed=1)))
    alone = [torch.stack(losses(place)) for place in (0, 1)]
    torch.testing.assert_close(torch.stack(losses(1, 0)), torch.stack(alone).mean(dim=0))
    assert torch.equal(torch.random.get_rng_state(), before)


def step(found, batch):
    """The names of the tensors that a step of training changed."""
    before = {name: value.clone() for name, value in found.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in found.parameters() if p.requires_grad], 0.1)
    sum(found.train()(*batch).values()).backward()
    optimizer.step()
    return {n for n, value in found.state_dict().items() if not torch.equal(value, before[n])}


def test_everything_learns_by_default(batch):
    found = detector(masks=True)
    assert step(found, batch) == set(found.state_dict())


def test_a_frozen_encoder_does_not_change_but_its_layer4_does(batch):
    changed = step(detector(freeze_encoder=True), batch)
    assert not any(name.startswith("trunk") for name in changed)
    assert any(name.startswith("heads.box_head.0.") for name in changed)
    assert "heads.box_head.0.0.bn1.running_mean" in changed


def test_boxes_keep_their_digits_in_half_precision(batch):
    found = detector(masks=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = found.train()(*batch)
        [seen] = found.eval()(batch[0][:1])
    for name, value in (losses | seen).items():
        assert value.dtype == (torch.int64 if name == "labels" else torch.float32), name
    edges = seen["boxes"].flatten()
    assert not torch.equal(edges, edges.bfloat16().float())
    assert found.trunk(found.prepared(batch[0]).tensors).dtype == torch.float32


def test_frozen_norms_do_not_change_but_the_new_one_does(batch):
    found = detector(norm="frozen")
    changed = step(found, batch)
    own = {
        f"{name}.{kind}"
        for name, layer in found.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for kind in dict(layer.state_dict())
    }
    assert {name for name in changed & own if not name.startswith("heads.box_head.1.")} == set()
    assert "heads.box_head.1.running_mean" in changed and "heads.box_head.1.weight" in changed
    assert "trunk.0.weight" in changed and "heads.box_head.0.0.conv1.weight" in changed


@pytest.mark.parametrize(("norm", "kind"), [("sync", GroupedBatchNorm), ("local", nn.BatchNorm2d)])
def test_norms_are_of_the_whole_batch_or_of_each_processs_part(norm, kind):
    norms = [
        m for m in detector(norm=norm).modules() if isinstance(m, nn.BatchNorm2d | GroupedBatchNorm)
    ]
    assert len(norms) > 10 and {type(layer) for layer in norms} == {kind}
    assert all(layer.group == 0 for layer in norms if norm == "sync")


def test_limits_at_test_are_the_published_ones():
    found = Detector(encoder(), 2).eval()
    assert (found.rpn.pre_nms_top_n(), found.rpn.post_nms_top_n()) == (6000, 1000)
    heads = found.heads
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert heads.fg_bg_sampler.batch_size_per_image == 512


def test_an_image_without_detections_has_empty_ones():
    found = detector(masks=True).eval()
    found.heads.score_thresh = 1.1
    with torch.inference_mode():
        [seen] = found(noise((48, 64)))
    assert {name: tuple(value.shape) for name, value in seen.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
        "masks": (0, 1, 14, 14),
    }


def test_detections_lie_in_the_image():
    found = detector(masks=True).eval()
    with torch.inference_mode():
        [seen] = found(noise((48, 64)))
    assert 0 < len(seen["boxes"]) <= 100
    assert seen["boxes"].min() >= 0 and seen["boxes"][:, 2].max() <= 64
    assert seen["boxes"][:, 3].max() <= 48
    assert seen["masks"].shape == (len(seen["boxes"]), 1, 14, 14)
    assert (seen["scores"] > 0.05).all() and set(seen["labels"].tolist()) <= {1, 2}


def test_the_seed_decides_the_new_layers_and_leaves_torch_alone():
    before = torch.random.get_rng_state()
    weights = [detector(seed=seed).rpn.head.cls_logits.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_without_four_stages_is_refused():
    config = EncoderConfig("mobilenet_v3_small")
    other = Encoder(build_encoder(config), config, InputSpec(64, 64, None))
    with pytest.raises(UserError, match="mobilenet_v3_small has no layer1 to layer4"):
        Detector(other, 2)


def test_a_resnet_of_torchvision_will_do():
    config = EncoderConfig("resnext50_32x4d")
    with torch.device("meta"):
        network = build_encoder(config)
    found = Detector(Encoder(network, config, InputSpec(64, 64, None)), 2)
    assert found.heads.box_head[1].num_features == 2048
