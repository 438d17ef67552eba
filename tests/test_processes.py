"""Several processes train one model, as torchrun starts them; here two on the CPU, over gloo."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from datasets import load
from sources import read_log
from training import read_checkpoint

TINY = "--data=x.npz --size=16 --width=4 --log-every=1 --device=cpu --precision=fp32"
TINY = [*TINY.split(), "--eval-images=0"]

# All processes draw latents from one generator and take their part of them: then two processes do
# what one does with twice the batch.
SHARED_LATENTS = """
import os, sys, torch
sys.path.insert(0, {root!r})
rank = int(os.environ.get("RANK", 0))
world = int(os.environ.get("WORLD_SIZE", 1))
generator = torch.Generator().manual_seed(5)
randn = torch.randn

def shared(n, *shape, device=None, **options):
    if options:
        return randn(n, *shape, **options)
    return randn(n * world, *shape, generator=generator)[rank * n : (rank + 1) * n]

torch.randn = shared
import sources, {script}
sources.run_program({script}.main)
"""


@pytest.fixture
def data(here):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 16, 16, 3), np.uint8)
    np.savez("x.npz", images=images, labels=np.arange(50) % 3)
    load("x.npz", 16)  # otherwise one process prepares, and the other says that it waits
    return here


def start(folder, *arguments, world=2):
    """The processes of one run, as torchrun starts them but without its own process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(world)}
    command = [sys.executable, *map(str, arguments)]
    processes = []
    for rank in range(world):
        environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
    return processes


def ended(processes, code=0):
    """Their outputs, once all have ended with this code: [(stdout, stderr)]."""
    outputs = [process.communicate(timeout=120) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [code] * len(processes), outputs
    return outputs


def rows(run):
    """log.csv without what depends on the clock."""
    clock = ("seconds", "img_per_s")
    log = read_log(Path(run) / "log.csv")
    return [{k: v for k, v in row.items() if k not in clock} for row in log]


def tensors(tree):
    """All tensors in nested dicts and lists, in order."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [tensor for part in tree for tensor in tensors(part)]
    return [tree] if isinstance(tree, torch.Tensor) else []


def test_two_of_batch_4_are_one_of_batch_8(data):
    """Without BatchNorm: the same batches, latents, averaged gradients and so weights."""
    code = SHARED_LATENTS.format(root=str(ROOT), script="vae_mlp")
    flags = ["-c", code, *TINY, "--steps=14", "--latent-dim=3", "--ema=0.9"]  # more than two epochs
    ended(start(data, *flags, "--batch=4", "--out=two"))
    ended(start(data, *flags, "--batch=8", "--out=one", world=1))
    one, two = read_checkpoint("one"), read_checkpoint("two")
    assert one["step"] == two["step"] == 14 and two["steps_per_epoch"] == 6
    for a, b in zip(tensors(one["models"]), tensors(two["models"]), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(rows("one"), rows("two"), strict=True):
        assert [float(v) for v in a.values()] == pytest.approx(
            [float(v) for v in b.values()], rel=1e-4
        )


def test_only_the_first_writes_and_resume_is_exact(data):
    flags = [
        ROOT / "dcgan.py",
        *TINY,
        "--batch=4",
        "--ema=0.9",
        "--sample-every=3",
        "--save-every=100",
    ]
    said = ended(start(data, *flags, "--steps=8", "--out=a"))
    assert "8 steps of 4 in each of 2 processes, 6 an epoch" in said[0][0] and said[1] == ("", "")
    assert [row["step"] for row in rows("a")] == [str(k) for k in range(1, 9)]
    ended(start(data, *flags, "--steps=5", "--out=b"))
    ended(start(data, ROOT / "dcgan.py", "--resume=b", "--steps=8"))
    a, b = read_checkpoint("a"), read_checkpoint("b")
    assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True)) and rows(
        "a"
    ) == rows("b")
    assert (
        a["rng"]["everyone"][0]["cpu"].ne(a["rng"]["everyone"][1]["cpu"]).any()
    )  # other latents in each
    said = ended(start(data, ROOT / "dcgan.py", "--resume=b", "--steps=9", world=1), code=2)
    assert said[0][1] == "dcgan.py: error: 'b' was trained by 2 processes, not 1: use as many\n"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_ends_ends_the_others(data, how):
    """kill -9 of one: one line. SIGTERM of one: all stop after the same step, and save."""
    flags = [
        ROOT / "vae_mlp.py",
        *TINY,
        "--batch=4",
        "--steps=1000000",
        "--save-every=1",
        "--out=r",
    ]
    processes = start(data, *flags)
    for _ in range(6000):
        if os.path.exists("r/last.pt") and read_checkpoint("r")["step"] > 2:
            break
        time.sleep(0.01)
    processes[1].send_signal(how)
    outputs = [process.communicate(timeout=60) for process in processes]
    step = read_checkpoint("r")["step"]
    if how == signal.SIGKILL:
        assert processes[0].returncode == 2 and outputs[0][1].count("\n") == 1
        assert "vae_mlp.py: error: another of the 2 processes ended" in outputs[0][1]
    else:
        assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2
        assert f"stopped and saved at step {step} of" in outputs[0][0] and outputs[1] == ("", "")
        assert "torchrun --nproc-per-node 2 vae_mlp.py --resume r" in outputs[0][0]


def test_bad_input_is_said_once(data):
    said = ended(start(data, ROOT / "dcgan.py", *TINY, "--batch=30"), code=2)
    assert (
        said[0][1].count("\n") == 1 and "--batch times 2 processes must not be more" in said[0][1]
    )
    assert said[1] == ("", "")
