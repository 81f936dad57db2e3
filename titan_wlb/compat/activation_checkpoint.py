"""Ops whose results selective activation checkpointing keeps. Read in torchtitan 0.2.2 (``_op_sac_save_list``).

A copy of TorchTitan's list without the attention ops that our model never calls: the list there is private, and
additions to it would change other models.
"""

import torch

OPS_TO_SAVE = {
    torch.ops.aten.mm.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    # the absolute maximum is what low precision scales by
    torch.ops.aten.max.default,
    torch._higher_order_ops.inductor_compiled_code,
}
