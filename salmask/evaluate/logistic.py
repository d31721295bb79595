"""Multinomial logistic regression on features."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.evaluate.features import Labelled


def fit(
    train: Labelled, classes: int, l2: float, iterations: int, start: nn.Linear | None = None
) -> nn.Linear:
    """Minimises mean cross entropy + l2/2 * |W|^2 by L-BFGS in float32. The bias has no penalty.

    Args:
        train: features (n,D), labels (n,) in [0, classes).
        classes: number of classes.
        l2: weight of the penalty.
        iterations: at most.
        start: initial classifier, zeros by default. The problem is convex, so that it changes the
            time and not the solution.
    """
    with torch.inference_mode(False), torch.enable_grad():
        features, labels = train.features.clone(), train.labels.clone()  # inference tensors
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
    """The l2 with the highest score on held-out images, and its classifier.

    Args:
        train: the images to fit.
        held: the held-out images.
        classes: number of classes.
        grid: the penalties. Of equally good ones, the largest is chosen.
        iterations: of each fit.
        score: (logits (n,C), labels (n,)) -> a number; higher is better.
    """
    best, chosen, model, start = -math.inf, grid[-1], None, None
    for l2 in sorted(grid, reverse=True):  # each fit starts from the one before
        model = fit(train, classes, l2, iterations, start=model)
        with torch.inference_mode():
            value = score(model(held.features), held.labels)
        if value > best:
            best, chosen, start = value, l2, model
    assert start is not None
    return chosen, start
