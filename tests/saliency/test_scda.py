import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from salmask.saliency.scda import activation_map, foreground


def test_the_activation_is_the_sum_over_channels():
    features = torch.tensor([[[[1.0, 2], [3, 4]], [[10, 20], [30, 40]]]]).bfloat16()
    activation = activation_map(features)
    assert activation.dtype == torch.float32
    assert torch.equal(activation, torch.tensor([[[11.0, 22], [33, 44]]]))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        # mean 3; squares 4 1 0 9 of deviations, population std sqrt(14/4) = 1.871;
        # threshold 3 - 0.6 * 1.871 = 1.878
        ([[1, 2], [3, 6]], [[0, 1], [1, 1]]),
        # mean 9; squares 4 16 4 16, population std sqrt(10) = 3.162: threshold 7.103, so 7 is out
        # (the sample deviation, 3.651, would give 6.809 and keep it)
        ([[7, 13], [11, 5]], [[0, 1], [1, 0]]),
        # mean 4, std sqrt(60/9) = 2.582; threshold 4 - 1.549 = 2.451: 3 and above
        ([[0, 1, 2], [3, 4, 5], [6, 7, 8]], [[0, 0, 0], [1, 1, 1], [1, 1, 1]]),
        # one peak: mean 1, std sqrt((8 + 64)/9) = 2.828; threshold -0.697: all of it
        ([[0, 0, 0], [0, 9, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
        # constant: everything is at the mean
        ([[2, 2], [2, 2]], [[1, 1], [1, 1]]),
    ],
)
def test_equation_1_by_hand(activation, expected):
    result = foreground(torch.tensor([activation], dtype=torch.float32))
    assert torch.equal(result, torch.tensor([expected], dtype=torch.bool))


def test_a_cell_at_the_threshold_is_foreground():
    # mean 0, std 1, threshold 0 - 1 * 1 = -1: the low cells lie on it
    assert foreground(torch.tensor([[[1.0, -1], [1, -1]]]), threshold=1.0).all()


def test_the_threshold_is_a_parameter():
    # mean 4, std 2.582: 4 + 2.582 = 6.58 with -1, 4 - 2 * 2.582 < 0 with 2
    activation = torch.arange(9.0).view(1, 3, 3)
    assert foreground(activation, -1.0).flatten().nonzero().flatten().tolist() == [7, 8]
    assert foreground(activation, 2.0).all()


def _reference(activation: torch.Tensor) -> list[list[bool]]:
    """Eq. 1 in plain floats."""
    cells = [float(v) for row in activation for v in row]
    mean = sum(cells) / len(cells)
    deviation = (sum((v - mean) ** 2 for v in cells) / len(cells)) ** 0.5
    return [[float(v) >= mean - 0.6 * deviation for v in row] for row in activation]


def _maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) ** 2


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 8), st.integers(2, 8))
def test_equation_1_agrees_with_loops(seed, batch, rows, columns):
    maps = _maps(seed, batch, rows, columns)
    assert foreground(maps).tolist() == [_reference(one) for one in maps]


@given(st.integers(0, 1000), st.floats(1e-3, 1e4))
def test_foreground_does_not_depend_on_a_positive_scale(seed, scale):
    maps = _maps(seed, 4, 5, 5)
    margin = maps - maps.mean((1, 2), True) + 0.6 * maps.std((1, 2), correction=0, keepdim=True)
    assume(margin.abs().min() > 1e-4)  # no cell so near the threshold that rounding decides
    assert torch.equal(foreground(maps * scale), foreground(maps))


@given(st.integers(0, 1000))
def test_maps_do_not_depend_on_each_other(seed):
    maps = _maps(seed, 3, 4, 4)
    assert torch.equal(foreground(maps)[1:2], foreground(maps[1:2]))


def test_any_constant_map_is_all_foreground():
    values = torch.rand(300, generator=torch.Generator().manual_seed(0))[:, None, None]
    assert foreground(values.expand(300, 7, 7)).all()
