"""The benchmarks run, at sizes that say nothing about speed."""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

import datasets
import training
from sources import InputError

sys.path.append(str(ROOT / "benchmarks"))  # the processes of sides.py get this path, too
import prepare
import sides
import step
import which_fid

TINY = "--steps 2 --width 4 --size 16 --batch 8 --device cpu --precision fp32 --rounds"


@pytest.fixture
def quick(monkeypatch):
    """step.py with both sides in this process, which saves imports of torch, and few images."""

    class SameProcess:
        def __init__(self, make, *arguments):
            self.turn = make(*arguments)

        def close(self):
            pass

    images = datasets.pick(datasets.load("shapes", 16), slice(200))
    monkeypatch.setattr(step.sides, "Side", SameProcess)
    monkeypatch.setattr(step, "some_images", lambda args: images)


def tables(out):
    """The cells of the rows of a Markdown table."""
    rows = [line[1:-1].split("|") for line in out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


# ------------------------------------------------------------------------------------------ step.py


def test_step(capsys, quick, monkeypatch):
    monkeypatch.setattr(step, "device_rate", lambda *_: 1e12)
    ratios = step.measure(step.parse_args([*TINY.split(), "1"]))
    out = capsys.readouterr().out
    scripts = {
        path.stem for path in ROOT.glob("*.py") if "\nPRESETS = {" in path.read_text("utf-8")
    }
    assert list(ratios) == list(step.OURS) == list(step.TEXTBOOK) and set(ratios) == scripts
    assert out.count("round 1: textbook") == len(ratios)
    rows = {cells[0]: cells for cells in tables(out)}
    for name, ratio in ratios.items():
        assert ratio > 0 and rows[name][3].startswith(f"{ratio:.2f} (")


def test_step_in_processes_of_their_own(capsys):
    step.main(["--scripts", "dcgan", *TINY.split(), "1"])
    assert "round 1: textbook" in capsys.readouterr().out


def test_ablation(capsys, quick):
    step.main(["--ablation", "--scripts", "dcgan", "vae_mlp", *TINY.split(), "1"])
    head, _, dcgan, vae_mlp = tables(capsys.readouterr().out)
    assert len(head) == 2 + len(step.TRICKS) == 7
    assert [cell == "-" for cell in dcgan[2:]] == [False, False, False, True, True]
    assert [cell == "-" for cell in vae_mlp[2:]] == [False, True, False, True, True]


@pytest.mark.parametrize("name", step.OURS)
def test_our_loop_is_that_of_the_script(tiny, no_plots, name, monkeypatch):
    """Two steps give the same weights as two steps of the script's main, bit for bit."""
    own = " --latent-dim 100" if name in step.GANS else ""
    own += " --critic-steps 5" if name == "wgan_gp" else ""
    flags = "--data tiny.npz --size 16 --width 4 --batch 8 --device cpu --precision fp32"
    training.load_script(name).main(f"{flags}{own} --steps 2 --out r".split())
    monkeypatch.setattr(step, "CLASSES", 3)
    monkeypatch.setattr(step, "some_images", lambda args: datasets.load("tiny.npz", 16))
    args = argparse.Namespace(script=name, size=16, width=4, batch=8)
    models = step.networks(args)
    monkeypatch.setattr(step, "networks", lambda args: models)
    loop = step.ours(args, torch.device("cpu"), "fp32")
    next(loop)
    next(loop)
    theirs = training.read_checkpoint("r")["models"].values()
    for model, state in zip(models, theirs, strict=True):
        for ours, expected in zip(model.state_dict().values(), state.values(), strict=True):
            assert torch.equal(ours, expected)


def test_operations_are_counted():
    """A multiplication and an addition for each weight and place, forward and twice backward."""
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    with step.Operations() as operations:
        layer(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()
    assert operations.count == 3 * 2 * (2 * 8 * 8) * (3 * 5 * 9)


# ----------------------------------------------------------------------------------------- sides.py


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """In a module of its own, which the processes import in no time: a side that says what it is
    and in which group of processes it runs."""
    (tmp_path / "a_side.py").write_text(
        "import os\n\n\ndef begin(kind):\n    assert kind != 'broken'\n"
        "    return lambda: (kind, os.getpid(), os.getpgrp())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("a_side").begin


def state(side):
    """The state of its process: T if it is stopped."""
    return Path(f"/proc/{side.process.pid}/stat").read_text().split()[2]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_side_is_stopped_while_the_other_works(begin):
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(contextlib.closing(sides.Side(begin, kind))) for kind in "ab")
        for side, name in ((a, "a"), (b, "b"), (a, "a")):
            kind, process, group = side.turn()
            assert kind == name and process == group == side.process.pid != os.getpid()
            while state(a) != "T" or state(b) != "T":
                time.sleep(0.01)
    assert not a.process.is_alive() and a.process.exitcode == 0


def test_a_side_that_fails(begin):
    with pytest.raises(SystemExit, match="a side of the comparison ended"):
        sides.Side(begin, "broken")
    assert not multiprocessing.active_children()


# ------------------------------------------------------------------------------- the other programs


def test_distances_times_the_same_thing(capsys):
    distances = pytest.importorskip("distances", exc_type=SystemExit)
    real, fake = distances.features(300, 16)
    values = [way(real, fake) for way in distances.FID.values()]
    assert values == pytest.approx([values[0]] * 5, rel=1e-4) and values[0] > 0.01
    real, fake = distances.features(1000, 16)
    values = [way(real, fake) for name, way in distances.KID.items() if name != "clean-fid"]
    assert values == pytest.approx([values[0]] * 3, rel=1e-3)
    assert len({way(real[:200]) for way in distances.COLLAPSE.values()}) == 1
    distances.compare("title", distances.FID, [real, fake], 2)
    out = capsys.readouterr().out
    assert out.count(" s ") == 5 and "ours" in out and out.count(" to ") == 4


def test_prepare(here, capsys):
    prepare.main("--images 40 --rounds 1 --size 16 --side 48".split())
    out = capsys.readouterr().out
    assert "40 JPEGs of 48x36 to 16x16" in out and "peak memory for 400 images" in out


def test_which_fid(here, no_plots, small_weights, capsys):
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16), np.uint8)
    np.savez("x.npz", images=images[:20])
    np.savez("y.npz", images=images, split=np.arange(30) // 20)
    flags = "--data x.npz --size 16 --width 4 --batch 8 --steps 2 --out r --device cpu"
    training.load_script("dcgan").main(flags.split())
    measure = ["r", "--dims", "64", "--weights", str(small_weights), "--images"]
    capsys.readouterr()
    which_fid.main(["x.npz", *measure, "10"])
    rows = tables(capsys.readouterr().out)
    numbers = [cells for cells in rows if re.fullmatch(r"\d+\.\d{3}", cells[1])]
    assert len(rows) > 20 and len(numbers) > 17
    with pytest.raises(InputError, match="at most half"):
        which_fid.main(["x.npz", *measure, "11"])
    which_fid.main(["y.npz", *measure, "10", "--quick"])
    out = capsys.readouterr().out
    assert out.count("held out of training") == 1 and "JPEG" not in out
    assert out.count("held-out ones (the floor)") == 1


def test_like_tensorflow_is_torch_fidelitys():
    theirs = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = datasets.shapes(32, "test").images[:3]
    resize = theirs.interpolate_bilinear_2d_like_tensorflow1x
    expected = resize(images.float(), size=(299, 299), align_corners=False)
    assert (which_fid.like_tensorflow(images).float() - expected).abs().max() <= 0.5 + 1e-3
