"""Signs that a pretraining run has collapsed, from its history.csv and probe.csv.

docs/probe.md gives the reasons for the limits.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from salmask import stored_files

LEAST_RANK, LEAST_SPREAD = 2.0, 0.02
FIRST_STEP = 50  # of training; before it, batch norms do not have their statistics yet
FEWEST_IMAGES = 10  # in a measurement; fewer say nothing about a rank
LASTING = 10  # epochs for which hard negatives must be like keys
CLOSER, EQUAL = 0.003, 0.0005  # differences of mean cosines

Rows = Sequence[Mapping[str, float]]  # of history.csv or probe.csv, in the order of the epochs


def signs(history: Rows, measurements: Rows) -> dict[str, str]:
    """The signs of collapse at the end of a history, as texts by name.

    `rank`: the newest `rankme` is below LEAST_RANK. `spread`: the newest `spread` is below
    LEAST_SPREAD. Measurements before FIRST_STEP, or of fewer images than FEWEST_IMAGES, do not
    count. `negatives`: in each of the last LASTING epochs, the mean cosine of queries and their
    hard negatives was at least CLOSER above that of queries and their keys, or differed from it by
    at most EQUAL.

    Args:
        history: rows of history.csv, one per epoch from 1.
        measurements: rows of probe.csv.
    """
    texts = {}
    measured = [
        row
        for row in measurements[-1:]
        if row["step"] >= FIRST_STEP and row["images"] >= FEWEST_IMAGES
    ]
    for row in [*history[-1:], *measured]:
        epoch = f"at epoch {row['epoch']:.0f}"
        if row.get("rankme", LEAST_RANK) < LEAST_RANK:
            texts["rank"] = (
                f"the embeddings have collapsed to one direction: their effective rank is "
                f"{row['rankme']:.3g} {epoch}"
            )
        if row.get("spread", LEAST_SPREAD) < LEAST_SPREAD:
            texts["spread"] = (
                f"the embeddings of all images are nearly equal: their spread is "
                f"{row['spread']:.2g} {epoch}"
            )
    last = history[-LASTING:]
    if len(last) == LASTING and all(_negative_is_like_key(row) for row in last):
        negative, positive = (last[-1][f"{name}_similarity"] for name in ("negative", "positive"))
        texts["negatives"] = (
            f"queries have been as similar to their hard negatives as to their keys for {LASTING} "
            f"epochs (cosines {negative:.3f} and {positive:.3f} at epoch {last[-1]['epoch']:.0f}): "
            "the encoder does not distinguish them"
        )
    return texts


def signs_of_run(folder: Path) -> dict[str, str]:
    """`signs` of the files in a run's output folder; none without files."""
    history, measurements = read_rows(folder / "history.csv"), read_rows(folder / "probe.csv")
    with stored_files.damage_reported(folder / ("probe.csv" if measurements else "history.csv")):
        return signs(history, measurements)


def read_rows(file: Path) -> list[dict[str, float]]:
    """The rows of history.csv or probe.csv, without empty cells; none if there is no such file."""
    if not file.is_file():
        return []
    rows = stored_files.read_rows(file)
    with stored_files.damage_reported(file):
        return [{key: float(value) for key, value in row.items() if value} for row in rows]


def _negative_is_like_key(row: Mapping[str, float]) -> bool:
    if "negative_similarity" not in row:
        return False
    difference = row["negative_similarity"] - row["positive_similarity"]
    return difference >= CLOSER or abs(difference) <= EQUAL
