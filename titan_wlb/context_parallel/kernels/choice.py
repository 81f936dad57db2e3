"""Which attention kernel a run uses, decided once at its start."""

import logging
from importlib import import_module

import torch

__all__ = ["BACKENDS", "pick_backend"]

BACKENDS = ("flash_attn", "torch_varlen", "cpu")

logger = logging.getLogger(__name__)


def pick_backend(name: str, device: torch.device | str) -> str:
    """The kernel for ``device``. On CUDA it is compared with a dense reference on a tiny case before it is used.

    "auto" on CUDA takes FlashAttention 3 or 4 through torch's varlen attention where the machine offers them, else the
    flash-attn package, else the FlashAttention 2 that torch brings. FA3 and FA4 are switched on for the whole process.

    Args:
        name: "auto" or one of ``BACKENDS``, from ``[wlb] attention_backend``.
        device: where the tensors will be.

    Raises:
        ValueError: no such kernel, not for this device, or not working here; one line saying what is possible.
    """
    device = torch.device(device)
    possible = ("flash_attn", "torch_varlen") if device.type == "cuda" else ("cpu",)
    allowed = ", ".join(f'"{choice}"' for choice in ("auto", *possible))
    if name != "auto" and name not in possible:
        known = f"is not for {device.type} devices" if name in BACKENDS else "is not known"
        raise ValueError(f'wlb.attention_backend = "{name}" {known}; allowed here: {allowed}')
    if device.type != "cuda":
        return "cpu"
    return _first_that_works(name, device, allowed)


def _first_that_works(name: str, device: torch.device, allowed: str) -> str:
    from titan_wlb.context_parallel.kernels import torch_varlen
    from titan_wlb.context_parallel.kernels.check import check_kernel

    generation = torch_varlen.activate(device) if name != "flash_attn" else None
    preferred = ("torch_varlen", "flash_attn") if generation else ("flash_attn", "torch_varlen")
    reasons = []
    for candidate in preferred if name == "auto" else (name,):
        try:
            import_module(f"titan_wlb.context_parallel.kernels.{candidate}")
            check_kernel(candidate, device)
        except Exception as error:  # an extension that does not load or run raises whatever it likes
            reasons.append(f"{candidate}: {type(error).__name__}: {error}".splitlines()[0])
            continue
        logger.info(f"Attention kernel: {candidate}{f' ({generation})' if candidate == 'torch_varlen' else ''}")
        return candidate
    raise ValueError(f'wlb.attention_backend = "{name}" does not work here ({"; ".join(reasons)}); allowed: {allowed}')
