"""TorchTitan on machines without an accelerator. Read in torchtitan 0.2.2, torch 2.11 to 2.13.

TorchTitan asks torch for the accelerator while it is imported and takes "cuda" where there is none. Importing this
module first makes it find the CPU instead, with a device module that answers what TorchTitan asks of one. It does
nothing on a machine with an accelerator, and nothing after torchtitan has been imported.
"""

import sys
import types
from typing import Any, NamedTuple

import torch
import torch._utils as torch_utils

# Peak of a CPU core in FLOP/s, of the right order; TorchTitan would take an A100's.
CPU_PEAK_FLOPS = 100 * 10**9


class _CpuProperties(NamedTuple):
    name: str
    total_memory: int


def _total_memory() -> int:
    """Bytes of memory of this machine; 1 where the system does not tell (it is only a denominator)."""
    try:
        with open("/proc/meminfo") as lines:
            return int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) * 1024
    except (OSError, StopIteration):
        return 1


def _peak_resident() -> int:
    """Largest resident set of this process since the last reset, in bytes; -1 where the system does not tell."""
    try:
        with open("/proc/self/status") as lines:
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        return -1


def _reset_peak_resident() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # the peak then counts from the start of the process


def _cpu_device_module() -> types.ModuleType:
    """torch.cpu, completed by what TorchTitan 0.2.2 asks of a device module."""
    module: Any = types.ModuleType("titan_wlb_cpu_device")
    module.__dict__.update({name: value for name, value in vars(torch.cpu).items() if not name.startswith("__")})
    module.current_device = lambda: 0
    module.set_device = lambda device: None
    module.device_count = lambda: 1
    module.is_available = lambda: False
    module.get_device_name = lambda device=None: "CPU"
    module.get_device_properties = lambda device=None: _CpuProperties("CPU", _total_memory())
    module.memory_stats = lambda device=None: {
        "active_bytes.all.peak": _peak_resident(),
        "reserved_bytes.all.peak": _peak_resident(),
        "num_alloc_retries": 0,
        "num_ooms": 0,
    }
    module.reset_peak_memory_stats = lambda device=None: _reset_peak_resident()
    module.empty_cache = lambda: None
    module.synchronize = lambda device=None: None
    return module


def _prepare() -> None:
    if "torchtitan.tools.utils" in sys.modules or torch_utils._get_available_device_type() is not None:
        return
    module = _cpu_device_module()
    of_type, of_module = torch_utils._get_available_device_type, torch_utils._get_device_module
    torch_utils._get_available_device_type = lambda: "cpu"
    torch_utils._get_device_module = lambda device_type: module if device_type == "cpu" else of_module(device_type)
    try:
        import torchtitan.tools.utils
    finally:
        torch_utils._get_available_device_type, torch_utils._get_device_module = of_type, of_module
    torchtitan.tools.utils.get_peak_flops = lambda device_name: CPU_PEAK_FLOPS


def _stand_in_for_moe_kernels() -> None:
    """CPU builds of torch lack triton, which TorchTitan imports for mixture-of-experts kernels alone."""
    try:
        import triton  # noqa: F401
    except ImportError:
        name = "torchtitan.models.moe.kernels"
        kernels: Any = types.ModuleType(name)

        def generate_permute_indices(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("mixture-of-experts permutation needs triton, which CPU builds of torch lack")

        kernels.generate_permute_indices = generate_permute_indices
        sys.modules.setdefault(name, kernels)


_stand_in_for_moe_kernels()
_prepare()
