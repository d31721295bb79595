"""Selective Convolutional Descriptor Aggregation (Wei et al. 2017), as in Chin et al. 2024."""

from torch import Tensor


def activation_map(features: Tensor) -> Tensor:
    """Sum over channels of the last feature tensor: (B,D,U,V) -> (B,U,V) float32.

    Wei et al. 2017, Sec. 3.1; Chin et al. 2024, Sec. 3.1.
    """
    return features.float().sum(dim=1)


def foreground(activation: Tensor, threshold: float = 0.6) -> Tensor:
    """Cells of at least mean - threshold * deviation: (B,U,V) -> (B,U,V) bool.

    Mean and population standard deviation are those of each map. Chin et al. 2024, Eq. 1. A
    constant map is all foreground.
    """
    exact = activation.double()  # in float32, the mean of equal numbers can exceed them
    mean = exact.mean(dim=(1, 2), keepdim=True)
    deviation = exact.std(dim=(1, 2), keepdim=True, correction=0)
    return exact >= mean - threshold * deviation
