import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salmask.encoders.heads import from_weights, mlp
from salmask.encoders.norms import GroupedBatchNorm

L, N, R = nn.Linear, GroupedBatchNorm, nn.ReLU


@pytest.mark.parametrize(
    ("norm", "last", "kinds", "biases"),
    [
        (False, "bare", [L, R, L, R, L], [True, True, True]),  # MoCo v2
        (True, "bare", [L, N, R, L, N, R, L], [False, False, True]),  # BYOL
        (True, "norm", [L, N, R, L, N, R, L, N], [False, False, False]),  # SimCLR
        (True, "plain_norm", [L, N, R, L, N, R, L, N], [False, False, False]),  # SimSiam
    ],
)
def test_layers_come_in_the_order_of_the_papers(norm, last, kinds, biases):
    head = mlp([5, 7, 8, 3], norm=norm, last=last, bn_group=2)
    assert [type(layer) for layer in head] == kinds
    linear = [layer for layer in head if isinstance(layer, L)]
    assert [(m.in_features, m.out_features) for m in linear] == [(5, 7), (7, 8), (8, 3)]
    assert [m.bias is not None for m in linear] == biases
    norms = [layer for layer in head if isinstance(layer, N)]
    assert all(m.group == 2 for m in norms)
    assert [m.affine for m in norms] == [True] * (len(norms) - 1) + [last != "plain_norm"] * bool(
        norms
    )


@pytest.mark.parametrize(
    ("last", "count"), [("bare", [L]), ("norm", [L, N]), ("plain_norm", [L, N])]
)
def test_one_layer_is_the_last(last, count):
    head = mlp([5, 3], norm=True, last=last)
    assert [type(layer) for layer in head] == count
    assert (head[0].bias is not None) is (last == "bare")


def test_it_computes_layer_after_layer(generator):
    head = mlp([4, 6, 3], norm=True, last="plain_norm")
    x = torch.randn(8, 4, generator=generator)

    def normalised(rows: torch.Tensor) -> torch.Tensor:
        return (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()

    with torch.no_grad():
        head[1].weight.mul_(2.0)
        head[1].bias.add_(0.5)
    hidden = F.relu(2 * normalised(x @ head[0].weight.T) + 0.5)
    torch.testing.assert_close(head(x), normalised(hidden @ head[3].weight.T))


def test_groups_of_samples_do_not_depend_on_each_other(generator):
    head = mlp([4, 6, 3], norm=True, last="norm", bn_group=2)
    x = torch.randn(4, 4, generator=generator)
    changed = torch.cat([x[:2], 9 * x[2:] + 1])
    torch.testing.assert_close(head(x)[:2], head(changed)[:2])


@pytest.mark.parametrize(("norm", "last"), [(False, "bare"), (True, "bare"), (True, "norm"),
                                            (True, "plain_norm")])  # fmt: skip
@pytest.mark.parametrize("sizes", [[5, 3], [5, 7, 8, 3]])
def test_a_head_comes_back_from_its_weights(norm, last, sizes, generator):
    head = mlp(sizes, norm=norm, last=last)
    for _ in range(3):  # running statistics that affect the output
        head(3 + torch.randn(16, 5, generator=generator))
    again = from_weights(head.state_dict())
    assert [type(layer) for layer in again] == [type(layer) for layer in head]
    features = torch.randn(4, 5, generator=generator)
    assert torch.equal(again(features), head.eval()(features))
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_no_weights_are_no_head():
    features = torch.ones(2, 3)
    assert torch.equal(from_weights({})(features), features)
