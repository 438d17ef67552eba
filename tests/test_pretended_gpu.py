"""All scripts on a pretended NVIDIA GPU, which computes on the CPU: whatever mixes tensors of two devices fails, as do
calls that want the number of a GPU, and captured steps run inside whole programs. What they make is what a CPU makes.

Not tested so: kernels, memory, streams, autocast. For these there are the tests that need a GPU.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_augment import QUICK
from test_captured import CASES, Imitation
from test_scripts import TINY, assert_same, every_script, run, tiny  # noqa: F401
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import augment
import datasets
import metrics
import report

GPU = torch.device("cuda", 0)
ACROSS = ("copy_", "_to_copy", "index", "index_put_")  # operations that take tensors of two devices


class Pretended(torch.Tensor):
    """A tensor on the pretended GPU. `on_cpu`: the real one, on the CPU. To PyTorch's C++ it is one without memory
    ("meta"), so that nothing asks for a driver."""

    @staticmethod
    def __new__(cls, values):
        about = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, values.size(), device="meta", **about)

    def __init__(self, values):
        self.on_cpu = values

    device = property(lambda self: GPU)
    is_cuda, is_meta = property(lambda self: True), property(lambda self: False)

    def cpu(self):
        return self.on_cpu.detach().clone()

    def tolist(self):
        return self.on_cpu.detach().tolist()

    def data_ptr(self):
        return self.on_cpu.data_ptr()

    def __deepcopy__(self, memo):
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = copy = nn.Parameter(copy.detach()) if isinstance(self, nn.Parameter) else copy
        return copy

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function, args, kwargs):
    """One operation of PyTorch, on the CPU. Its result is on the pretended GPU if its tensors are, or `device` is."""
    name, device = function.overloadpacket.__name__, kwargs.get("device")
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_gpu = any(isinstance(x, Pretended) for x in tensors)
    if on_gpu and name not in ACROSS:
        apart = [x for x in tensors if not isinstance(x, Pretended) and x.dim() > 0]
        assert not apart, f"{name} of tensors on two devices"
    known = {id(getattr(x, "on_cpu", x)): x for x in tensors}  # what works in place gives back what it was given
    args, kwargs = tree_map(lambda x: getattr(x, "on_cpu", x), (args, kwargs))
    if device is not None:
        on_gpu, kwargs["device"] = torch.device(device).type != "cpu", "cpu"
    found = function(*args, **kwargs)
    return tree_map(lambda x: known.get(id(x), Pretended(x) if on_gpu else x) if torch.is_tensor(x) else x, found)


class OnThePretendedGpu(TorchDispatchMode):
    """So that also operations without a tensor, as torch.zeros(3, device="cuda"), go through `compute`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


@pytest.fixture
def gpu(monkeypatch):
    """As if there were an NVIDIA GPU. What PyTorch's Python asks of one is answered here; set_device is its own."""
    to = torch.Tensor.to

    def tensor_to(self, *args, **kwargs):
        device = next((x for x in (*args, kwargs.pop("device", None)) if isinstance(x, (str, torch.device))), None)
        args = [x for x in args if x is not device]
        if device is None or torch.device(device).type == "cpu":
            return to(self, *([device] if device else []), *args, **kwargs)
        changed = to(self, *args, **kwargs) if args or kwargs.keys() - {"non_blocking"} else self
        return changed if isinstance(changed, Pretended) else Pretended(changed.detach().clone())

    def module_to(self, device, dtype=None, memory_format=torch.preserve_format):
        for module in self.modules():
            for owned in module._parameters, module._buffers:
                for name, old in owned.items():
                    if old is not None:
                        kind = {"memory_format": memory_format} if old.dim() == 4 else {}
                        new = old.detach().to(device, dtype or old.dtype, **kind)
                        owned[name] = nn.Parameter(new) if isinstance(old, nn.Parameter) else new
        return self

    def saved(checkpoint, path, write=datasets.write_checkpoint):
        write(tree_map(lambda x: getattr(x, "on_cpu", x), checkpoint), path)

    nothing, state = lambda *_: None, lambda *_: torch.get_rng_state()
    monkeypatch.setattr(torch.Tensor, "to", tensor_to)
    monkeypatch.setattr(nn.Module, "to", module_to)
    monkeypatch.setattr(datasets, "write_checkpoint", saved)
    for name, function in {
        "_lazy_init": nothing, "synchronize": nothing, "Stream": nothing, "set_stream": nothing,
        "current_stream": nothing, "get_rng_state": state, "set_rng_state": nothing, "CUDAGraph": Imitation,
        "graph": lambda graph, *_: graph, "mem_get_info": lambda _: (10**10, 10**10),
        "get_device_capability": lambda _: (9, 0),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", nothing, raising=False)
    monkeypatch.setattr(torch.cuda, "_check_stray_context", nothing, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return ["--device", "cuda", "--precision", "fp32"]


@every_script
def test_a_program_on_a_gpu_makes_what_it_makes_on_a_cpu(tiny, name, gpu, monkeypatch):  # noqa: F811
    """Trains, captured, with pictures and checkpoints; resumes; makes pictures of a checkpoint. Bit for bit."""
    flags = [*CASES[name][1], *TINY, "--lr-decay", "1", "--sample-every", "5", "--save-every", "5"]
    flags += ["--timesteps", "20", "--sample-steps", "2"] * (name == "ddpm")
    # PyTorch 2.6 has GroupNorm in the plain layout on a GPU only, and it rounds in another way than channels last
    normed = F.group_norm
    monkeypatch.setattr(F, "group_norm", lambda x, *rest: normed(x.contiguous(), *rest))
    Imitation.made = 0
    with sdpa_kernel(SDPBackend.MATH):  # a GPU's own kernels for attention round in another way
        run(name, *flags, "--steps", "20", "--out", "cpu")
        run(name, "--load", "cpu", "--generate", "3", "--device", "cpu", "--to", "cpu.png")
        with OnThePretendedGpu():
            run(name, *flags, *gpu, "--steps", "12", "--out", "gpu")
            run(name, "--resume", "gpu", "--steps", "20")
            run(name, "--load", "gpu", "--generate", "3", "--device", "cuda", "--to", "gpu.png")
    assert Imitation.made >= 2
    assert_same("cpu", "gpu")
    for picture in "{0}/samples/000020.png", "{0}.png":
        assert Path(picture.format("cpu")).read_bytes() == Path(picture.format("gpu")).read_bytes()


def test_the_pretended_gpu_notices_two_devices(gpu):
    with OnThePretendedGpu():
        x = torch.ones(3, device="cuda")
        assert x.device == GPU and (x + 1).sum().item() == 6 and (x * torch.tensor(2.0)).tolist() == [2.0] * 3
        with pytest.raises(AssertionError, match="two devices"):
            x + torch.ones(3)
        with pytest.raises(ValueError):
            torch.cuda.set_device(torch.device("cuda"))


def test_features_on_a_gpu(gpu, small_weights):
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    weights = metrics.load_weights(small_weights)
    plain = metrics.features(images, (64,), weights)
    with OnThePretendedGpu():
        there = metrics.features(images, (64,), weights, device="cuda")
    assert np.array_equal(there[64], plain[64])


def test_classifiers_on_a_gpu(gpu):
    images, labels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40) % 3
    plain = metrics.classifier(images, labels, 3, steps=5)(images)
    with OnThePretendedGpu():
        assert torch.equal(metrics.classifier(images, labels, 3, steps=5, device="cuda")(images), plain)


def test_augment_on_a_gpu(here, gpu, monkeypatch):
    """From its generator to its verdict."""
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    images, places = torch.randint(0, 256, (60, 16, 16, 3), dtype=torch.uint8), np.arange(60)
    np.savez("x.npz", images=images.numpy(), labels=places % 3, split=(places >= 40).astype(int))
    flags = "--data x.npz --per-class 8 --size 16 --add 5 --steps 2 --batch 4 --width 8 --seeds 3 --device cuda --out a"
    with OnThePretendedGpu(), sdpa_kernel(SDPBackend.MATH):
        args = augment.parse_args([*flags.split(), "--generator-flags", QUICK.replace("--device cpu ", "")])
        augment.main(args)
    assert Path("a/table.md").exists()
