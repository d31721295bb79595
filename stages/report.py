"""Stage `report`: results, figures and lineage of the listed runs as one HTML page."""

from pathlib import Path

import click

from salmask.artifacts import DATA, EVALUATE, PRETRAIN, REPORT, SALIENCY
from stages.errors import Stage


@click.command(cls=Stage)
def main() -> None:
    """Writes artifacts/report: index.html, results.json and results.txt.

    DVC runs this stage when all others are done. Run by hand, it makes a partial report of what
    exists, and names what is missing.
    """
    # Imported here, so that wrong options are reported before the slow imports.
    from salmask.devices import pick_device
    from salmask.params.names import evaluation_folders
    from salmask.params.yaml_file import Params
    from salmask.report import page
    from slurm.folder import failures, runs_folder
    from stages.provenance import stage_recipe, write_provenance

    params = Params.read()
    report = page.build(params, Path.cwd(), pick_device(), failures(runs_folder(Path.cwd())))
    page.write(report, REPORT)
    # Only the runs of params.yaml: the files of a run that was removed from it may still exist.
    evaluated = evaluation_folders(params)
    inputs = [DATA, SALIENCY, *(PRETRAIN / run for run in evaluated)]
    inputs += [EVALUATE / run / folder for run, folders in evaluated.items() for folder in folders]
    made_from = [path for path in inputs if path.exists()]  # a report may be partial
    write_provenance(stage_recipe(params, "report", inputs=made_from), REPORT)
    print(f"\n{report.text}\n\nreport: {REPORT}/index.html")


if __name__ == "__main__":
    main()
