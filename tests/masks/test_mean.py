import torch

from salmask.masks.mean import mean_color


def test_the_mean_colour_by_hand():
    # red: 1, 2, 3, 6 -> 3; green: 0, 0, 0, 2 -> 0.5; the other image: 4s and -1s
    first = torch.tensor([[[1.0, 2], [3, 6]], [[0, 0], [0, 2]]])
    images = torch.stack([first, torch.stack([torch.full((2, 2), 4.0), -torch.ones(2, 2)])])
    expected = torch.tensor([[3.0, 0.5], [4.0, -1.0]])[:, :, None, None].expand(2, 2, 2, 2)
    torch.testing.assert_close(mean_color(images), expected)
