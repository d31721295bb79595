"""The spread of one run's features over its own views of validation images."""

import click

from salmask.config import Params
from salmask.evaluate import variance
from salmask.evaluate.variance import Augmentation
from stages.common import STORE, readable_errors
from stages.evaluation import score


@click.command()
@click.option("--run", "name", required=True, help="A name under `runs` in params.yaml.")
@readable_errors
def main(name: str) -> None:
    """Writes artifacts/evaluate/<run>/variance/metrics.json."""
    params = Params.read()
    augmentation = Augmentation(params.run(name), STORE.resolve())
    score("variance", variance.run, params, name, beside=[augmentation], inputs=[STORE])


if __name__ == "__main__":
    main()
