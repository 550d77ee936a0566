"""Devices by name."""

from __future__ import annotations

import os

import torch

__all__ = ["choose_device"]


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device of a name; ``"auto"`` takes CUDA, else Apple's MPS, else the CPU.

    Of several CUDA devices a process started by torchrun takes its own for ``"auto"`` and ``"cuda"``.

    Raises:
        ValueError: If the name is no device, or the device is not there.
    """
    if str(device) in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if str(device) == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    wrong = f"{str(device)!r} is no device here; expected auto, cpu, cuda, cuda:1 or mps"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(wrong) from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ValueError(wrong)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available here; use device='cpu' or 'auto'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"there is no {chosen}: this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0 on"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("no MPS device is available here; use device='cpu' or 'auto'")
    return chosen
