"""The images of one dataset of `transfer:` -> a manifest, as `prepare` makes it."""

import click

from stages.errors import readable_errors
from stages.paths import TRANSFER
from stages.preparation import prepare


@click.command()
@click.option("--name", required=True, help="A name under `transfer` in params.yaml.")
@readable_errors
def main(name: str) -> None:
    """Writes artifacts/transfer/<name>: manifest.csv, dataset.json and what else prepare writes."""
    prepare("transfer_data", f"transfer.{name}", name, TRANSFER / name)


if __name__ == "__main__":
    main()
