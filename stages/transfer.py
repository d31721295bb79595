"""Frozen features of one run's encoder on another dataset."""

import click

from salmask.evaluate import transfer
from salmask.params.yaml_file import Params
from stages.errors import readable_errors
from stages.evaluation import score
from stages.paths import TRANSFER


@click.command()
@click.option("--run", "name", required=True, help="A name under `runs` in params.yaml.")
@click.option("--dataset", required=True, help="A name under `transfer` in params.yaml.")
@readable_errors
def main(name: str, dataset: str) -> None:
    """Writes artifacts/evaluate/<run>/transfer-<dataset>/metrics.json."""
    data = TRANSFER / dataset
    score("transfer", transfer.run, Params.read(), name, data=data, apart=dataset)


if __name__ == "__main__":
    main()
