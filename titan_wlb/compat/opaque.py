"""Python objects as arguments of custom ops, and what torch.compile must know of them. Read in torch 2.11 to 2.13.

torch passes an *opaque object* through Dynamo, AOTAutograd, checkpointing and FSDP as it is: nothing of it is guarded
on, so another object at the next call compiles nothing anew. Where torch lacks them (``SUPPORTED`` is False), an
object travels as an int handle instead, see ``handle_of``.
"""

import itertools
import weakref
from typing import Any, TypeVar

import torch

try:
    from torch._library.opaque_object import register_opaque_type
    from torch._opaque_base import OpaqueBase

    SUPPORTED = True
except ImportError:
    OpaqueBase = object
    SUPPORTED = False

__all__ = ["SUPPORTED", "OpaqueBase", "handle_of", "mark_dynamic", "object_of", "register_opaque"]

T = TypeVar("T", bound=type)

_handles = itertools.count(1 << 20)  # far from sizes, with which the compiler might take a handle to be equal
_objects: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


def register_opaque(cls: T) -> T:
    """Class decorator: instances may be arguments of custom ops. The class must derive from ``OpaqueBase``."""
    if SUPPORTED:
        register_opaque_type(cls, typ="reference")
    return cls


def handle_of(value: Any) -> int:
    """An int that stands for ``value`` and that the compiler does not specialise on (a ``DynamicInt``).

    The registry does not keep ``value`` alive: whoever hands the handle to a model keeps it until after backward.
    """
    handle = getattr(value, "_opaque_handle", None)
    if handle is None:
        from torch.fx.experimental.sym_node import DynamicInt

        handle = DynamicInt(next(_handles))
        value._opaque_handle = handle
        _objects[int(handle)] = value
    return handle


def object_of(handle: int) -> Any:
    """The object that a handle stands for.

    Raises:
        RuntimeError: nobody kept the object.
    """
    try:
        return _objects[int(handle)]
    except KeyError:
        raise RuntimeError("attention metadata was dropped before its micro-batch's backward; keep it") from None


def mark_dynamic(tensor: torch.Tensor, dim: int) -> None:
    """Tell torch.compile that ``dim`` changes from call to call. Not for sizes 0 and 1, which it always specialises."""
    torch._dynamo.mark_dynamic(tensor, dim)
