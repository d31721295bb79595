"""Stage `report`: results, figures and lineage of the listed runs as one HTML page."""

from pathlib import Path

import click

from stages.errors import readable_errors
from stages.paths import DATA, EVALUATE, PRETRAIN, REPORT, SALIENCY, STORE


@click.command()
@readable_errors
def main() -> None:
    """Writes artifacts/report: index.html, results.json and results.txt."""
    # Imported here, so that wrong options are reported before the slow imports.
    from salmask.devices import pick_device
    from salmask.files import write_json
    from salmask.params.names import chosen_evaluations, import_names, run_names
    from salmask.params.run import read_run
    from salmask.params.yaml_file import Params
    from salmask.provenance import FILE_NAME, recipe, record
    from salmask.report import comparison, page, responses
    from salmask.stage_modules import stage_modules

    params = Params.read()
    runs = [read_run(params, name) for name in run_names(params)]
    imported = import_names(params)
    protocols, chosen = params.section("evaluate.protocols", list[str]), chosen_evaluations(params)
    folders = page.ArtifactFolders(
        root=Path.cwd(),
        data=DATA.resolve(),
        store=STORE.resolve(),
        pretrain=PRETRAIN.resolve(),
        evaluate=EVALUATE.resolve(),
    )
    report = page.build(
        runs,
        protocols,
        chosen,
        params.seed(),
        folders,
        pick_device(),
        imported,
        comparison.read_tables(params),
        responses.sweeps(params),
    )
    page.write(report, REPORT)
    # Only the runs of params.yaml: the files of a run that was removed from it may still exist.
    names = [*(run.name for run in runs), *imported]
    inputs = [DATA, SALIENCY, *(PRETRAIN / name for name in names)]
    inputs += [EVALUATE / name / done for name in names for done in [*protocols, *chosen[name]]]
    modules = stage_modules(params, "report")
    made_by = recipe("report", "", modules, params.reads, inputs, Path.cwd())
    write_json(REPORT / FILE_NAME, record(made_by, REPORT, pick_device()))
    print(f"\n{report.text}\n\nreport: {REPORT}/index.html")


if __name__ == "__main__":
    main()
