"""Signs of collapse in the rows of history.csv and probe.csv."""

import pytest

from salmask.collapse import read_rows, signs, signs_of_run


def history(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    """Rows with the similarities of queries to their keys and to their hard negatives."""
    return [
        {"epoch": n, "loss": 5.0, "positive_similarity": positive, "negative_similarity": negative}
        for n, (positive, negative) in enumerate(pairs, start=1)
    ]


def measured(epoch: int, rank: float, spread: float) -> dict[str, float]:
    return {"epoch": epoch, "step": 10 * epoch, "images": 50, "rankme": rank, "spread": spread}


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (measured(5, 2.0, 0.02), set()),
        (measured(5, 1.99, 0.02), {"rank"}),
        (measured(5, 2.0, 0.019), {"spread"}),
        (measured(5, 1.0, 0.0), {"rank", "spread"}),
        (measured(0, 1.0, 0.0), set()),  # an untrained encoder
        (measured(4, 1.0, 0.0), set()),  # after 40 steps
        (measured(5, 1.0, 0.0) | {"images": 9}, set()),
    ],
)
def test_embeddings_that_are_nearly_equal_are_a_sign(row, names):
    assert signs([], [row]).keys() == names
    assert signs([], [row, measured(10, 9.0, 0.5)]) == {}  # only the newest measurement counts


def test_the_spread_of_the_history_counts_too():
    rows = [{"epoch": n, "loss": 1.0, "spread": 0.1 / n**2} for n in range(1, 4)]
    assert signs(rows[:2], [measured(0, 9.0, 0.5)]) == {}
    assert signs(rows, [measured(0, 9.0, 0.5)]).keys() == {"spread"}


@pytest.mark.parametrize(
    ("pairs", "names"),
    [
        ([(0.8935, 0.906)] * 10, {"negatives"}),  # batch norm revealed the hard negatives
        ([(0.89, 0.8903)] * 10, {"negatives"}),
        ([(0.89, 0.8885)] * 10, set()),
        ([(0.89, 0.892)] * 10, set()),  # small hard negatives of the demo are nearly keys
        ([(0.89, 0.90)] * 9, set()),  # too short
        ([(0.90, 0.89), *[(0.89, 0.90)] * 9], set()),
        ([(0.90, 0.89), *[(0.89, 0.90)] * 10], {"negatives"}),
        ([*[(0.89, 0.90)] * 10, (0.9, 0.8)], set()),  # it has recovered
    ],
)
def test_hard_negatives_that_stay_as_close_as_keys_are_a_sign(pairs, names):
    assert signs(history(*pairs), []).keys() == names


def test_runs_without_hard_negatives_have_no_such_sign():
    rows = [{"epoch": n, "positive_similarity": 0.9} for n in range(1, 19)]
    assert signs(rows, []) == {}


def test_files_of_a_run(tmp_path):
    assert signs_of_run(tmp_path) == {}
    (tmp_path / "history.csv").write_text("epoch,lr,loss\n1,0.1,3\n")
    (tmp_path / "probe.csv").write_text(
        "epoch,step,images,rankme,knn_top1\n0,0,50,9,\n1,60,50,1.5,20\n"
    )
    assert read_rows(tmp_path / "probe.csv")[0].keys() == {"epoch", "step", "images", "rankme"}
    (text,) = signs_of_run(tmp_path).values()
    assert "effective rank is 1.5 at epoch 1" in text
