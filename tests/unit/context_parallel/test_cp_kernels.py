"""The kernels and their wrappers. CUDA kernels are stood in for by dense attention behind the real signatures."""

import importlib
import sys
import types
from itertools import pairwise

import pytest
import torch

from titan_wlb.context_parallel.kernels import choice, document_attention, document_attention_backward, pick_backend
from titan_wlb.context_parallel.kernels.check import check_kernel, dense_attention


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_cpu_kernel_equals_dense_attention(dtype):
    check_kernel("cpu", "cpu", dtype)


def test_a_wrong_kernel_is_found_out(monkeypatch):
    from titan_wlb.context_parallel.kernels import cpu

    right = cpu.backward
    monkeypatch.setattr(cpu, "backward", lambda *args: (right(*args)[0], right(*args)[2], right(*args)[1]))
    with pytest.raises(RuntimeError, match=r"cpu attention is off by .* in dk"):
        check_kernel("cpu", "cpu")


def test_rows_of_keys_may_be_strided():
    q = torch.randn(5, 4, 8)
    k, v = torch.randn(9, 2, 2, 8).unbind(1)
    segments = (torch.tensor([0, 5], dtype=torch.int32), torch.tensor([0, 9], dtype=torch.int32), 5, 9, 0.3)
    found = document_attention(q, k, v, *segments, backend="cpu")
    expected = document_attention(q, k.contiguous(), v.contiguous(), *segments, backend="cpu")
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)
    for x in document_attention_backward(q, q, k, v, *found, *segments, backend="cpu"):
        assert x.is_contiguous()


def test_flash_attn_is_called_by_its_own_names(flash_attn_2_8):
    check_kernel("flash_attn", "cpu", torch.bfloat16)


def test_torch_s_flash_ops_are_called_in_their_own_order(aten_flash_on_cpu):
    check_kernel("torch_varlen", "cpu", torch.bfloat16)


@pytest.mark.parametrize("backend", ["flash_attn", "torch_varlen"])
def test_float32_is_rounded_for_kernels_that_cannot_take_it(backend, flash_attn_2_8, aten_flash_on_cpu):
    q, dout = torch.randn(6, 4, 8), torch.randn(6, 4, 8)
    k, v = torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    segments = (torch.tensor([0, 6], dtype=torch.int32), torch.tensor([0, 9], dtype=torch.int32), 6, 9, 0.3)
    out, lse = document_attention(q, k, v, *segments, backend=backend)
    gradients = document_attention_backward(dout, q, k, v, out, lse, *segments, backend=backend)
    assert {x.dtype for x in (out, lse, *gradients)} == {torch.float32}
    assert torch.equal(out, out.bfloat16().float())


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_cpu_takes_the_cpu_kernel(name):
    assert pick_backend(name, "cpu") == "cpu"


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("flash", "cpu", 'wlb.attention_backend = "flash" is not known; allowed here: "auto", "cpu"'),
        (
            "flash_attn",
            "cpu",
            'wlb.attention_backend = "flash_attn" is not for cpu devices; allowed here: "auto", "cpu"',
        ),
        (
            "cpu",
            "cuda",
            'wlb.attention_backend = "cpu" is not for cuda devices; allowed here: "auto", "flash_attn", "torch_varlen"',
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, device, message):
    with pytest.raises(ValueError) as error:
        pick_backend(name, device)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "generation", "broken", "expected"),
    [
        ("auto", "FA3", (), "torch_varlen"),
        ("auto", None, (), "flash_attn"),
        ("auto", None, ("flash_attn",), "torch_varlen"),
        ("auto", "FA3", ("torch_varlen",), "flash_attn"),
        ("torch_varlen", None, (), "torch_varlen"),
        ("flash_attn", None, (), "flash_attn"),
    ],
)
def test_a_gpu_takes_the_newest_kernel_that_works(monkeypatch, flash_attn_2_8, name, generation, broken, expected):
    use_kernels(monkeypatch, generation, broken)
    assert pick_backend(name, "cuda") == expected


def test_no_working_kernel_is_told_with_reasons(monkeypatch, flash_attn_2_8):
    use_kernels(monkeypatch, None, ("flash_attn", "torch_varlen"))
    with pytest.raises(
        ValueError, match=r"does not work here \(flash_attn: RuntimeError: off; torch_varlen: .*allowed"
    ):
        pick_backend("auto", "cuda")


def use_kernels(monkeypatch, generation, broken):
    """Kernels for a GPU that is not there."""
    from titan_wlb.context_parallel.kernels import check, torch_varlen

    def check_kernel(backend, device):
        if backend in broken:
            raise RuntimeError("off")

    monkeypatch.setattr(torch_varlen, "activate", lambda device: generation)
    monkeypatch.setattr(check, "check_kernel", check_kernel)
    assert choice.BACKENDS == ("flash_attn", "torch_varlen", "cpu")


@pytest.fixture
def flash_attn_2_8(monkeypatch):
    """flash_attn.flash_attn_interface with the names and the order of flash-attn 2.8."""

    def _flash_attn_varlen_forward(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        return_softmax=False,
        block_table=None,
        leftpad_k=None,
        seqused_k=None,
        zero_tensors=False,
    ):
        assert causal and dropout_p == 0 and not return_softmax
        out, lse = dense_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale)
        return out, lse, torch.empty(0), torch.empty(2, dtype=torch.int64)

    def _flash_attn_varlen_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
        zero_tensors=False,
    ):
        assert causal and dropout_p == 0 and not deterministic
        segments = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale)
        for target, gradient in zip(
            (dq, dk, dv), dense_backward(dout, q, k, v, out, softmax_lse, *segments), strict=True
        ):
            target.copy_(gradient)
        return torch.empty(0)

    package, interface = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.flash_attn_interface")
    interface._flash_attn_varlen_forward = _flash_attn_varlen_forward
    interface._flash_attn_varlen_backward = _flash_attn_varlen_backward
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", interface)
    name = "titan_wlb.context_parallel.kernels.flash_attn"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


@pytest.fixture
def aten_flash_on_cpu():
    """CPU kernels behind the schemas of aten's flash ops, as ``activate_flash_attention_impl`` puts them on CUDA."""

    def forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale, window_size_left, **rest):
        assert causal and not dropout and not debug
        assert (window_size_left, rest.pop("window_size_right")) == (-1, 0)
        assert not any(x is not None for x in rest.values())
        out, lse = dense_forward(q, k, v, cu_q, cu_k, max_q, max_k, scale)
        return out, lse, torch.zeros(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)

    def backward(
        dout, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, rng_state, unused, *, scale, **window
    ):
        assert causal and not dropout and rng_state.dtype == torch.uint64
        assert window == {"window_size_left": -1, "window_size_right": 0}
        return dense_backward(dout, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, scale)

    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    yield
    library._destroy()


def dense_forward(q, k, v, cu_q, cu_k, max_q, max_k, scale):
    assert q.dtype in (torch.bfloat16, torch.float16) and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert (max_q, max_k) == (cu_q.diff().max().item(), cu_k.diff().max().item())
    lengths = cu_q.diff().tolist(), cu_k.diff().tolist()
    out, lse = dense_attention(q.double(), k.double(), v.double(), *lengths, scale)
    return out.to(q.dtype), lse.float()


def dense_backward(dout, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, scale):
    """By hand, from out and lse: autograd is off inside an op."""
    expected_out, expected_lse = dense_forward(q, k, v, cu_q, cu_k, max_q, max_k, scale)
    assert torch.equal(out, expected_out) and torch.equal(lse, expected_lse)
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float64) for x in (q, k, v))
    delta = (dout.double() * out.double()).sum(-1)
    group = q.shape[1] // k.shape[1]
    for (a, b), (c, d) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        visible = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        for head in range(q.shape[1]):
            q_h, k_h, v_h = q[a:b, head].double(), k[c:d, head // group].double(), v[c:d, head // group].double()
            weights = (q_h @ k_h.T * scale - lse[head, a:b, None].double()).exp() * visible
            dout_h = dout[a:b, head].double()
            dscores = weights * (dout_h @ v_h.T - delta[a:b, head, None]) * scale
            dq[a:b, head] += dscores @ k_h
            dk[c:d, head // group] += dscores.T @ q_h
            dv[c:d, head // group] += weights.T @ dout_h
    return tuple(x.to(dout.dtype) for x in (dq, dk, dv))
