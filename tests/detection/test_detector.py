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
from salmask.detection.training import detector_inputs
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
    images = drawn(tmp_path / "drawn", 4).images[:3]
    examples = [example(image, (64, 80), False, True) for image in images]
    return detector_inputs(keyed(examples, 0))


def keyed(examples, seed):
    """The examples with the keys of a seed."""
    keys = Draws.of(seed, 0, torch.arange(len(examples))).key
    pairs = zip(examples, keys, strict=True)
    return [(image, target | {"key": key}) for (image, target), key in pairs]


def test_the_trunk_is_the_encoder_up_to_layer3_and_layer4_is_the_head():
    given = encoder("imagenet")
    built = Detector(given, 2).eval()
    assert built.stride == 16 and given.network.training is False
    images = noise((64, 96))
    with torch.inference_mode():
        features = built.trunk(built.preprocess(images).tensors)
        assert features.shape == (1, 32, 4, 6)
        norm = built.heads.box_head[1]
        pooled = built.heads.box_head[0](features).mean((2, 3))
        assert torch.allclose(pooled, given(images[0][None]), atol=1e-5)
    assert norm.num_features == 64 and torch.equal(norm.weight, torch.ones(64))


def test_the_given_encoder_does_not_change(batch):
    given = encoder().requires_grad_(False)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    built = Detector(given, 2, regions=8).train()
    losses = built(*batch)
    sum(losses.values()).backward()
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    assert not any(p.requires_grad for p in given.parameters())
    assert built.trunk[0].weight.grad is not None


@pytest.mark.parametrize(("stem", "stride"), [("imagenet", 16), ("small2", 8), ("small", 4)])
def test_images_are_padded_to_whole_cells_and_anchors_are_at_cells(stem, stride):
    """33 px at stride 16 are three cells that are 16 px apart, not 33 // 3 = 11 px."""
    built = Detector(encoder(stem), 2, anchors=(32,)).eval()
    assert built.stride == stride
    images = built.preprocess(noise((33, 50), (40, 20)))
    assert images.image_sizes == [(33, 50), (40, 20)]
    assert images.tensors.shape[2:] == (-(-40 // stride) * stride, -(-50 // stride) * stride)
    assert (images.tensors[0, :, 33:] == 0).all() and (images.tensors[1, :, :, 20:] == 0).all()
    features = built.trunk(images.tensors)
    assert features.shape[3] * stride == images.tensors.shape[3]
    anchors = built.rpn.anchor_generator(images, [features])[0].view(*features.shape[2:], 3, 4)
    assert anchors[1, 2, 1].tolist() == [2 * stride - 16, stride - 16, 2 * stride + 16, stride + 16]


def test_regions_are_pooled_at_their_position():
    """Cell k of a map at stride 8 has its centre at 8k + 4 px: a box around 32 px has mean 3.5."""
    built = Detector(encoder("small2"), 2)
    across = torch.arange(10.0).expand(1, 1, 6, 10)
    pooled = built.heads.box_roi_pool(across, [torch.tensor([[16.0, 8, 48, 40]])])
    assert pooled.shape == (1, 1, 14, 14)
    assert pooled.mean().item() == pytest.approx(3.5, abs=1e-5)


def test_anchors_are_five_sides_by_three_ratios():
    generator = Detector(encoder(), 2).rpn.anchor_generator
    corners = generator.cell_anchors[0]
    sides = (corners[:, 2:] - corners[:, :2]).prod(dim=1).sqrt()
    assert sorted(sides.round().tolist())[::3] == pytest.approx([32, 64, 128, 256, 512], abs=2)
    assert len(corners) == 15


def test_the_input_is_normalised_and_filtered_at_its_own_size():
    blur = {"kernel": 3, "sigma": 1.4}
    images = noise((40, 48), (32, 32))
    plain = Detector(encoder(), 2).preprocess(images).tensors
    filtered = Detector(encoder(blur=blur), 2).preprocess(images).tensors
    other = encoder()
    other.spec = replace(other.spec, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert torch.equal(Detector(other, 2).preprocess(images).tensors[0], 2 * images[0] - 1)
    assert torch.equal(plain[0], normalise(images[0][None])[0])
    for index, image in enumerate(images):
        height, width = image.shape[1:]
        expected = high_pass(normalise(image[None]), 3, 1.4)[0]
        assert torch.allclose(filtered[index, :, :height, :width], expected, atol=1e-6)


@pytest.mark.parametrize("masks", [False, True])
def test_the_loss_falls_on_a_fixed_batch(batch, masks):
    built = detector(masks=masks).train()
    optimizer = torch.optim.SGD(built.parameters(), 0.05, 0.9)
    history = []
    for _ in range(20):
        losses = built(*batch)
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


def test_masks_are_learned_from_the_features_of_regions_with_objects(batch, monkeypatch):
    built = detector(masks=True).train()
    built.trunk.eval()
    built.heads.box_head.eval()  # so that regions do not share batch statistics
    arguments = {}

    def recording(logits, regions, masks, labels, matched):
        arguments.update(logits=logits, regions=regions, matched=matched)
        return maskrcnn_loss(logits, regions, masks, labels, matched)

    monkeypatch.setattr(model, "maskrcnn_loss", recording)
    images, targets = batch
    built(images, targets)
    assert min(len(boxes) for boxes in arguments["regions"]) > 0
    for regions, matched, target in zip(
        arguments["regions"], arguments["matched"], targets, strict=True
    ):
        assert (box_iou(regions, target["boxes"][matched]).diagonal() >= 0.5).all()
    with torch.inference_mode():
        features = {"0": built.trunk(built.preprocess(images).tensors)}
        pooled = built.heads.box_head(built.heads.box_roi_pool(features["0"], arguments["regions"]))
        assert torch.allclose(built.heads.mask_predictor(pooled), arguments["logits"], atol=1e-5)


def test_samples_for_the_losses_depend_on_each_images_key_only(batch):
    built = detector().train()
    built.trunk.eval()
    built.heads.box_head.eval()  # so that images do not share batch statistics
    before = torch.random.get_rng_state()

    def losses(*places, seed=0):
        examples = keyed([(batch[0][i], batch[1][i]) for i in range(3)], seed)
        images, targets = zip(*[examples[i] for i in places], strict=True)
        return list(built(list(images), list(targets)).values())

    assert torch.equal(torch.stack(losses(0, 1)), torch.stack(losses(0, 1)))
    assert not torch.allclose(torch.stack(losses(0, 1)), torch.stack(losses(0, 1, seed=1)))
    alone = [torch.stack(losses(place)) for place in (0, 1)]
    torch.testing.assert_close(torch.stack(losses(1, 0)), torch.stack(alone).mean(dim=0))
    assert torch.equal(torch.random.get_rng_state(), before)


def step(built, batch):
    """Trains one step, and returns the names of the tensors that changed."""
    before = {name: value.clone() for name, value in built.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], 0.1)
    sum(built.train()(*batch).values()).backward()
    optimizer.step()
    return {n for n, value in built.state_dict().items() if not torch.equal(value, before[n])}


def test_all_tensors_change_by_default(batch):
    built = detector(masks=True)
    assert step(built, batch) == set(built.state_dict())


def test_a_frozen_encoder_does_not_change_but_its_layer4_does(batch):
    changed = step(detector(freeze_encoder=True), batch)
    assert not any(name.startswith("trunk") for name in changed)
    assert any(name.startswith("heads.box_head.0.") for name in changed)
    assert "heads.box_head.0.0.bn1.running_mean" in changed


def test_boxes_are_float32_in_half_precision(batch):
    built = detector(masks=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = built.train()(*batch)
        [output] = built.eval()(batch[0][:1])
    for name, value in (losses | output).items():
        assert value.dtype == (torch.int64 if name == "labels" else torch.float32), name
    edges = output["boxes"].flatten()
    assert not torch.equal(edges, edges.bfloat16().float())
    assert built.trunk(built.preprocess(batch[0]).tensors).dtype == torch.float32


def test_frozen_norms_do_not_change_but_the_additional_one_does(batch):
    built = detector(norm="frozen")
    changed = step(built, batch)
    of_norms = {
        f"{name}.{kind}"
        for name, layer in built.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for kind in dict(layer.state_dict())
    }
    assert {
        name for name in changed & of_norms if not name.startswith("heads.box_head.1.")
    } == set()
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
    built = Detector(encoder(), 2).eval()
    assert (built.rpn.pre_nms_top_n(), built.rpn.post_nms_top_n()) == (6000, 1000)
    heads = built.heads
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert heads.fg_bg_sampler.batch_size_per_image == 512


def test_an_image_without_detections_has_empty_ones():
    built = detector(masks=True).eval()
    built.heads.score_thresh = 1.1
    with torch.inference_mode():
        [output] = built(noise((48, 64)))
    assert {name: tuple(value.shape) for name, value in output.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
        "masks": (0, 1, 14, 14),
    }


def test_detections_are_inside_the_image():
    built = detector(masks=True).eval()
    with torch.inference_mode():
        [output] = built(noise((48, 64)))
    assert 0 < len(output["boxes"]) <= 100
    assert output["boxes"].min() >= 0 and output["boxes"][:, 2].max() <= 64
    assert output["boxes"][:, 3].max() <= 48
    assert output["masks"].shape == (len(output["boxes"]), 1, 14, 14)
    assert (output["scores"] > 0.05).all() and set(output["labels"].tolist()) <= {1, 2}


def test_the_seed_determines_the_new_layers_and_torchs_generator_does_not_change():
    before = torch.random.get_rng_state()
    weights = [detector(seed=seed).rpn.head.cls_logits.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_without_four_stages_is_refused():
    config = EncoderConfig("mobilenet_v3_small")
    mobilenet = Encoder(build_encoder(config), config, InputSpec(64, 64, None))
    with pytest.raises(UserError, match="mobilenet_v3_small has no layer1 to layer4"):
        Detector(mobilenet, 2)


def test_other_residual_networks_of_torchvision_are_accepted():
    config = EncoderConfig("resnext50_32x4d")
    with torch.device("meta"):
        network = build_encoder(config)
    built = Detector(Encoder(network, config, InputSpec(64, 64, None)), 2)
    assert built.heads.box_head[1].num_features == 2048
