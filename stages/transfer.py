"""Frozen features of one run's encoder on another data set."""

import click

from salmask.artifacts import TRANSFER
from salmask.evaluate.transfer import EVALUATION
from salmask.params.yaml_file import Params
from stages.errors import Stage
from stages.evaluation import evaluate_encoder


@click.command(cls=Stage)
@click.option("--run", "name", required=True, help="A name under `runs` in params.yaml.")
@click.option("--dataset", required=True, help="A name under `transfer` in params.yaml.")
def main(name: str, dataset: str) -> None:
    """Writes artifacts/evaluate/<run>/transfer-<dataset>/metrics.json."""
    evaluate_encoder(
        "transfer",
        EVALUATION,
        Params.read(),
        name,
        code="transfer",
        data=TRANSFER / dataset,
        suffix=dataset,
    )


if __name__ == "__main__":
    main()
