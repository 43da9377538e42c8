"""Which device a process computes on."""

from __future__ import annotations

from typing import Literal

import torch

UseGpu = bool | Literal["auto"]


def wanted(use_gpu: UseGpu) -> torch.device:
    """A process's own device. Raises ValueError when a GPU was asked for and there is none."""
    there = torch.cuda.is_available()
    if use_gpu is True and not there:
        raise ValueError("use_gpu: this process sees no GPU; set use_gpu=false, or auto to take one where there is one")
    return torch.device("cuda" if use_gpu and there else "cpu")


def found(name: str | torch.device) -> torch.device:
    """A device by its name, or with `auto` a GPU where there is one. Raises ValueError when there is no such device."""
    if name == "auto":
        return wanted("auto")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: no device is called {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name} is not there ({torch.cuda.device_count()} GPUs); expected auto or cpu")
    return device


def described(device: torch.device) -> str:
    """For the first line of a run."""
    if device.type != "cuda":
        return f"CPU, {torch.get_num_threads()} thread(s)" if device.type == "cpu" else str(device)
    return f"GPU {torch.cuda.get_device_name(device)}"
