"""The modules that decide the result of each stage, as its parameters select them.

A stage is identified by a key, which is also the name of its digest file below artifacts/code:
`saliency`, `pretrain/<run>`, `evaluate/<protocol>`, `transfer_data/<name>`.
"""

from collections.abc import Callable
from typing import Any

from salmask.by_name import ByName
from salmask.params.encoder import EncoderConfig
from salmask.params.names import import_names, run_names
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
    selected = _SELECTED[stage](Params(params.values, params.source), name)
    return (f"stages.{stage}", *selected)


def stage_keys(params: Params) -> list[str]:
    """The keys of all stages of a project."""
    params = Params(params.values, params.source)
    protocols = {*params.section("evaluate.protocols", list[str]), *CHOSEN_PROTOCOLS}
    return [
        *("prepare", "localizer", "saliency", "transfer", "detect", "report"),
        *(f"pretrain/{run}" for run in run_names(params)),
        *(f"variance/{run}" for run in run_names(params)),
        *(f"imported/{name}" for name in import_names(params)),
        *(f"evaluate/{protocol}" for protocol in sorted(protocols)),
        *(f"transfer_data/{name}" for name in params.names("transfer")),
        *(f"detect_data/{name}" for name in params.names("detect")),
    ]


def _data_set(package: str, key: str) -> Callable[[Params, str], list[str]]:
    def selected(params: Params, name: str) -> list[str]:
        return [f"{package}.{params.choice(key.format(name=name)).name}"]

    return selected


def _localizer(params: Params, name: str) -> list[str]:
    localizer = params.choice("localizer").name
    return [f"salmask.saliency.localizers.{localizer}", *_ALL_BACKBONES]


def _pretrain(params: Params, run: str) -> list[str]:
    encoder = run_section(params, run, "encoder", EncoderConfig)
    framework = run_choice(params, run, "framework").name
    return [
        f"salmask.masks.{run_choice(params, run, 'mask').name}",
        f"salmask.frameworks.{framework}",
        f"{_BACKBONES}.{encoder.family}",
    ]


def _imported(params: Params, name: str) -> list[str]:
    entry = params.section(f"imports.{name}", dict[str, Any])
    encoder = EncoderConfig(arch=str(entry.get("arch")))
    layout = entry.get("layout", "auto")
    layouts = [layout] if layout != "auto" else ByName("salmask.encoders.layouts", "LAYOUT")
    return [*(f"salmask.encoders.layouts.{n}" for n in layouts), f"{_BACKBONES}.{encoder.family}"]


def _variance(params: Params, run: str) -> list[str]:
    mask = run_choice(params, run, "mask").name
    return [f"salmask.masks.{mask}", *_ALL_BACKBONES]


def _report(params: Params, name: str) -> list[str]:
    packages = {
        "salmask.masks": "MASK",
        "salmask.frameworks": "Framework",
        "salmask.evaluate": "EVALUATION",
    }
    named = [f"{p}.{n}" for p, record in packages.items() for n in ByName(p, record)]
    return [*named, *_ALL_BACKBONES]


_SELECTED: dict[str, Callable[[Params, str], list[str] | tuple[str, ...]]] = {
    "prepare": _data_set("salmask.datasets", "data"),
    "transfer_data": _data_set("salmask.datasets", "transfer.{name}"),
    "detect_data": _data_set("salmask.detection.datasets", "detect.{name}.data"),
    "localizer": _localizer,
    "saliency": lambda params, name: _ALL_BACKBONES,
    "pretrain": _pretrain,
    "imported": _imported,
    "evaluate": lambda params, name: (f"salmask.evaluate.{name}", *_ALL_BACKBONES),
    "transfer": lambda params, name: _ALL_BACKBONES,
    "variance": _variance,
    "detect": lambda params, name: _ALL_BACKBONES,
    "report": _report,
}
