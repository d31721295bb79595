"""Images -> manifest: reads every new file once, lists what is usable and what is not."""

import click

from stages.errors import readable_errors
from stages.paths import DATA
from stages.preparation import prepare


@click.command()
@readable_errors
def main() -> None:
    """Writes artifacts/data: manifest.csv, rejected.csv, duplicates.csv, dataset.json (and the
    demo's images)."""
    prepare("prepare", "data", "", DATA)


if __name__ == "__main__":
    main()
