"""Stage `prepare`: reads the images of `data` and writes their manifest."""

import click

from salmask.artifacts import DATA
from stages.dataset_stage import prepare_dataset
from stages.errors import Stage


@click.command(cls=Stage)
def main() -> None:
    """Writes artifacts/data: manifest.csv, manifest.safetensors, rejected.csv, duplicates.csv,
    dataset.json, and the images of data sets that are drawn or unpacked."""
    prepare_dataset("prepare", "data", "", DATA)


if __name__ == "__main__":
    main()
