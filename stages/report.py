"""Results, curves, pictures and lineage of the listed runs -> one self-contained page."""

from pathlib import Path

import click

from salmask.devices import pick_device
from salmask.files import write_json
from salmask.params.names import chosen_evaluations, import_names, run_names
from salmask.params.run import read_run
from salmask.params.yaml_file import Params
from salmask.provenance import FILE_NAME, recipe, record
from salmask.report import comparison, page, responses
from salmask.stage_modules import stage_modules
from stages.errors import readable_errors
from stages.paths import DATA, EVALUATE, PRETRAIN, REPORT, SALIENCY, STORE


@click.command()
@readable_errors
def main() -> None:
    """Writes artifacts/report: index.html and results.json."""
    params = Params.read()
    runs = [read_run(params, name) for name in run_names(params)]
    imported = import_names(params)
    protocols, seed = params.section("evaluate.protocols", list[str]), params.seed()
    chosen = chosen_evaluations(params)
    places = page.Places(
        root=Path.cwd(),
        data=DATA.resolve(),
        store=STORE.resolve(),
        pretrain=PRETRAIN.resolve(),
        evaluate=EVALUATE.resolve(),
    )
    wanted, swept = comparison.declared(params), responses.sweeps(params)
    report = page.build(
        runs, protocols, chosen, seed, places, pick_device(), imported, wanted, swept
    )
    page.write(report, REPORT)
    # By name: the files of a run that params.yaml no longer lists may still lie there.
    names = [*(run.name for run in runs), *imported]
    inputs = [DATA, SALIENCY, *(PRETRAIN / name for name in names)]
    inputs += [EVALUATE / name / done for name in names for done in [*protocols, *chosen[name]]]
    made_by = recipe(
        "report", "", stage_modules(params, "report"), params.reads, inputs, Path.cwd()
    )
    write_json(REPORT / FILE_NAME, record(made_by, REPORT, pick_device()))
    print(f"\n{report.text}\n\nreport: {REPORT}/index.html")


if __name__ == "__main__":
    main()
