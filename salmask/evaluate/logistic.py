"""Multinomial logistic regression on features that are computed already."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.evaluate.features import Labelled


def fit(
    train: Labelled, classes: int, l2: float, iterations: int, start: nn.Linear | None = None
) -> nn.Linear:
    """By L-BFGS: mean cross entropy + l2/2 * |W|^2, in float32.

    train: features (n,D), labels (n,) in [0, classes). The bias is not penalised. The problem is
    convex, so where it starts (zeros, or at `start`) matters for the time alone.
    """
    with torch.inference_mode(False), torch.enable_grad():
        features, labels = train.features.clone(), train.labels.clone()  # if made for inference
        model = nn.Linear(features.shape[1], classes).to(features.device)
        if start is None:
            nn.init.zeros_(model.weight)
            nn.init.zeros_(model.bias)
        else:
            model.load_state_dict(start.state_dict())
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(features), labels)
            loss = loss + 0.5 * l2 * model.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return model


def best_l2(
    train: Labelled,
    held: Labelled,
    classes: int,
    grid: Sequence[float],
    iterations: int,
    score: Callable[[Tensor, Tensor], float],
) -> tuple[float, nn.Linear]:
    """The l2 of `grid` that is best on `held` when fitted on `train`, of equally good ones the
    largest; and that fit. score: (logits (n,C), labels (n,)) -> the higher, the better."""
    best, chosen, model, start = -math.inf, grid[-1], None, None
    for l2 in sorted(grid, reverse=True):  # from the easiest on, each from the one before
        model = fit(train, classes, l2, iterations, start=model)
        with torch.inference_mode():
            found = score(model(held.features), held.labels)
        if found > best:
            best, chosen, start = found, l2, model
    assert start is not None
    return chosen, start
