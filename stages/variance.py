"""The spread of features over one run's own views of validation images."""

import click

from salmask.evaluate import variance
from salmask.evaluate.variance import Augmentation
from salmask.params.run import read_run
from salmask.params.yaml_file import Params
from stages.errors import readable_errors
from stages.evaluation import score
from stages.paths import PRETRAIN, PROJECTOR, STORE


@click.command()
@click.option("--run", "name", required=True, help="A name under `runs` in params.yaml.")
@click.option("--through", default="", help="The run whose encoder sees the views; its own.")
@readable_errors
def main(name: str, through: str) -> None:
    """Writes artifacts/evaluate/<run>/variance/metrics.json, or variance-<through>/metrics.json."""
    params, encoder = Params.read(), PRETRAIN / (through or name)
    augmentation = Augmentation(read_run(params, name), STORE.resolve(), encoder.resolve(), through)
    score(
        "variance",
        variance.run,
        params,
        name,
        apart=through,
        encoder=encoder,
        beside=[augmentation],
        inputs=[encoder / PROJECTOR, STORE],
    )


if __name__ == "__main__":
    main()
