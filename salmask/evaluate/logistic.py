"""Multinomial logistic regression on features."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmask.evaluate.features import Labelled

_ROWS = 2048  # features whose logits are computed at once, to limit memory


def fit(
    train: Sequence[Labelled],
    classes: int,
    l2: float,
    iterations: int,
    start: nn.Linear | None = None,
) -> nn.Linear:
    """Minimises mean cross entropy + l2/2 * |W|^2 by L-BFGS in float32. The bias has no penalty.

    Loss and gradient are summed over blocks of features, so that only the logits of one block are
    in memory.

    Args:
        train: sets of features (n,D) and labels (n,) in [0, classes), which are fitted together.
        classes: number of classes.
        l2: weight of the penalty.
        iterations: at most.
        start: initial classifier, zeros by default. The problem is convex, so that it changes the
            time and not the solution.
    """
    count, width = sum(len(part) for part in train), train[0].features.shape[1]
    with torch.inference_mode(False), torch.enable_grad():
        model = nn.Linear(width, classes).to(train[0].labels.device)
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
            penalty = 0.5 * l2 * model.weight.square().sum()
            penalty.backward()
            total = penalty.detach().double()
            for part in train:
                for features, labels in part.blocks(_ROWS):
                    loss = F.cross_entropy(model(features), labels, reduction="sum") / count
                    loss.backward()
                    total += loss.detach()
            return total

        optimizer.step(closure)
    return model


@torch.inference_mode()
def predict(model: nn.Module, features: Labelled) -> Tensor:
    """The class with the highest logit of each row: (n,) int64."""
    return torch.cat([model(block).argmax(dim=1) for block, _ in features.blocks(_ROWS)])


def best_l2(
    train: Labelled,
    held: Labelled,
    classes: int,
    grid: Sequence[float],
    iterations: int,
    score: Callable[[Tensor, Tensor], Tensor],
) -> tuple[float, nn.Linear]:
    """The l2 with the highest mean score on held-out images, and its classifier.

    Args:
        train: the images to fit.
        held: the held-out images.
        classes: number of classes.
        grid: the penalties. Of equally good ones, the largest is chosen.
        iterations: of each fit.
        score: (logits (n,C), labels (n,)) -> (n,), the score of each image; higher is better.
    """
    best, chosen, model, start = -math.inf, grid[-1], None, None
    for l2 in sorted(grid, reverse=True):  # each fit starts from the one before
        model = fit([train], classes, l2, iterations, start=model)
        with torch.inference_mode():
            blocks = held.blocks(_ROWS)
            scores = torch.cat([score(model(block), labels) for block, labels in blocks])
            value = scores.double().mean().item()
        if value > best:
            best, chosen, start = value, l2, model
    assert start is not None
    return chosen, start
