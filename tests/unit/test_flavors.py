"""The models have the shapes that they are said to have: parameters on the meta device against arithmetic."""

import pytest

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
import torch

from titan_wlb.build import model_shape
from titan_wlb.models.llama3_wlb.flavors import FLAVORS, ffn_dim
from titan_wlb.models.llama3_wlb.model import WLBTransformer

# layers, width, heads, K/V heads, feed-forward width, vocabulary; all parameters
SHAPES = {
    "debugmodel": (6, 64, 4, 2, 192, 2048, 557_888),
    "8B": (32, 4096, 32, 8, 14_336, 128_256, 8_030_261_248),  # Llama 3 8B
    "550M": (16, 1536, 16, 16, 4096, 32_000, 551_339_520),
    "7B": (32, 4096, 32, 32, 11_008, 32_000, 6_738_415_616),  # LLaMA-2 7B
    "30B": (48, 7168, 56, 56, 19_456, 32_000, 30_406_777_856),
    "70B": (80, 8192, 64, 16, 28_672, 32_000, 70_318_825_472),
}


def test_every_flavor_stands_here():
    assert set(SHAPES) == set(FLAVORS)


@pytest.mark.parametrize("flavor", SHAPES)
def test_a_flavor_has_its_shape(flavor):
    layers, width, heads, kv_heads, feed_forward, vocabulary, _ = SHAPES[flavor]
    args = FLAVORS[flavor]
    assert (args.n_layers, args.dim, args.n_heads, args.n_kv_heads) == (layers, width, heads, kv_heads)
    assert (ffn_dim(args), args.vocab_size) == (feed_forward, vocabulary)
    shape = model_shape(args)
    assert (shape.head_dim, shape.ffn_dim) == (width // heads, feed_forward)


@pytest.mark.parametrize("flavor", SHAPES)
def test_a_flavor_has_exactly_so_many_parameters(flavor):
    layers, width, heads, kv_heads, feed_forward, vocabulary, number = SHAPES[flavor]
    head = width // heads
    attention = width * heads * head + 2 * width * kv_heads * head + heads * head * width
    norms = 2 * width
    computed = vocabulary * width + layers * (attention + 3 * width * feed_forward + norms) + width + width * vocabulary
    with torch.device("meta"):
        model = WLBTransformer(FLAVORS[flavor])
    assert computed == number
    assert sum(parameter.numel() for parameter in model.parameters()) == number
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
