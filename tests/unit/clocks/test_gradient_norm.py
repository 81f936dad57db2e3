import math

import pytest
import torch

from titan_wlb.clocks import NullClock
from titan_wlb.gradient_norm import clip_grad_norm_


def parameters_with_gradients(scale=1.0):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,), (2, 2, 2))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn_like(parameter)
    parameters.append(torch.nn.Parameter(torch.randn(3)))  # one without a gradient
    return parameters


@pytest.mark.parametrize("norm_type", [2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_it_clips_as_torch_does(norm_type, max_norm):
    ours, theirs = parameters_with_gradients(), parameters_with_gradients()
    norm = clip_grad_norm_(ours, max_norm, NullClock(), norm_type=norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_a_norm_that_is_not_finite_is_an_error_where_asked_for():
    parameters = parameters_with_gradients(scale=math.nan)
    with pytest.raises(RuntimeError, match="nan"):
        clip_grad_norm_(parameters, 1.0, NullClock(), error_if_nonfinite=True)


def test_without_any_gradient_the_norm_is_zero():
    assert clip_grad_norm_([torch.nn.Parameter(torch.ones(2))], 1.0, NullClock()).item() == 0
