"""The spread of features over the views of one run, measured on validation images."""

import click

from salmask.artifacts import PRETRAIN, PROJECTOR, STORE
from salmask.evaluate.variance import EVALUATION, RunViews
from salmask.params.overlay import run_choice, run_section
from salmask.params.view import ViewConfig
from salmask.params.yaml_file import Params
from stages.errors import Stage
from stages.evaluation import evaluate_encoder


@click.command(cls=Stage)
@click.option("--run", "name", required=True, help="The run that makes the views.")
@click.option("--through", default="", help="The run of the encoder; the same run by default.")
def main(name: str, through: str) -> None:
    """Writes artifacts/evaluate/<run>/variance/metrics.json, or variance-<through>/metrics.json."""
    params, encoder = Params.read(), PRETRAIN / (through or name)
    views = RunViews(
        run=name,
        view=run_section(params, name, "view", ViewConfig),
        mask=run_choice(params, name, "mask"),
        store=STORE.absolute(),
        encoder=encoder.absolute(),
        through=through,
    )
    evaluate_encoder(
        "variance",
        EVALUATION,
        params,
        name,
        code=f"variance/{name}",
        suffix=through,
        encoder=encoder,
        inputs=[views],
        files=[encoder / PROJECTOR, STORE],
    )


if __name__ == "__main__":
    main()
