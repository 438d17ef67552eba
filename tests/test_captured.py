"""Captured steps: CUDA graphs on a GPU, and here a stand-in for them on the CPU.

The stand-in records the operations of a step with the tensors and numbers they were given, and
repeats exactly those. So it shows if a number that changes was frozen, or a value was read off the
device.
"""

import contextlib
import functools
import gc
import os
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import datasets
import training
from sources import InputError, read_log
from training import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# Whatever changes from step to step is a multiple of a power of two, so that float32 holds it.
COMMON = "--data tiny.npz --size 16 --batch 8 --lr 0.0009765625 --lr-decay 0.5 --log-every 5"
GAN = "--width 4 --latent-dim 8 --noise 0.5 --noise-steps 16"
CASES = {
    "dcgan": f"{GAN} --ema 0.9",
    "dcgan, several updates": f"{GAN} --g-steps 2 --d-steps 3 --upsample nearest --flip --shift",
    "gan_resnet": f"{GAN} --weight-decay 0.01",
    "gan_resnet, conditional": f"{GAN} --conditional --similarity 1 --g-steps 2",
    "cgan": f"{GAN} --r1 1 --r1-every 3 --ema 0.9 --augment",
    "cgan, several updates": f"{GAN} --r1 1 --r1-every 4 --d-steps 2 --condition projection",
    "wgan_gp": f"{GAN} --critic-steps 2 --ema 0.9",
    "wgan_gp, growing": f"{GAN} --stages 2 --stage-steps 9 --fade-steps 8 --critic-steps 2",
    "wgan_gp, residual": f"{GAN} --arch resnet --critic-steps 1",
    "vae_mlp": "--width 16 --kl-warmup 8",
    "cvae": "--width 4 --kl-warmup 8 --ema 0.9 --likelihood sigma",
    "ddpm": "--width 4 --blocks 1 --ema 0.9 --flip --timesteps 20 --sample-steps 2",
}
each_case = pytest.mark.parametrize("case", CASES)
CPU = ("--device", "cpu", "--precision", "fp32")


class StandIn(TorchDispatchMode):
    """For torch.cuda.CUDAGraph. It computes while it records: the first replay is done already."""

    def __init__(self):
        super().__init__()
        self.tape = []
        self.replays = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(getattr(function, "overloadpacket", function)).removeprefix("aten.")
        reads = ("_local_scalar_dense", "is_nonzero", "nonzero", "item")
        assert name not in reads, "the step reads a number off the device"
        assert name != "lift_fresh", "the step makes a tensor of a number of the host"
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                assert tensor.dtype != torch.float64, "no float64 on a Mac"
        self.tape.append((function, args, kwargs or {}, results))
        return results

    def pool(self):
        return "a pool"

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        if self.replays == 1:
            return
        for function, args, kwargs, results in self.tape:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def stand_in(monkeypatch):
    """All captured steps of a program run on the stand-in. Gives a list of them."""

    @contextlib.contextmanager
    def record(graph, pool, stream, mode):
        keeper = graph is training.CapturedStep.first
        assert (pool, stream, mode) == (None if keeper else "a pool", "a stream", "thread_local")
        with graph:
            yield

    def rates_to_device(optimizers, device):
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]))

    steps = []

    def captured(step, device, no_graph=False):
        steps.append(training.CapturedStep(step, device))
        return steps[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "a stream")
    for name in ("first", "pool", "stream"):
        monkeypatch.setattr(training.CapturedStep, name, None)
    monkeypatch.setattr(training, "captured", captured)
    monkeypatch.setattr(training, "rates_to_device", rates_to_device)
    return steps


def train(case, steps, out, *more):
    """Run the script of a case; returns the tensors of its checkpoint and its losses."""
    name = case.partition(",")[0]
    script = training.load_script(name)
    flags = f"{COMMON} {CASES[case]} --steps {steps} --out {out} --eval-images 0".split()
    assert script.main([*flags, *more]) is None
    checkpoint = read_checkpoint(out)
    tensors = [t for state in checkpoint["models"].values() for t in state.values()]
    for optimizer in checkpoint["optimizers"].values():
        tensors += [t for state in optimizer["state"].values() for t in state.values()]
    rows = read_log(Path(out) / "log.csv")
    clock = ("seconds", "img_per_s")
    return tensors, [{k: v for k, v in row.items() if k not in clock} for row in rows]


def assert_equal(one, other):
    assert one[1] == other[1]
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


@each_case
def test_a_replayed_step_is_the_plain_step(tiny, case, request):
    """Past the end of the noise and into the last stage of growth, bit for bit."""
    steps = 9 if "gan_resnet" in case else 25  # a ResNet-18 is large, whatever the flags
    plain = train(case, steps, "plain", *CPU)
    used = request.getfixturevalue("stand_in")
    assert_equal(plain, train(case, steps, "captured", *CPU))
    graphs = [graph for step in used for graph, _, _ in step.graphs.values()]
    assert len(graphs) >= 1 and all(graph.replays >= 1 for graph in graphs)


def test_each_combination_has_a_graph_of_its_own(tiny, stand_in):
    train("cgan", 25, "a", *CPU)
    d_step = stand_in[0]
    combinations = {(nones[-1], dict(constants)["take_r1"]) for nones, constants in d_step.graphs}
    assert combinations == {(False, True), (False, False), (True, False)}  # sigma: None at the end
    stand_in.clear()
    train("wgan_gp, growing", 25, "b", *CPU)
    critic_step = stand_in[0]
    stages = {dict(constants)["stage"] for _, constants in critic_step.graphs}
    assert stages == {0, 1}


def test_streamed_batches(tiny, monkeypatch, request):
    """Batches that a thread gathers give the same steps as those that lie on the device."""
    plain = train("dcgan, several updates", 12, "plain", *CPU)
    request.getfixturevalue("stand_in")
    streamed = functools.partial(datasets.Batches, stream=True)
    monkeypatch.setattr(datasets, "Batches", streamed)
    assert_equal(plain, train("dcgan, several updates", 12, "captured", *CPU))


def test_a_frozen_number_shows(stand_in):
    """What the stand-in is for: a Python number that changes, and a number read off the device."""
    numbers = iter(range(100))
    step = training.captured(lambda x: x + next(numbers), torch.device("cpu"))
    results = [step(torch.zeros(2))[0].item() for _ in range(6)]
    assert results == [0, 1, 2, 3, 3, 3]  # plain three times, then recorded with 3
    x = torch.ones(3)
    wrong = [
        lambda: x.sum().item(),
        lambda: x * torch.tensor(2.0),
        lambda: x.double(),
        lambda: bool(x[0] > 0),
    ]
    for mistake in wrong:
        with pytest.raises(AssertionError), StandIn():
            mistake()


def test_arguments_and_results(stand_in):
    """Tensors are copied in, results are copies, None and constants choose the graph."""
    calls = []

    def step(x, sigma, twice=False):
        calls.append(1)
        x = x if sigma is None else x + sigma
        return (2 * x if twice else x), x.sum()

    captured = training.captured(step, torch.device("cpu"))
    old = []
    for k in range(8):
        x = torch.full((2,), float(k))
        sigma = training.scalar(0.5 * (k % 2), x.device)
        for twice in (False, True):
            double, total = captured(x, sigma, twice=twice)
            seen = k + (0.5 if k % 2 else 0)
            assert double.tolist() == [(1 + twice) * seen] * 2 and total == 2 * seen
            old.append((double, double.clone()))
    assert all(torch.equal(result, copy) for result, copy in old)
    assert len(captured.graphs) == 4 and len(calls) == 4 * 4  # three plain calls and one capture


def test_a_step_that_cannot_be_captured_is_one_line(stand_in, monkeypatch):
    """PyTorch ends a broken capture with an error of its own that says nothing."""

    @contextlib.contextmanager
    def broken(*_):
        try:
            raise RuntimeError(problem)
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    step = training.captured(lambda x: x + 1, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "graph", broken)
    for _ in range(3):
        step(torch.zeros(1))
    problem = "operation not permitted when stream is capturing"
    with pytest.raises(InputError, match=f"{problem}.*use --no-graph"):
        step(torch.zeros(1))
    problem = "CUDA out of memory. Tried to allocate 2 GiB"
    with pytest.raises(RuntimeError, match="previous error"):
        step(torch.zeros(1))


def test_without_a_gpu_the_step_is_itself():
    step = object()
    assert training.captured(step, torch.device("cpu")) is step
    assert training.captured(step, torch.device("mps")) is step
    assert training.captured(step, torch.device("cuda"), no_graph=True) is step


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
@pytest.mark.parametrize("case", ["cgan", "vae_mlp"])
def test_memory_does_not_grow(tiny, case, monkeypatch):
    """1,000 steps of a whole run with its logs: after 200, not 8 MB more are in use."""
    used = []
    count = training.Run.count

    def counted(run, **losses):
        count(run, **losses)
        if run.step in (200, 1000):
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            used.append(pages * os.sysconf("SC_PAGE_SIZE"))

    monkeypatch.setattr(training.Run, "count", counted)
    more = ["--sample-every", "500", "--log-every", "100", "--batch", "4", "--lr-decay", "1"]
    train(case, 1000, "r", *CPU, *more)
    assert used[1] - used[0] < 8e6


# --------------------------------------------------------------------------------------------- GPU


@pytest.mark.gpu
@CUDA
@each_case
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("streamed", [False, True], ids=["", "streamed"])
def test_on_a_gpu_the_captured_step_is_the_plain_step(tiny, case, precision, streamed, monkeypatch):
    """The same random numbers, so the same path up to the order in which a GPU adds.

    After 24 steps, the two are 20 times closer to each other than to where they began.
    """
    monkeypatch.setattr(datasets, "Batches", functools.partial(datasets.Batches, stream=streamed))
    more = ["--device", "cuda", "--precision", precision]
    if not streamed:  # steps of full length to the end
        more += ["--lr-decay", "1"]
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
        start, _ = train(case, 10 if "growing" in case else 1, "start", *more)  # all layers
        plain, _ = train(case, 24, "plain", *more, "--no-graph")
        captured, _ = train(case, 24, "captured", *more)
    count = len(read_checkpoint("plain")["models"]) and sum(
        len(state) for state in read_checkpoint("plain")["models"].values()
    )

    def distance(one, other):
        pairs = list(zip(one, other, strict=True))[:count]
        return sum((a.float() - b.float()).square().sum() for a, b in pairs) ** 0.5

    assert distance(plain, captured) < 0.05 * distance(plain, start)


@pytest.mark.gpu
@CUDA
def test_memory_on_a_gpu_does_not_grow(tiny, monkeypatch):
    used = []
    count = training.Run.count

    def counted(run, **losses):
        count(run, **losses)
        if run.step in (100, 1000):
            torch.cuda.synchronize()
            used.append(torch.cuda.memory_allocated())

    monkeypatch.setattr(training.Run, "count", counted)
    more = ["--device", "cuda", "--lr-decay", "1", "--log-every", "50", "--sample-every", "10000"]
    train("dcgan", 1000, "r", *more)
    assert used[1] <= used[0]


@pytest.mark.gpu
@CUDA
def test_no_step_waits_for_the_gpu(tiny, monkeypatch):
    """With torch.cuda.set_sync_debug_mode, whatever waits inside of a step is an error."""
    count = training.Run.count
    should_stop = training.Run.should_stop

    def stepping(run):
        stop = should_stop(run)
        inside = 8 < run.step < 20 and not stop  # main also asks after the last step
        torch.cuda.set_sync_debug_mode("error" if inside else "default")
        return stop

    def counted(run, **losses):
        count(run, **losses)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training.Run, "should_stop", stepping)
    monkeypatch.setattr(training.Run, "count", counted)
    try:
        for number, case in enumerate(CASES):
            train(case, 20, f"run{number}", "--device", "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def calls_inside(profile, name):
    """The names of all calls that a profile has between begin and end of a record_function."""
    events = profile.events()
    cpu = torch.autograd.DeviceType.CPU  # a GPU has a line of its own for it
    spans = [event for event in events if event.name == name and event.device_type == cpu]
    (span,) = [event.time_range for event in spans if not event.is_async]
    return [
        event.name
        for event in events
        if span.start <= event.time_range.start <= span.end and event.name != name
    ]


def profile_step(monkeypatch, number, activities):
    """Profile step `number` of every run from here on. Gives a list that gets a profile of each."""
    count = training.Run.count
    should_stop = training.Run.should_stop
    profiles = []
    spans = []

    def stepping(run):
        stop = should_stop(run)
        if run.step == number - 1:
            profiles.append(torch.profiler.profile(activities=activities))
            profiles[-1].start()
            spans.append(torch.profiler.record_function("one step"))
            spans[-1].__enter__()
        return stop

    def counted(run, **losses):
        if run.step == number - 1:
            spans[-1].__exit__(None, None, None)
            profiles[-1].stop()
        count(run, **losses)

    monkeypatch.setattr(training.Run, "should_stop", stepping)
    monkeypatch.setattr(training.Run, "count", counted)
    return profiles


def test_the_profile_of_a_step(tiny, monkeypatch):
    """The stand-in for the next test: what a step calls is in its profile, what others call not."""
    profiles = profile_step(monkeypatch, 2, [torch.profiler.ProfilerActivity.CPU])
    train("dcgan", 3, "r", *CPU)
    calls = calls_inside(profiles[0], "one step")
    assert calls.count("aten::_fused_adam_") == 2  # one for each network, of this step only
    assert "aten::normal_" in calls


@pytest.mark.gpu
@CUDA
def test_the_profiler_sees_no_step_wait(tiny, monkeypatch):
    """A step that is captured launches its graphs, and calls nothing that waits for the GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    profiles = profile_step(monkeypatch, 15, activities)
    for number, case in enumerate(CASES):
        train(case, 20, f"run{number}", "--device", "cuda")
        calls = calls_inside(profiles[-1], "one step")
        if not any(name.startswith("cuda") for name in calls):
            pytest.skip("the profiler records no calls of CUDA here")
        assert "cudaGraphLaunch" in calls, case
        waits = [name for name in calls if "Synchronize" in name or name == "cudaMemcpy"]
        assert not waits, case
