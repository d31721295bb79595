"""One evaluation protocol on the encoder of one run."""

import click

from salmask.errors import UserError
from salmask.evaluate import EVALUATIONS
from salmask.params.values import pick
from salmask.params.yaml_file import Params
from salmask.stage_modules import CHOSEN_PROTOCOLS
from stages.errors import Stage
from stages.evaluation import evaluate_encoder


@click.command(cls=Stage)
@click.option("--protocol", required=True, help="The name of a module in salmask/evaluate.")
@click.option("--run", "name", required=True, help="A name under `runs` or `imports`.")
def main(protocol: str, name: str) -> None:
    """Writes artifacts/evaluate/<run>/<protocol>/metrics.json."""
    evaluation = pick(EVALUATIONS, protocol, "--protocol")
    if not evaluation.every_run and protocol not in CHOSEN_PROTOCOLS:
        raise UserError(f"--protocol: {protocol} has a stage of its own, `stages.{protocol}`")
    evaluate_encoder(protocol, evaluation, Params.read(), name)


if __name__ == "__main__":
    main()
