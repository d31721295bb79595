import pytest
import torch
from torch import Tensor

from salmask import pieces
from salmask.pieces import change_chosen, in_pieces


@pytest.mark.parametrize("values", [1, 12, 30, 31, 1 << 20])
def test_any_size_of_pieces_gives_the_same_rows(monkeypatch, generator, values):
    monkeypatch.setattr(pieces, "PIECE", values)
    images = torch.rand(7, 3, 2, 2, generator=generator)
    weights, sizes = torch.rand(7, generator=generator), []

    def function(images: Tensor, weights: Tensor) -> Tensor:
        sizes.append(len(images))
        return (images * weights[:, None, None, None]).sum(dim=1)

    result = in_pieces(function, images, weights)
    assert torch.equal(result, (images * weights[:, None, None, None]).sum(dim=1))
    assert sizes == [min(max(1, values // 12), 7 - n) for n in range(0, 7, max(1, values // 12))]


@pytest.mark.parametrize("flags", [[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
def test_only_chosen_images_are_computed(generator, flags):
    images, numbers = torch.rand(4, 3, 2, 2, generator=generator), torch.arange(4)
    chosen, computed = torch.tensor(flags).bool(), []

    def change(images: Tensor, numbers: Tensor) -> Tensor:
        computed.extend(numbers.tolist())
        return images + 1

    before = images.clone()
    result = change_chosen(images, chosen, change, images, numbers)
    assert torch.equal(result, torch.where(chosen[:, None, None, None], before + 1, before))
    assert torch.equal(images, before)
    again = change_chosen(images.clone(), chosen, change, images, numbers, overwrite=True)
    assert torch.equal(again, result)
    assert computed == 2 * numbers[chosen].tolist()
