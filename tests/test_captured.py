"""The captured step: a CUDA graph where there is a GPU, and here an imitation of one on the CPU.

The imitation records the operations of a step with the tensors and numbers that they were given, and repeats exactly
those. So a number that should have changed and was frozen, or a value that was read off the device, shows.
"""

import contextlib
import copy
import gc
import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import datasets
import report
from datasets import Batches, Captured, Images, adam_kernel

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# Everything that changes from step to step is a multiple of a power of two, so that float32 holds it exactly
COMMON = ["--data=x", "--size=16", "--batch=8", "--lr=0.0009765625", "--lr-decay=0.5"]
GAN = [*COMMON, "--width=4", "--latent-dim=8", "--noise=0.5", "--noise-steps=16"]
CASES = {
    "dcgan": ("dcgan", [*GAN, "--ema=0.9"]),
    "dcgan, several updates": ("dcgan", [*GAN, "--g-steps=2", "--d-steps=3"]),
    "dcgan, resnet18": ("dcgan", [*GAN, "--arch=resnet18", "--weight-decay=0.01"]),
    "cgan": ("cgan", [*GAN, "--r1=1", "--r1-every=3", "--ema=0.9", "--augment"]),
    "cgan, several updates": ("cgan", [*GAN, "--r1=1", "--r1-every=4", "--d-steps=2", "--condition=projection"]),
    "cgan, resnet18": ("cgan", [*GAN, "--arch=resnet18", "--r1=0", "--similarity=1", "--g-steps=2"]),
    "wgan_gp": ("wgan_gp", [*GAN, "--critic-steps=2", "--ema=0.9"]),
    "wgan_gp, growing": ("wgan_gp", [*GAN, "--stages=2", "--stage-steps=9", "--fade-steps=8", "--critic-steps=2"]),
    "wgan_gp, resnet": ("wgan_gp", [*GAN, "--arch=resnet", "--critic-steps=1"]),
    "vae_mlp": ("vae_mlp", [*COMMON, "--width=16", "--kl-warmup=8"]),
    "cvae": ("cvae", [*COMMON, "--width=4", "--kl-warmup=8", "--ema=0.9", "--likelihood=sigma"]),
    "ddpm": ("ddpm", [*COMMON, "--width=4", "--blocks=1", "--ema=0.9", "--flip"]),
}
each_case = pytest.mark.parametrize("case", CASES)


class Imitation(TorchDispatchMode):
    """In place of torch.cuda.CUDAGraph. Unlike a GPU it also computes while it records, so one replay is due then."""

    made = 0

    def __init__(self):
        super().__init__()
        self.tape, self.due = [], False
        Imitation.made += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__ if hasattr(function, "overloadpacket") else str(function)
        assert name not in ("_local_scalar_dense", "is_nonzero", "nonzero"), "the step reads a number off the device"
        assert name not in ("lift_fresh", "item"), "the step makes a tensor of a number of the host"
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), "no float64 on a Mac"
        self.tape.append((function, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def replay(self):
        if not self.due:
            self.due = True
            return
        for function, args, kwargs, found in self.tape:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def pool(self):
        return "a pool"


@pytest.fixture
def imitated(monkeypatch):
    """torch.cuda as far as Captured uses it."""

    @contextlib.contextmanager
    def record(graph, pool, stream, mode):
        assert pool == ("a pool" if Imitation.made > 1 else None) and mode == "thread_local"
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Imitation)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)


def setting(case, device="cpu", streamed=False, more=(), precision="fp32"):
    """A training of the case from its start: (its Captured, the tensors that it changes). more: flags."""
    name, given = CASES[case][0], [*CASES[case][1], *more]
    script = importlib.import_module(name)
    args = script.parse_args(given)
    torch.manual_seed(0)
    images, labels = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8), torch.arange(40) % 3
    data = Images(images, labels, ["a", "b", "c"], "", "", False, "")
    batches = Batches(data, args.batch, device, stream=streamed)
    if name in ("dcgan", "cgan"):
        classes = (3,) if name == "cgan" else ()
        networks = [script.make_generator(args, 3, *classes), script.make_discriminator(args, 3, *classes)]
    elif name == "wgan_gp":
        networks = list(script.build(args, 3))
    elif name == "vae_mlp":
        networks = [script.VAE(16, 3, args.latent_dim, args.width)]
    elif name == "ddpm":
        networks = [script.UNet(args, 3, 3)]
    else:
        networks = [script.CVAE(16, 3, 3, args.latent_dim, args.width)]
    networks = [network.to(device, memory_format=datasets.layout(device)) for network in networks]
    optimisers = [torch.optim.AdamW(n.parameters(), args.lr, **adam_kernel(torch.device(device))) for n in networks]
    average = copy.deepcopy(networks[0]) if args.ema else None
    scale = [torch.tensor([0.0, 1.0], device=device)[:, None, None, None]] if name == "wgan_gp" else []
    train = Captured(
        script.train_step, script.schedule, args, batches, *networks, *optimisers, average, *scale,
        lambda: datasets.autocast(torch.device(device), precision),
    )  # fmt: skip
    kept = [v for n in [*networks, average] if n is not None for v in n.state_dict().values()]
    return train, kept


def trained(case, steps, captured, **options):
    train, kept = setting(case, **options)
    train.on, Imitation.made = captured, 0
    torch.manual_seed(1)
    losses = torch.stack([train(step) for step in range(steps)])
    return losses, kept, train


@each_case
def test_a_replayed_step_is_the_plain_step(case, imitated, one_thread):
    """25 steps: past the noise's end and into the last stage of growth, bit for bit."""
    steps = 8 if "resnet18" in case else 25  # a ResNet-18 is large whatever the flags
    losses, kept, _ = trained(case, steps, captured=False)
    again, others, train = trained(case, steps, captured=True)
    assert torch.equal(losses, again)
    assert all(torch.equal(a, b) for a, b in zip(kept, others, strict=True))
    assert Imitation.made == len(train.graphs) > 0
    assert all(graph.due for graph, _ in train.graphs.values())


def test_each_kind_of_step_has_its_graph(imitated, one_thread):
    _, _, train = trained("cgan", 25, captured=True)
    kinds = {(dict(kind)["r1"], "sigma" in dict(kind)) for kind in train.graphs}  # sigma: None once the noise has gone
    assert kinds == {((True,), False), ((False,), False), ((False,), True)}
    _, _, train = trained("wgan_gp, growing", 25, captured=True)
    kinds = {(dict(kind)["stage"], "alpha" in dict(kind)) for kind in train.graphs}  # alpha: None when blended in
    assert kinds == {(0, True), (1, False), (1, True)}


def test_batches_of_a_data_set_that_streams_in(imitated, one_thread):
    losses, kept, _ = trained("dcgan, several updates", 12, captured=False)
    again, others, train = trained("dcgan, several updates", 12, captured=True, streamed=True)
    assert torch.equal(losses, again) and len(train.graphs) == 1
    assert all(torch.equal(a, b) for a, b in zip(kept, others, strict=True))
    train.batches.thread.shutdown()


def test_the_imitation_notices_what_a_graph_forbids(imitated):
    x = torch.ones(3)
    for wrong in (lambda: x.sum().item(), lambda: x * torch.tensor(2.0), lambda: x.double(), lambda: bool(x[0] > 0)):
        with pytest.raises(AssertionError), Imitation():
            wrong()


def test_a_step_that_cannot_be_recorded_is_one_line(imitated, monkeypatch):
    """PyTorch ends a broken recording with an error of its own, which says nothing: the first one is told."""

    @contextlib.contextmanager
    def broken(*_):
        try:
            raise RuntimeError(problem)
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", broken)
    problem = "operation not permitted when stream is capturing"
    with pytest.raises(datasets.InputError, match=f"{problem}.*use --no-graph"):
        trained("vae_mlp", 5, captured=True)
    problem = "CUDA out of memory. Tried to allocate 2 GiB"
    with pytest.raises(RuntimeError):
        trained("vae_mlp", 5, captured=True)


@CUDA
@each_case
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("streamed", [False, True], ids=["", "streamed"])
def test_on_a_gpu_the_captured_step_is_the_plain_step(case, streamed, precision):
    """The same random numbers, so the same path up to the order in which a GPU adds: after 24 steps, which every kind
    of step has been replayed in, the two are 20 times closer to each other than to where they began. Streamed with
    noise and a rate that change, else with steps of full length to the end."""
    more = ["--lr-decay=1", *["--noise=0"] * (CASES[case][0] in ("dcgan", "cgan", "wgan_gp"))]
    options = {"device": "cuda", "streamed": streamed, "more": [] if streamed else more, "precision": precision}

    def weights(train):
        return [p for part in train.rest if isinstance(part, torch.nn.Module) for p in part.parameters()]

    start = weights(setting(case, **options)[0])
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False):
        losses, kept, plain = trained(case, 24, captured=False, **options)
        again, others, train = trained(case, 24, captured=True, **options)
    assert train.graphs and set(train.seen) == set(train.graphs)
    torch.testing.assert_close(losses[-4:], again[-4:], rtol=5e-2, atol=5e-2)
    apart, moved = (
        sum((a - b).float().square().sum() for a, b in zip(weights(plain), side, strict=True)).sqrt()
        for side in (weights(train), start)
    )
    assert apart < 0.05 * moved
    for one, other in zip(kept, others, strict=True):
        if not one.is_floating_point():  # BatchNorm counts its batches
            assert torch.equal(one, other)


@CUDA
def test_memory_on_a_gpu_does_not_grow():
    train, _ = setting("dcgan", device="cuda")
    used = []
    for step in range(1000):
        train(step)
        if step in (99, 999):
            torch.cuda.synchronize()
            used.append(torch.cuda.memory_allocated())
    assert used[1] <= used[0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
@pytest.mark.parametrize("name", ["cgan", "vae_mlp"])
def test_memory_does_not_grow(here, name, monkeypatch):
    """1,000 steps of a whole run with its logs: after 200, not 8 MB more are in use."""
    np.savez("x.npz", images=np.zeros((40, 16, 16, 3), np.uint8), labels=np.arange(40) % 3)
    script, used, record = importlib.import_module(name), [], datasets.Run.record

    def watched(run, losses):
        record(run, losses)
        if run.step in (200, 1000):
            gc.collect()
            used.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    monkeypatch.setattr(datasets.Run, "record", watched)
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    given = "--data=x.npz --size=16 --width=4 --batch=4 --latent-dim=4 --device=cpu --sample-every=500 --out=r"
    script.main(script.parse_args([*given.split(), "--steps=1000", "--log-every=100", "--eval-images=0"]))
    assert used[1] - used[0] < 8e6


def test_what_a_mac_is_spared():
    """BatchNorm's gradients are wrong there in channels last, and Adam's single kernel is not everywhere."""
    mac = torch.device("mps")
    assert datasets.layout(mac) is torch.contiguous_format and datasets.layout("cpu") is torch.channels_last
    assert adam_kernel(mac) == {"fused": False, "capturable": False}
