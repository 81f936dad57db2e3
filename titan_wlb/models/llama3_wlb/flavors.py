"""Model shapes. The paper names no shape but 7B's (LLaMA-2 7B); the others are ours, of the sizes it names.

| flavor | layers | width | heads | K/V heads | feed-forward | vocabulary | parameters |
|---|---|---|---|---|---|---|---|
| 550M | 16 | 1536 | 16 | 16 | 4,096 | 32,000 | 0.55 B |
| 7B | 32 | 4096 | 32 | 32 | 11,008 | 32,000 | 6.7 B |
| 30B | 48 | 7168 | 56 | 56 | 19,456 | 32,000 | 30.4 B |
| 70B | 80 | 8192 | 64 | 16 | 28,672 | 32,000 | 70.3 B |

70B has 16 K/V heads since TP 16 needs that many. TorchTitan derives the feed-forward size from the width:
``multiple_of`` x ceil(8/3 width x ``ffn_dim_multiplier`` / ``multiple_of``).
"""

from torchtitan.models.llama3.model.args import TransformerModelArgs

FLAVORS: dict[str, TransformerModelArgs] = {
    # Narrow, so that attention is two thirds of the work of a document that fills a window of 4,096 (on a CPU).
    "debugmodel": TransformerModelArgs(
        dim=64, n_layers=6, n_heads=4, n_kv_heads=2, vocab_size=2048, multiple_of=64, rope_theta=500000
    ),
    "8B": TransformerModelArgs(
        dim=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        ffn_dim_multiplier=1.3,
        multiple_of=1024,
        rope_theta=500000,
    ),
    "550M": TransformerModelArgs(dim=1536, n_layers=16, n_heads=16, n_kv_heads=16, vocab_size=32000, multiple_of=256),
    "7B": TransformerModelArgs(dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, vocab_size=32000, multiple_of=256),
    "30B": TransformerModelArgs(dim=7168, n_layers=48, n_heads=56, n_kv_heads=56, vocab_size=32000, multiple_of=512),
    "70B": TransformerModelArgs(
        dim=8192,
        n_layers=80,
        n_heads=64,
        n_kv_heads=16,
        vocab_size=32000,
        ffn_dim_multiplier=1.3,
        multiple_of=4096,
    ),
}


def ffn_dim(args: TransformerModelArgs) -> int:
    """Width of the feed-forward layer, as TorchTitan's ``FeedForward`` derives it."""
    hidden = int(2 * 4 * args.dim / 3)
    if args.ffn_dim_multiplier is not None:
        hidden = int(args.ffn_dim_multiplier * hidden)
    return args.multiple_of * -(-hidden // args.multiple_of)
