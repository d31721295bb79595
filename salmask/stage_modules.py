"""The modules that decide the result of each stage, as its parameters select them.

A stage is identified by a key, which is also the name of its digest file below artifacts/code:
`saliency`, `pretrain/<run>`, `evaluate/<protocol>`, `transfer_data/<name>`.
"""

from typing import Any

from salmask.by_name import ByName
from salmask.params.encoder import EncoderConfig
from salmask.params.names import import_names, protocol_names, run_names
from salmask.params.overlay import run_choice, run_section
from salmask.params.yaml_file import Params

CHOSEN_PROTOCOLS = ("linear", "finetune")  # chosen evaluations that stages.evaluate runs
_BACKBONES = "salmask.encoders.backbones"
_ALL_BACKBONES = (f"{_BACKBONES}.residual", f"{_BACKBONES}.torchvision_models")


def stage_modules(params: Params, key: str) -> tuple[str, ...]:
    """The stage's script, and the modules that its parameters select by name.

    Args:
        params: the parameters. This call does not count as reading them.
        key: `<stage>` or `<stage>/<name>`.
    """
    stage, _, name = key.partition("/")
    return (f"stages.{stage}", *_selected(Params(params.values, params.source), stage, name))


def stage_keys(params: Params) -> list[str]:
    """The keys of all stages of a project."""
    params = Params(params.values, params.source)
    protocols = {*protocol_names(params), *CHOSEN_PROTOCOLS}
    return [
        *("prepare", "localizer", "saliency", "transfer", "detect", "report"),
        *(f"pretrain/{run}" for run in run_names(params)),
        *(f"variance/{run}" for run in run_names(params)),
        *(f"imported/{name}" for name in import_names(params)),
        *(f"evaluate/{protocol}" for protocol in sorted(protocols)),
        *(f"transfer_data/{name}" for name in params.names("transfer")),
        *(f"detect_data/{name}" for name in params.names("detect")),
    ]


def _selected(params: Params, stage: str, name: str) -> list[str]:
    """The modules that the parameters select for a stage."""
    match stage:
        case "prepare":
            return [f"salmask.datasets.{params.choice('data').name}"]
        case "transfer_data":
            return [f"salmask.datasets.{params.choice(f'transfer.{name}').name}"]
        case "detect_data":
            return [f"salmask.detection.datasets.{params.choice(f'detect.{name}.data').name}"]
        case "localizer":
            localizer = params.choice("localizer").name
            return [f"salmask.saliency.localizers.{localizer}", *_ALL_BACKBONES]
        case "pretrain":
            encoder = run_section(params, name, "encoder", EncoderConfig)
            mask, framework = (run_choice(params, name, key) for key in ("mask", "framework"))
            return [
                f"salmask.masks.{mask.name}",
                f"salmask.frameworks.{framework.name}",
                f"{_BACKBONES}.{encoder.family}",
            ]
        case "imported":
            entry = params.section(f"imports.{name}", dict[str, Any])
            encoder = EncoderConfig(arch=str(entry.get("arch")))
            layout = entry.get("layout", "auto")
            package = "salmask.encoders.layouts"
            layouts = _all(package, "LAYOUT") if layout == "auto" else [f"{package}.{layout}"]
            return [*layouts, f"{_BACKBONES}.{encoder.family}"]
        case "evaluate":
            return [f"salmask.evaluate.{name}", *_ALL_BACKBONES]
        case "variance":
            return [f"salmask.masks.{run_choice(params, name, 'mask').name}", *_ALL_BACKBONES]
        case "report":
            masks = _all("salmask.masks", "MASK")
            frameworks = _all("salmask.frameworks", "Framework")
            evaluations = _all("salmask.evaluate", "EVALUATION")
            return [*masks, *frameworks, *evaluations, *_ALL_BACKBONES]
        case _:
            return [*_ALL_BACKBONES]


def _all(package: str, record: str) -> list[str]:
    """The modules of a package that define a record."""
    records: ByName[Any] = ByName(package, record)
    return [records.module(name) for name in records]
