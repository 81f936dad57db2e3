"""TorchTitan's Llama 3 with attention inside documents, over the context-parallel ranks.

Parameters, their names, their initialisation and every other layer are TorchTitan's, so that checkpoints move freely
between the two.
"""

import torch
from torchtitan.models.llama3.model.args import TransformerModelArgs
from torchtitan.models.llama3.model.model import Attention, Transformer, apply_rotary_emb

from titan_wlb.compat.async_tensor import wait_for
from titan_wlb.context_parallel.metadata import AttentionMetadata
from titan_wlb.context_parallel.op import attention


class DocumentAttention(Attention):
    """Causal attention of each token to the tokens before it in its own document.

    The input holds this CP rank's rows of one micro-batch; keys and values of other ranks come in the attention op.
    """

    def forward(
        self,
        x: torch.Tensor,
        freqs_cis: torch.Tensor,
        attention_masks: AttentionMetadata,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Attends.

        Args:
            x: [1, T, dim], T rows of this CP rank, padding included.
            freqs_cis: complex64 [context window, head_dim / 2].
            attention_masks: which rows belong together; TorchTitan's name of the argument, kept for its TP plan.
            positions: int64 [1, T], counted from each segment's first token.

        Returns:
            [1, T, dim]
        """
        bs, seqlen, _ = x.shape
        q, k, v = self.wq(x), self.wk(x), self.wv(x)
        # -1: the heads that tensor parallelism left on this rank
        q = q.view(bs, seqlen, -1, self.head_dim)
        k = k.view(bs, seqlen, -1, self.head_dim)
        v = v.view(bs, seqlen, -1, self.head_dim)
        q, k = apply_rotary_emb(q, k, freqs_cis=freqs_cis, positions=positions)
        out = attention(q, k, v, attention_masks, self.head_dim**-0.5)
        return self.wo(out.view(bs, seqlen, -1))


class WLBTransformer(Transformer):
    """TorchTitan's Transformer with :class:`DocumentAttention` in every block."""

    def __init__(self, model_args: TransformerModelArgs):
        super().__init__(model_args)
        for block in self.layers.values():
            block.attention = DocumentAttention(model_args)

    def forward(
        self,
        tokens: torch.Tensor,
        attention_masks: AttentionMetadata | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs this stage's layers.

        Args:
            tokens: int64 [1, T] on the first pipeline stage, else activations [1, T / TP, dim].
            attention_masks: of this micro-batch, on every stage.
            positions: int64 [1, T], on every stage.

        Returns:
            Logits [1, T, vocabulary] on the last stage, else activations [1, T / TP, dim].
        """
        # Under TP the embedding's output is still on its way, which torch.compile of the blocks cannot take.
        h = wait_for(self.tok_embeddings(tokens)) if self.tok_embeddings is not None else tokens
        for layer in self.layers.values():
            h = layer(h, self.freqs_cis, attention_masks, positions)
        h = self.norm(h) if self.norm is not None else h
        return self.output(h) if self.output is not None else h
