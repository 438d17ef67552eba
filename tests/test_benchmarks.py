"""The benchmarks run, at sizes that say nothing about speed."""

import argparse
import contextlib
import importlib
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
import dcgan
import report

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


sys.path.append(str(BENCHMARKS))  # where the process of a side finds them too


def load(name):
    return importlib.import_module(name)


class Here:
    """A side in this process, for what does not depend on processes: each would import torch again."""

    def __init__(self, make, *arguments):
        self.turn = make(*arguments)

    def close(self):
        del self.turn


def test_step(capsys, monkeypatch):
    step = load("step")
    monkeypatch.setattr(step.sides, "Side", Here)
    tiny = "--rounds 1 --steps 2 --width 4 --size 16 --batch 8 --device cpu --precision fp32"
    ratios = step.main(step.parse_args(tiny.split()))
    out = capsys.readouterr().out
    assert list(ratios) == list(step.BATCH) and "ours: fp32" in out and "round 1: textbook" in out
    assert all(ratio > 0 and f"ratio {ratio:.2f}" in out for ratio in ratios.values())
    table = {line.split()[1]: line for line in out.splitlines() if line.startswith("| ")}
    assert all(f"{ratio:.2f} (" in table[name] for name, ratio in ratios.items())


def test_step_in_processes(capsys):
    step = load("step")
    tiny = "--scripts dcgan --rounds 1 --steps 2 --width 4 --size 16 --batch 8 --device cpu --precision fp32"
    assert step.main(step.parse_args(tiny.split()))["dcgan"] > 0 and "round 1: textbook" in capsys.readouterr().out


def test_ablation(capsys, monkeypatch):
    step = load("step")
    monkeypatch.setattr(step.sides, "Side", Here)
    tiny = "--ablation --scripts dcgan vae_mlp --rounds 1 --steps 2 --width 4 --size 16 --batch 8 --device cpu"
    step.main(step.parse_args([*tiny.split(), "--precision", "fp32"]))
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [len(row) for row in table] == [2 + len(step.TRICKS)] * 4
    assert [cell.strip() == "-" for cell in table[2][2:]] == [False, False, False, False, True, True, True]
    assert [cell.strip() == "-" for cell in table[3][2:]] == [False, True, False, False, True, True, True]


def begin(kind):
    """A side whose turn says what it is and in which group of processes."""
    if kind == "broken":
        raise ValueError("on purpose")
    return lambda: (kind, os.getpid(), os.getpgrp())


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
def test_sides_stand_still():
    with (
        contextlib.closing(load("sides").Side(begin, "a")) as a,
        contextlib.closing(load("sides").Side(begin, "b")) as b,
    ):
        for side, name in ((a, "a"), (b, "b"), (a, "a")):
            kind, process, group = side.turn()
            assert kind == name and process == group == side.process.pid != os.getpid()
            while [Path(f"/proc/{x.process.pid}/stat").read_text().split()[2] for x in (a, b)] != ["T", "T"]:
                time.sleep(0.01)  # both stop
    assert not a.process.is_alive() and a.process.exitcode == 0
    with pytest.raises(SystemExit, match="a side of the comparison ended"):
        load("sides").Side(begin, "broken")


def test_step_refuses_zero_rounds(capsys):
    with pytest.raises(SystemExit) as stop:
        load("step").parse_args(["--rounds", "0"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_operations_are_counted():
    """A multiplication and an addition for each weight at each place, forward and twice backward."""
    step = load("step")
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    with step.Operations() as operations:
        layer(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()
    assert operations.count == 3 * 2 * (2 * 8 * 8) * (3 * 5 * 9)


def test_distances_are_the_same_thing():
    """What is timed against each other gives the same value."""
    distances = load("distances")
    real, fake = distances.features(300, 16)
    values = [way(real, fake) for way in distances.FID.values()]
    assert values == pytest.approx([values[0]] * 5, rel=1e-4) and values[0] > 0.01
    real, fake = distances.features(1000, 16)
    values = [way(real, fake) for name, way in distances.KID.items() if name != "clean-fid"]
    assert values == pytest.approx([values[0]] * 3, rel=1e-3)
    assert len({way(real[:200]) for way in distances.COLLAPSE.values()}) == 1


def test_prepare(here, capsys):
    load("prepare").main(argparse.Namespace(images=40, rounds=1, size=16, side=48))
    out = capsys.readouterr().out
    assert "40 JPEGs of 48x36 to 16x16" in out and "peak memory for 400 images" in out


def test_which_fid(here, small_weights, capsys, monkeypatch):
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    np.savez("x.npz", images=np.random.default_rng(0).integers(0, 256, (40, 16, 16), np.uint8))
    dcgan.main(dcgan.parse_args("--data x.npz --size 16 --width 4 --batch 8 --steps 2 --out r --device cpu".split()))
    which = load("which_fid")
    which.main(argparse.Namespace(real="x.npz", fake="r", dims=64, weights=small_weights, images=20, quick=False))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) > 16 and sum(bool(re.search(r"\| \d+\.\d{3} \|$", line)) for line in lines) > 12
    with pytest.raises(datasets.InputError, match="at most half"):
        which.main(argparse.Namespace(real="x.npz", fake="r", dims=64, weights=small_weights, images=21, quick=False))
    arrays = {"images": np.random.default_rng(0).integers(0, 256, (60, 16, 16), np.uint8), "split": np.arange(60) // 40}
    np.savez("y.npz", **arrays)
    which.main(argparse.Namespace(real="y.npz", fake="r", dims=64, weights=small_weights, images=20, quick=True))
    out = capsys.readouterr().out
    assert out.count("held out of training") == 1 and out.count("held-out ones (the floor)") == 1 and "JPEG" not in out


def test_like_tensorflow_is_torch_fidelitys():
    theirs = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = datasets.shapes(32, "test").images[:3]
    expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    assert (load("which_fid").like_tensorflow(images).float() - expected).abs().max() <= 0.5 + 1e-3
