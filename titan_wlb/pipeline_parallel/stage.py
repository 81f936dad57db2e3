"""A pipeline stage whose buffers follow each micro-batch's own length.

    micro-batch      0           1           2
    rows             96          64          128
    receive buffer   [1, 96, D]  [1, 64, D]  [1, 128, D]     allocated when the receive is issued,
                                                             freed when the micro-batch's backward is done

Lengths come from the plan, which every rank has: stages never exchange shapes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage


class VariableLengthStage(PipelineStage):
    """torch's stage for activations of shape [1, rows of the micro-batch, width].

    Args:
        width: size of the activations' last dim.
        dtype: of the activations between stages.
        clock: marks the stage's actions; may be set after construction.

    The other arguments are ``PipelineStage``'s.
    """

    def __init__(
        self,
        submodule: torch.nn.Module,
        stage_index: int,
        num_stages: int,
        device: torch.device,
        *,
        width: int,
        dtype: torch.dtype,
        **kwargs: Any,
    ):
        # Static metadata: without it torch runs a real forward and backward and sends shapes at its first step.
        # The one row here stands for any number; the buffers that torch makes from it are replaced below.
        tokens = torch.empty(1, 1, dtype=torch.int64, device=device)
        activations = torch.empty(1, 1, width, dtype=dtype, device=device, requires_grad=True)
        super().__init__(
            submodule,
            stage_index,
            num_stages,
            device,
            input_args=tokens if stage_index == 0 else activations,
            output_args=activations,
            **kwargs,
        )
        self.width = width
        self.dtype = dtype
        self.clock: Any = None
        self._rows: tuple[int, ...] = ()

    def expect(self, rows: Sequence[int]) -> None:
        """Tells the rows of each coming micro-batch's activations on this rank: tokens of the CP rank / TP."""
        self._rows = tuple(rows)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[torch.distributed.P2POp]:
        if not self.is_first:
            self._allocate(self.args_recv_info[fwd_chunk_id], fwd_chunk_id)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[torch.distributed.P2POp]:
        if self.has_backward and not self.is_last:
            self._allocate(self.grad_recv_info[bwd_chunk_id], bwd_chunk_id)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self.clock.mark("F", self.stage_index, fwd_chunk_id)
        return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        self.clock.mark("B", self.stage_index, bwd_chunk_id)
        super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        for info in (*self.args_recv_info[bwd_chunk_id], *self.grad_recv_info.get(bwd_chunk_id, ())):
            info.buffer = None

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        self.clock.mark("W", self.stage_index, bwd_chunk_id)
        super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        self.clock.mark("R", self.stage_index, 0)
        super().perform_reduce_grad(grad_scale_factor)

    def _allocate(self, infos: Sequence[Any], micro_batch: int) -> None:
        for info in infos:
            info.buffer = torch.empty(1, self._rows[micro_batch], self.width, dtype=self.dtype, device=self.device)
