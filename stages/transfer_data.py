"""Stage `transfer_data`: reads the images of a data set of `transfer` and writes their manifest."""

import click

from salmask.artifacts import TRANSFER
from stages.dataset_stage import prepare_dataset
from stages.errors import Stage


@click.command(cls=Stage)
@click.option("--name", required=True, help="A name under `transfer` in params.yaml.")
def main(name: str) -> None:
    """Writes artifacts/transfer/<name>, with the same files as `prepare`."""
    prepare_dataset("transfer_data", f"transfer.{name}", name, TRANSFER / name)


if __name__ == "__main__":
    main()
