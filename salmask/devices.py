"""Which device computes, and in which precision."""

import contextlib
import os
from typing import Literal, TypeVar

import torch
from torch import nn

from salmask.errors import UserError

Module = TypeVar("Module", bound=nn.Module)
Precision = Literal["auto", "float32", "bfloat16"]


def pick_device() -> torch.device:
    """The device named in SALMASK_DEVICE, else the first CUDA device, else the CPU.

    Raises UserError for a name that means nothing here.
    """
    there = torch.cuda.is_available()
    name = os.environ.get("SALMASK_DEVICE") or ("cuda" if there else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"SALMASK_DEVICE: {name} is no device; `cpu` and `cuda` are") from None
    if device.type == "cuda" and not there:
        raise UserError(f"SALMASK_DEVICE: {name}: torch {torch.__version__} finds no GPU here")
    return device


def place(module: Module, device: torch.device) -> Module:
    """A module on a device, in the memory layout that convolutions are fastest in; in place."""
    module.to(device)
    module.to(memory_format=torch.channels_last)
    return module


def autocast(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[object]:
    """The forward pass's precision: `auto` is bfloat16 on CUDA and float32 elsewhere."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
