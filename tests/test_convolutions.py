"""The convolutions that datasets.quick_convolutions makes of matrix products, against PyTorch's own.

They are meant for bf16 on processors with matrix units; here they serve float64 on any, so that they agree closely.
"""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

import datasets

# N, C, O, H, W, kernel, stride, padding
SHAPES = [
    (2, 3, 5, 8, 10, 4, 2, 1), (2, 3, 5, 9, 7, 3, 1, 1), (2, 3, 4, 9, 8, 3, 2, 1), (2, 3, 4, 5, 5, 5, 1, 0),
    (2, 3, 4, 7, 7, 1, 1, 0), (2, 3, 4, 10, 10, 4, 3, 0), (1, 2, 3, 11, 9, 5, 2, 2), (3, 4, 2, 4, 4, 3, 1, 1),
    (2, 3, 4, 6, 6, 1, 2, 0), (2, 3, 4, 1, 1, 3, 1, 1), (1, 1, 1, 7, 12, 7, 2, 3),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_against_pytorchs(shape):
    n, c, o, h, w, k, s, p = shape
    torch.manual_seed(0)
    x, weight, bias = torch.randn(n, c, h, w).double(), torch.randn(o, c, k, k).double(), torch.randn(o).double()
    for tensor in (x, weight):
        tensor.requires_grad_()
    y = F.conv2d(x, weight, bias, s, p)
    g = torch.randn_like(y)
    of_x, of_weight = torch.autograd.grad(y, (x, weight), g)
    stride, padding = (s, s), (p, p)
    torch.testing.assert_close(datasets.convolved(x, weight, bias, stride, padding), y)
    torch.testing.assert_close(datasets.convolved_weight(x, g, (k, k), stride, padding), of_weight)
    torch.testing.assert_close(datasets.convolved_back(g, weight, (h, w), stride, padding), of_x)


PROGRAM = """
import torch
import torch.nn.functional as F
import datasets, dcgan, wgan_gp

def all_of(layer, x, weight, bias):
    # the value, its gradients, and the gradients of a penalty on the gradient
    y = layer(x, weight, bias)
    (slope,) = torch.autograd.grad((y.sin() * y).sum(), x, create_graph=True)
    given = [t for t in (x, weight, bias) if t is not None]
    return [y, slope, *torch.autograd.grad(slope.square().sum() + y.exp().mean(), given)]

def layers():
    yield from ((F.conv2d, shape) for shape in SHAPES)
    yield from ((F.conv_transpose2d, shape) for shape in SHAPES)

def results():
    torch.manual_seed(0)
    found = []
    for function, (n, c, o, h, w, k, s, p) in layers():
        transposed = function is F.conv_transpose2d
        for bias in True, False:
            for more in [{"dilation": 1}] + [{"output_padding": s - 1}] * (transposed and s > 1) + [{"dilation": 2}]:
                if not transposed and (k - 1) * more.get("dilation", 1) + 1 > min(h, w) + 2 * p:
                    continue
                if transposed and min((a - 1) * s - 2 * p + (k - 1) * more.get("dilation", 1) + 1 for a in (h, w)) < 1:
                    continue
                x = torch.randn(n, c, h, w).to(memory_format=torch.channels_last)
                weight = torch.randn((c, o, k, k) if transposed else (o, c, k, k)) / (c * k)
                offset = torch.randn(o, requires_grad=True) if bias else None
                given = [x.requires_grad_(), weight.requires_grad_(), offset]
                found += all_of(lambda x, w, b: function(x, w, b, s, p, **more), *given)
    x, y = torch.randn(4, 3, 32, 32), torch.randn(4, 7)
    for network, given in (
        (dcgan.Generator(32, 3, 7, 8), (y,)), (dcgan.Discriminator(32, 3, 8), (x,)),
        (wgan_gp.Critic(32, 3, 8, 1, "layer"), (x,)),
        (torch.nn.Conv2d(4, 6, 3, groups=2), (torch.randn(2, 4, 5, 5),)),
        (torch.nn.Conv1d(4, 6, 3), (torch.randn(2, 4, 5),)), (torch.nn.Conv3d(1, 2, 3), (torch.randn(2, 1, 5, 5, 5),)),
    ):
        given = [t.clone().requires_grad_() for t in given]
        out = network(*given)
        (slope,) = torch.autograd.grad(out.square().sum(), given, create_graph=True)
        weights = [p for p in network.parameters() if p.ndim > 1]
        found += [out, slope, *torch.autograd.grad(slope.square().sum(), weights)]
    for layer, x in (
        (torch.nn.Conv1d(4, 6, 3), torch.randn(2, 4, 5)), (torch.nn.Conv2d(4, 6, 3), torch.randn(2, 4, 5, 5)),
    ):
        layer.weight.requires_grad_(False)  # only the bias learns
        found += torch.autograd.grad(layer(x).exp().sum(), [layer.bias])
    return [f.detach().clone() for f in found]

torch.set_default_dtype(torch.float64)
plain = results()
calls = dict.fromkeys(("convolved", "convolved_weight", "convolved_back"), 0)
for name in calls:
    def counted(*args, name=name, function=getattr(datasets, name)):
        calls[name] += 1
        return function(*args)
    setattr(datasets, name, counted)
library = datasets.quick_convolutions(torch.float64, few=FEW)
quick = results()
assert len(plain) == len(quick)
for one, other in zip(plain, quick):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert one.shape == other.shape
print(len(plain), *calls.values())
"""


@pytest.mark.skipif(not hasattr(torch.library, "get_kernel"), reason="this PyTorch cannot be told")
def test_in_place_of_pytorchs():
    """Values, gradients and gradients of gradients of layers and whole networks, with and without them."""

    def run(few):
        program = PROGRAM.replace("SHAPES", repr(SHAPES)).replace("FEW", few)
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return list(map(int, done.stdout.split()))

    found, *calls = run("1e9")
    assert found > 200 and min(calls) > 50
    assert max(run("1e-9")[1:]) == 0  # many places for each channel: PyTorch's own
