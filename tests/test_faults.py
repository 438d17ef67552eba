"""Faults: damaged run directories, full disks, little memory, two processes, signals. One row each.

What a run must do: go on from a good checkpoint whatever lies around it, and refuse a bad one in
one line. kill_storm.py ends whole processes.
"""

import errno
import functools
import json
import os
import shutil
import signal
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import at_step
from PIL import Image

import augment
import datasets
import metrics
import page
import report
import sample
import sources
import training
from sources import InputError, read_log, run_program

FLAGS = "--data tiny.npz --size 16 --width 4 --batch 8 --log-every 2 --device cpu --precision fp32"
FLAGS += " --steps 8 --sample-every 3 --save-every 2 --ema 0.9"
NAMES = ["dcgan", "vae_mlp", "cvae", "gan_resnet", "cgan", "wgan_gp", "ddpm"]
MORE = {"ddpm": "--blocks 1 --timesteps 20 --sample-steps 2", "cvae": "--hold-out 10"}
PLOTS = report.report


def run(name, *flags):
    """The program in this process; bad input ends in SystemExit, as in its own process."""
    run_program(functools.partial(training.load_script(name).main, [*flags]))


def stopped(name, out, step=5):
    """A run that was stopped at this step, so that two losses are not logged yet."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        at_step(patch, step, functools.partial(signal.raise_signal, signal.SIGTERM))
        run(name, *FLAGS.split(), *MORE.get(name, "").split(), "--out", out)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with tiny.npz, and for each script a run that was stopped at step 5 of 8."""
    folder = tmp_path_factory.mktemp("faults")
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 3), dtype=np.uint8)
    pixels = pixels.repeat(4, 1).repeat(4, 2)
    labels = np.arange(100) % 3
    np.savez(folder / "tiny.npz", images=pixels, labels=labels, classes=["a", "b", "c"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in NAMES:
            stopped(name, name)
    return folder


@pytest.fixture
def copy(base, tmp_path, monkeypatch):
    """copy("dcgan"): the path of a copy of that run. Runs end without pictures of report.py."""
    monkeypatch.chdir(base)
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    return lambda name: Path(shutil.copytree(base / name, tmp_path / name))


def error_of(capsys, main, *words):
    """A program that must end with one line on stderr and exit code 2: that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_program(functools.partial(main, [str(word) for word in words]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "error: " in error, error
    return error


def resume_error(capsys, name, path, *flags):
    return error_of(capsys, training.load_script(name).main, "--resume", path, *flags)


def steps(path):
    return [row["step"] for row in read_log(path / "log.csv")]


# ------------------------------------------------------------------------------- wrong checkpoints


def change(*keys, to):
    """A change of one value, deep in a checkpoint."""

    def changed(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = to

    return changed


def remove(*keys):
    def changed(state):
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return changed


def weight_of(state):
    """The name of the first matrix of the network that makes pictures."""
    return next(key for key, weight in state["models"]["ema"].items() if weight.dim() > 1)


def first_weight(value):
    def changed(state):
        state["models"]["ema"][weight_of(state)][0] = value

    return changed


def resized(state):
    network = state["models"]["ema"]
    network[weight_of(state)] = network[weight_of(state)][:-1]


def averages(state):
    """What Adam keeps for the first weight that it trains."""
    optimizer = next(iter(state["optimizers"].values()))
    return next(iter(optimizer["state"].values()))


def average(key, value):
    return lambda state: averages(state).update({key: value})


DEEP = []
for _ in range(120):
    DEEP = [DEEP]
FOR_ALL = {  # wrong for --resume and for every tool
    "no networks": change("models", to={}),
    "networks are a list": change("models", to=[1]),
    "a resized weight": resized,
    "a weight that is text": lambda state: state["models"].update(ema={"a": "b"}),
    "a weight that is not finite": first_weight(torch.nan),
    "no step": remove("step"),
    "step is text": change("step", to="five"),
    "step is a fraction": change("step", to=2.5),
    "step is negative": change("step", to=-1),
    "step is beyond the total": change("step", to=9),
    "step is a number of 400 digits": change("step", to=10**400),
    "flags are a list": change("flags", to=["--width", "4"]),
    "flags are none": change("flags", to=None),
    "width was changed": change("flags", "width", to=8),
    "width is text": change("flags", "width", to="four"),
    "width is a list": change("flags", "width", to=[4]),
    "width is nested without end": change("flags", "width", to=DEEP),
    "width is none": change("flags", "width", to=None),
    "width is negative": change("flags", "width", to=-4),
    "ema is text": change("flags", "ema", to="0.9"),
    "no ema": remove("flags", "ema"),
    "size was changed": change("flags", "size", to=32),
    "no data": remove("data"),
    "data are nested without end": change("data", to=DEEP),
    "no channels": remove("data", "channels"),
    "size of the data is text": change("data", "size", to="16"),
    "classes are numbers": change("data", "classes", to=[0, 1, 2]),
    "no fingerprint": remove("data", "fingerprint"),
}
FOR_RESUME = {
    "a network is missing": lambda state: state["models"].popitem(),
    "an extra network": lambda state: state["models"].update(critic={}),
    "an optimizer is missing": change("optimizers", to={}),
    "an extra optimizer": lambda state: state["optimizers"].update(critic={}),
    "Adam is not finite": average("exp_avg_sq", torch.tensor(torch.inf)),
    "an average of another shape": average("exp_avg", torch.zeros(1)),
    "Adam's step is text": average("step", "five"),
    "Adam's step has a shape": average("step", torch.ones(2)),
    "no averages": lambda state: averages(state).pop("exp_avg"),
    "no random states": remove("rng"),
    "a random state of another size": change("rng", "cpu", to=torch.zeros(9, dtype=torch.uint8)),
    "a random state that is text": change("rng", "cpu", to="seed"),
    "recent losses of another number": change("recent", to=torch.zeros(2, 99)),
    "recent losses without columns": change("recent", to=torch.zeros(2)),
    "recent losses are text": change("recent", to="0.5"),
    "a recent loss is not finite": change("recent", to=torch.full((2, 3), torch.nan)),
    "drawn is negative": change("drawn", to=-1),
    "drawn is text": change("drawn", to="1"),
    "drawn is a number of 400 digits": change("drawn", to=10**400),
    "seconds are text": change("seconds", to="12"),
    "seconds are not a number": change("seconds", to=float("nan")),
    "best is text": change("best", to="low"),
    "processes are none": change("processes", to=None),
    "batch is 0": change("flags", "batch", to=0),
    "steps are text": change("flags", "steps", to="8"),
    "a rate is text": change("flags", "lr", to="fast"),
    "an unknown precision": change("flags", "precision", to="fp8"),
    "dims are a number": change("flags", "dims", to=768),
}


@pytest.mark.parametrize("damage", [*FOR_ALL, *FOR_RESUME])
def test_a_wrong_checkpoint_is_not_resumed(copy, capsys, damage):
    path = copy("vae_mlp")
    state = training.read_checkpoint(path)
    {**FOR_ALL, **FOR_RESUME}[damage](state)
    torch.save(state, path / "last.pt")
    files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    error = resume_error(capsys, "vae_mlp", path)
    assert "is damaged" in error
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == files


@pytest.mark.parametrize("damage", FOR_ALL)
def test_no_tool_takes_a_wrong_checkpoint(copy, damage):
    path = copy("vae_mlp")
    state = training.read_checkpoint(path)
    FOR_ALL[damage](state)
    torch.save(state, path / "last.pt")
    with pytest.raises(InputError, match="is damaged|are not finite") as error:
        training.open_model(training.read_checkpoint(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_script_refuses_a_wrong_checkpoint(copy, capsys, name):
    path = copy(name)
    state = training.read_checkpoint(path)
    FOR_RESUME["recent losses are text"](state)
    torch.save(state, path / "last.pt")
    assert "is damaged" in resume_error(capsys, name, path)


@pytest.mark.parametrize("name", NAMES)
def test_infinite_statistics_of_a_model_are_said(copy, capsys, name):
    """BatchNorm's running variance, or a weight where there is no BatchNorm: in all three tools."""
    path = copy(name)
    state = training.read_checkpoint(path)
    keys = list(state["models"]["ema"])
    key = next((key for key in keys if key.endswith("running_var")), weight_of(state))
    state["models"]["ema"][key].view(-1)[0] = torch.inf
    torch.save(state, path / "last.pt")
    to = path / "grid.png"
    assert "not finite" in error_of(capsys, sample.main, path, "--to", to)
    assert not to.exists()
    assert "not finite" in error_of(capsys, metrics.main, "tiny.npz", path, "--eval-images", "8")
    with pytest.raises(InputError, match="not finite"):
        report.open_model(path)
    _, model = training.open_model(training.read_checkpoint(path), weights="plain")  # these are
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_averages_that_are_not_finite_are_not_saved(copy, capsys, monkeypatch, key):
    path = copy("vae_mlp")
    count = training.Run.count

    def counted(self, **losses):
        count(self, **losses)
        next(iter(self.optimizers["vae"].state.values()))[key].view(-1)[0] = torch.nan

    monkeypatch.setattr(training.Run, "count", counted)
    assert "not finite at step 6" in resume_error(capsys, "vae_mlp", path)
    assert training.read_checkpoint(path)["step"] == 5


def test_a_plain_pickle_is_refused_in_one_line(copy, capsys, recwarn):
    path = copy("vae_mlp")
    for protocol in (2, 4):
        with open(path / "last.pt", "wb") as file:
            torch.serialization.pickle.dump({"script": "vae_mlp", "x": print}, file, protocol)
        error = resume_error(capsys, "vae_mlp", path)
        assert "damaged or no checkpoint" in error and "weights_only" not in error
    assert not recwarn.list


def test_the_newest_run_that_cannot_be_read_is_said(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base / "vae_mlp", "runs/old")
    shutil.copytree(base / "vae_mlp", "runs/new")
    Path("runs/new/last.pt").write_bytes(b"PK")
    os.utime("runs/new/last.pt", (2e9, 2e9))
    assert training.newest_run("vae_mlp") == Path("runs/old")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "runs/new/last.pt' is damaged" in error


# ---------------------------------------------------------------------- what lies around a good one

LOGS = {  # damage of log.csv, whose rows are of steps 2 and 4: what the steps are after step 8
    "three NULs": (lambda text: text + b"\0\0\0\n", "2468"),
    "only NULs": (lambda text: b"\0\0\0", "68"),
    "empty": (lambda text: b"", "68"),
    "a step that is text": (lambda text: text.replace(b"\n4,", b"\nabc,"), "268"),
    "not UTF-8": (lambda text: text.replace(b"\n4,", b"\n4\xff,"), "268"),
    "a loss that is not UTF-8": (lambda text: text.replace(b"\n4,", b"\n4,\xff"), "268"),
    "UTF-16": (lambda text: text.decode().encode("utf-16"), "68"),
    "a last line that is cut": (lambda text: text[:-3], "268"),
    "no header": (lambda text: text.split(b"\n", 1)[1], "68"),
    "rows twice": (lambda text: text + text.split(b"\n", 1)[1], "2468"),
    "the header twice": (lambda text: text.split(b"\n")[0] + b"\n" + text, "2468"),
    "a lone quotation mark": (lambda text: text.replace(b"\n2,", b'\n2,"'), "468"),
    "a number of 400 digits": (lambda text: text.replace(b"\n4,", b"\n4," + b"9" * 400), "268"),
    "a step of 400 digits": (lambda text: text + text.splitlines()[2].replace(b"4", b"9" * 400, 1)
                             + b"\n", "2468"),
    "a step of 5000 digits": (lambda text: text.replace(b"\n4,", b"\n" + b"4" * 5000), "268"),
    "an endless cell": (lambda text: text.replace(b"\n4,", b"\n4," + b"1" * 200_000), "268"),
    "a cell too many": (lambda text: text.replace(b"\n4,", b"\n4,1,"), "268"),
    "infinite": (lambda text: text.replace(b"\n4,", b"\n4,inf"), "268"),
}  # fmt: skip


@pytest.mark.parametrize("damage", LOGS)
def test_a_damaged_log_does_not_block_a_good_checkpoint(copy, capsys, damage):
    path = copy("vae_mlp")
    harm, expected = LOGS[damage]
    log = path / "log.csv"
    whole = log.read_bytes()
    log.write_bytes(harm(whole))
    capsys.readouterr()
    run("vae_mlp", "--resume", str(path))
    error = capsys.readouterr().err
    if damage != "empty":
        assert error.count("\n") == 1 and "damaged rows are left out" in error
    assert steps(path) == list(expected)
    rows = log.read_bytes().splitlines()
    for row in whole.splitlines():  # what was whole is as it was
        assert row in rows or row[:2] in (b"2,", b"4,") and row[:1].decode() not in expected


def test_rows_in_another_order_and_other_columns(copy, capsys):
    path = copy("vae_mlp")
    header, *rows = (path / "log.csv").read_text().splitlines()
    (path / "log.csv").write_text("\r\n".join([f"{header},mine", *(f"{r},1" for r in rows[::-1])]))
    with open(path / "log.csv", "a") as file:
        file.write("\n")
    run("vae_mlp", "--resume", str(path))
    assert steps(path) == list("2468")
    assert [row["mine"] for row in read_log(path / "log.csv")] == ["1", "1", "", ""]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["log.csv", "weights.csv"])
def test_a_folder_in_the_place_of_a_log(copy, capsys, name):
    path = copy("vae_mlp")
    (path / name).unlink()
    (path / name).mkdir()
    (path / name / "mine.txt").write_text("mine")
    run("vae_mlp", "--resume", str(path))
    assert capsys.readouterr().err.count("\n") == 1
    assert (path / f"{name}.old/mine.txt").read_text() == "mine"
    assert (path / name).read_text().count("\n") > 2


@pytest.mark.skipif(os.name == "nt", reason="pipes in folders are POSIX")
def test_a_pipe_in_the_place_of_a_log_does_not_hang(copy):
    path = copy("vae_mlp")
    (path / "log.csv").unlink()
    os.mkfifo(path / "log.csv")
    run("vae_mlp", "--resume", str(path))
    assert steps(path) == list("68")


def test_damaged_histograms(copy, capsys):
    path = copy("vae_mlp")
    file = path / "weights.csv"
    whole = file.read_text().splitlines(True)
    file.write_text("".join(whole) + whole[-1] + "abc,vae,x,0,1,2\n" + whole[1][:-9])
    run("vae_mlp", "--resume", str(path))
    assert "3 damaged rows" in capsys.readouterr().err
    rows = read_log(file)
    layers = {row["layer"] for row in rows}
    assert len(rows) == 4 * len(layers) and {row["step"] for row in rows} == set("0368")
    assert file.read_text().startswith("".join(whole))


@pytest.mark.parametrize("content", ["", "[1]", '{"finished": [8]}', "[" * 100_000, "\udcff"])
def test_args_json_is_made_again(copy, content):
    path = copy("vae_mlp")
    (path / "args.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    run("vae_mlp", "--resume", str(path))
    run_args = json.loads((path / "args.json").read_text())
    assert run_args["finished"] == 8 and run_args["script"] == "vae_mlp"


def test_temporary_files_of_dead_processes_go(copy):
    path = copy("vae_mlp")
    dead = ["last.pt.123.tmp", "samples/000003.png.1.tmp", f"log.csv.{os.getpid()}.tmp"]
    for name in [*dead, "thesis.tmp"]:
        (path / name).write_bytes(b"half")
    run("vae_mlp", "--resume", str(path))
    assert list(path.rglob("*.tmp")) == [path / "thesis.tmp"]  # not one of ours


@pytest.mark.skipif(os.name == "nt", reason="there, nobody can remove an open file")
def test_a_file_that_a_living_process_writes_stays(tmp_path):
    """Say one of report.py, which does not hold the lock of the run."""
    states = []

    def write(temporary):
        sources.remove_half_written(tmp_path)
        states.append(os.path.exists(temporary))
        Path(temporary).write_bytes(b"new")

    sources.write_atomic(tmp_path / "a", write)
    assert states == [True] and (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", NAMES)
def test_stopped_before_the_first_picture(base, tmp_path, monkeypatch, name):
    """It is drawn on resume, and is the one of the run that was not stopped."""
    monkeypatch.chdir(base)
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    out = tmp_path / "r"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(datasets, "save_picture", raiser(KeyboardInterrupt))
        flags = [*FLAGS.split(), *MORE.get(name, "").split(), "--out", str(out)]
        training.load_script(name).main(flags)
    assert training.read_checkpoint(out)["step"] == 0 and not (out / "samples").exists()
    run(name, "--resume", str(out), "--steps", "1")
    for folder in ("samples", "reconstructions"):
        picture = base / name / folder / "000000.png"
        assert picture.exists() or folder != "samples"
        if picture.exists():
            assert (out / folder / "000000.png").read_bytes() == picture.read_bytes()


def test_stopped_between_the_first_picture_and_the_next_checkpoint(base, tmp_path, monkeypatch):
    """The histograms of step 0 are made again, and are there once."""
    monkeypatch.chdir(base)
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    out = tmp_path / "r"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 1, raiser(KeyboardInterrupt))
        training.load_script("vae_mlp").main([*FLAGS.split(), "--out", str(out)])
    before = (out / "weights.csv").read_text()
    run("vae_mlp", "--resume", str(out), "--steps", "1")
    after = (out / "weights.csv").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 2 * len(before.splitlines()) - 1


def raiser(error):
    def function(*_, **__):
        raise error

    return function


# ---------------------------------------------------------------------- after the last step (V1)

POINTS = {  # where a run is stopped: what raises there
    "before the numbers": (metrics, "evaluate"),
    "before metrics.json": (metrics, "write_result"),
    "before the plots": (report, "report"),
    "before the end": (training.Run, "finish"),
}


@pytest.fixture
def measured(base, tmp_path, monkeypatch):
    """measured(name, out) trains a run whose preset has a report, without Inception."""
    import inception

    monkeypatch.chdir(base)
    monkeypatch.setattr(inception, "official_path", lambda: tmp_path / "absent.pth")
    monkeypatch.setattr(inception, "download", lambda: "no network")

    def plots(folder, **_):
        sources.write_text(folder / "plot.png", "drawn")
        return []

    monkeypatch.setattr(report, "report", plots)

    def train(name, out):
        flags = [*FLAGS.split(), "--preset", "cats", "--steps", "2", "--eval-images", "8"]
        training.load_script(name).main([*flags, "--out", str(out)])

    return train


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["dcgan", "vae_mlp"])
def test_what_was_stopped_after_the_last_step_is_made_up_for(
    measured, tmp_path, monkeypatch, capsys, name, point
):
    measured(name, tmp_path / "a")
    out = tmp_path / "b"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*POINTS[point], raiser(KeyboardInterrupt))
        measured(name, out)
    run(name, "--resume", str(out))
    for file in ("metrics.json", "plot.png", "samples/000002.png", "weights.csv"):
        assert (out / file).read_bytes() == (tmp_path / "a" / file).read_bytes()
    assert "is finished" in resume_error(capsys, name, out)


def test_stopped_in_the_middle_of_the_plots(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "report", PLOTS)
    for name in ("draw_losses", "draw_weights", "draw_interpolation", "draw_page"):  # take seconds
        monkeypatch.setattr(report, name, lambda *_: b"drawn")
    out = tmp_path / "r"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(report, "draw_strip", raiser(KeyboardInterrupt))
        measured("vae_mlp", out)
    first = (out / "progress.gif").read_bytes()
    assert not (out / "strip.png").exists()
    run("vae_mlp", "--resume", str(out))
    assert (out / "progress.gif").read_bytes() == first
    assert (out / "strip.png").exists() and (out / "interpolation.png").exists()


@pytest.mark.parametrize("name", ["metrics.json", "plot.png"])
def test_a_result_that_is_gone_is_made_again(measured, tmp_path, capsys, name):
    """A run was finished, and somebody removed a file. Then nothing is left to do again."""
    out = tmp_path / "r"
    measured("vae_mlp", out)
    sources.write_text(out / "plot.png", "drawn")
    run("vae_mlp", "--resume", str(out), "--steps", "4")
    before = (out / name).read_bytes()
    (out / name).unlink()
    run("vae_mlp", "--resume", str(out))
    assert (out / name).read_bytes() == before
    assert "is finished" in resume_error(capsys, "vae_mlp", out)


def test_a_signal_in_the_last_step_is_not_lost(copy, monkeypatch, capsys):
    """Nor one while the last checkpoint is written: what follows can take minutes."""
    path = copy("vae_mlp")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        at_step(patch, 8, functools.partial(signal.raise_signal, signal.SIGTERM))
        patch.setattr(report, "report", raiser(AssertionError))
        run("vae_mlp", "--resume", str(path))
    assert stop.value.code == 128 + signal.SIGTERM
    assert f"--resume {path}" in capsys.readouterr().out
    run("vae_mlp", "--resume", str(path))
    assert json.loads((path / "args.json").read_text())["finished"] == 8


def test_the_lock_is_held_and_ctrl_c_ends_at_once_until_the_end(copy, monkeypatch, capsys):
    path = copy("vae_mlp")
    seen = []

    def plots(folder, **_):
        with pytest.raises(InputError, match="another process is using it"):
            with sources.locked(folder / ".lock"):
                pass
        seen.append(signal.getsignal(signal.SIGTERM))
        return []

    monkeypatch.setattr(report, "report", plots)
    run("vae_mlp", "--resume", str(path))
    assert seen == [signal.getsignal(signal.SIGTERM)] and seen[0] is not None
    with sources.locked(path / ".lock"):
        pass


# ---------------------------------------------------------------------------- memory, disks, locks

TOO_LITTLE = {
    "MemoryError": MemoryError(),
    "torch": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
    ),
    "the buffer of torch.save": RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"
    ),
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "threads": RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize("error", TOO_LITTLE)
def test_too_little_memory_for_a_checkpoint(copy, capsys, monkeypatch, error):
    path = copy("vae_mlp")
    good = (path / "last.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", raiser(TOO_LITTLE[error]))
        assert "not enough memory" in resume_error(capsys, "vae_mlp", path)
    assert (path / "last.pt").read_bytes() == good and not list(path.rglob("*.tmp"))
    run("vae_mlp", "--resume", str(path))
    assert training.read_checkpoint(path)["step"] == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of a process are POSIX")
def test_a_buffer_that_cannot_grow(copy, capsys, monkeypatch):
    """With a real limit, in a process of its own: what torch.save says then."""
    import resource

    data = torch.zeros(150_000_000)  # 600 MB: more than the process has freed so far
    process = os.fork()
    if process == 0:
        code = 1
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, -1))
            torch.save({"x": data}, training.io.BytesIO())
        except (RuntimeError, MemoryError) as error:
            code = 0 if sources.out_of_memory(error) else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


@pytest.mark.parametrize("name", ["last.pt", "000006.png", "args.json", "source.py", "log.csv"])
def test_a_full_disk_at_each_kind_of_file(copy, capsys, monkeypatch, name):
    path = copy("vae_mlp")
    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        words = f"{name}' cannot be written (No space left on device)"
        assert words in resume_error(capsys, "vae_mlp", path)
    assert training.read_checkpoint(path)["step"] >= 5 and not list(path.rglob("*.tmp"))
    run("vae_mlp", "--resume", str(path))
    assert training.read_checkpoint(path)["step"] == 8 and steps(path) == list("2468")


def test_a_full_disk_in_the_middle_of_a_row(copy, capsys, monkeypatch):
    path = copy("vae_mlp")

    writerows = sources.csv.DictWriter.writerows

    def half(self, rows):
        if len(rows) > 1:  # not the next row, but those of before, in memory
            return writerows(self, rows)
        with open(path / "log.csv", "a") as file:
            file.write("6,0.5,1")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sources.csv.DictWriter, "writerows", half)
        words = "log.csv' cannot be written (No space left on device)"
        assert words in resume_error(capsys, "vae_mlp", path)
    run("vae_mlp", "--resume", str(path))
    assert steps(path) == list("2468")


@pytest.mark.parametrize("name", ["last.pt", ".lock", "samples"])
def test_something_else_in_the_place_of_a_file(copy, capsys, name):
    path = copy("vae_mlp")
    if (path / name).is_dir():
        shutil.rmtree(path / name)
        (path / name).write_text("mine")
    else:
        (path / name).unlink()
        (path / name).mkdir()
    assert name in resume_error(capsys, "vae_mlp", path)
    assert not list(path.rglob("*.tmp"))


def test_data_that_are_gone_or_changed(copy, capsys, tmp_path, base):
    path = copy("vae_mlp")
    other = tmp_path / "other.npz"
    pixels = np.random.default_rng(1).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)
    np.savez(other, images=pixels, labels=np.zeros(100, int))
    assert "not the data" in resume_error(capsys, "vae_mlp", path, "--data", other)
    os.chdir(tmp_path)
    assert "no data set or path 'tiny.npz'" in resume_error(capsys, "vae_mlp", path)
    run("vae_mlp", "--resume", str(path), "--data", str(base / "tiny.npz"))  # they have moved


def test_a_script_that_is_not_utf_8_is_kept_as_it_is(copy, monkeypatch):
    path = copy("vae_mlp")
    name = "vae_mlp.py"
    script = path / name
    script.write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n")
    monkeypatch.setattr(training, "__file__", str(path / "training.py"))
    run("vae_mlp", "--resume", str(path))  # the one at the real place: it is loaded already
    assert (path / "source.py").read_bytes() == script.read_bytes()


def test_two_processes_begin_a_run_at_once(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = []

    def make():
        paths.append(sources.new_directory(None, Path("runs/x")))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in paths) == [f"x-{n}" for n in range(1, 9)]


def test_waiting_for_another_process_is_said_once(tmp_path, monkeypatch, capsys):
    held = open(tmp_path / "lock", "a+b")
    assert sources.try_lock(held)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 5:
            held.close()

    monkeypatch.setattr(time, "sleep", sleep)
    with sources.locked(tmp_path / "lock", wait="waiting"):
        assert len(waits) == 5
    assert capsys.readouterr().err == "waiting\n"


@pytest.mark.parametrize("kind", ["broken link", "file"])
@pytest.mark.parametrize("program", ["dcgan", "augment"])
def test_runs_is_no_folder(base, tmp_path, monkeypatch, capsys, program, kind):
    """In place of the folder for new runs. A broken link was taken for a run, for ever."""
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        Path("runs").write_text("mine")
    else:
        Path("runs").symlink_to("nowhere")
    flags = ["--data", base / "tiny.npz", "--size", "16", "--device", "cpu"]
    flags += ["--per-class", "5"] if program == "augment" else ["--steps", "1"]
    monkeypatch.setattr(sources.itertools, "count", lambda _: range(1, 99))
    assert "runs" in error_of(capsys, training.load_script(program).main, *flags)


# ------------------------------------------------------------------ augment.py --resume (V2, V15)

SETTINGS = dict(
    vars(augment.parse_args(["--data", "tiny.npz", "--size", "16"])), fingerprint="0123456789"
)
WRONG = [dict(per_class="5"), dict(per_class=[[5]]), dict(per_class=[10**30]), dict(steps="many")]
WRONG += [dict(generator=3), dict(size="big"), dict(add=-1), dict(seeds=10**12), dict(batch=None)]
WRONG += [dict(width=1e9), dict(no_flip="x"), dict(generator_flags=7), dict(data=""), None]
WRONG += [dict(mix="all"), dict(subsets=0), dict(add=5), dict(add=[5, "x"]), dict(dims=7)]


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\udcff", *WRONG], ids=repr)
def test_damaged_settings(tmp_path, capsys, content):
    text = content
    if not isinstance(content, str):
        text = json.dumps({**SETTINGS, **content} if content else {"data": "tiny.npz"})
    (tmp_path / "settings.json").write_bytes(text.encode(errors="surrogateescape"))
    error = error_of(capsys, augment.main, "--resume", tmp_path)
    assert "settings.json is missing or damaged" in error


def test_good_settings(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    args = augment.resumed(augment.parse_args(["--resume", str(tmp_path), "--device", "cpu"]))
    assert vars(args) == {**SETTINGS, "resume": str(tmp_path), "device": "cpu"}


HEAD = b"per_class,subset,add,arm,seed,accuracy,precision,recall\n5,0,0,real,0,0.5,0.25,1\n"


@pytest.mark.parametrize(
    "row",
    [b"5,0,0,real,1,\0\0\0,0.1,0.1", b"\xff\xfe,0,0,real,1,1,0.1,0.1", b"5,0,0,real,1,nan,0.1,0.1",
     b"5,0,0,real,1,7e300,0,0", b"5,0,0,real,1," + 200_000 * b"9" + b",0,0",
     b'"5,0,0,real,1,1,0.1,0.1', b"5,0,0,real,1,0.1,0.1", b"5,0,0,real"],
    ids=range(8),
)  # fmt: skip
def test_damaged_results(tmp_path, capsys, row):
    path = tmp_path / "results.csv"
    path.write_bytes(HEAD + row + b"\n5,0,0,real,2,1,1,1\n")
    results = augment.read_results(path)
    ones = {"accuracy": 1, "precision": 1, "recall": 1}
    assert results == {
        (5, 0, 0, "real", 0): {"accuracy": 0.5, "precision": 0.25, "recall": 1},
        (5, 0, 0, "real", 2): ones,
    }
    assert capsys.readouterr().err == f"{path}: 1 damaged rows are left out\n"


def test_results_that_are_no_file(tmp_path):
    (tmp_path / "results.csv").mkdir()
    assert augment.read_results(tmp_path / "results.csv") == {}


def test_arrays_of_a_study_that_are_damaged(tmp_path):
    """A part is made again; of a whole file one line says that it can be removed."""
    images = torch.arange(3 * 3 * 16 * 16).reshape(3, 3, 16, 16).to(torch.uint8)
    path = tmp_path / "part.npz"
    assert augment.read_part(path, images) is None
    augment.save_arrays(path, images, torch.zeros(3, dtype=torch.int64), ["a"])
    assert torch.equal(augment.read_part(path, images), images)
    assert augment.read_part(path, images[:2]) is None
    path.write_bytes(path.read_bytes()[:-40])
    assert augment.read_part(path, images) is None
    data = datasets.Images(images, torch.tensor([0, 1, 1]), ["a", "b"], "x", "", False, "")
    augment.check_part(path, data, torch.tensor([0, 1, 1]))
    for labels in (None, torch.tensor([0, 1, 0]), torch.tensor([0, 1])):
        with pytest.raises(InputError, match="is damaged: remove it"):
            augment.check_part(path, data._replace(labels=labels), torch.tensor([0, 1, 1]))


# --------------------------------------------------------------------------- report.py (V16)

DRAWN = {  # a picture: the function that draws it
    "losses.png": "draw_losses",
    "weights.png": "draw_weights",
    "progress.gif": "draw_progress",
    "strip.png": "draw_strip",
    "interpolation.png": "draw_interpolation",
    "report.html": "draw_page",
}


def png_header(width, height):
    """A PNG file that says it has this many pixels, and holds none of them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        chunks += struct.pack(">I", len(data)) + kind + data + checksum
    return b"\x89PNG\r\n\x1a\n" + chunks


def picture_is(content):
    return lambda path: (path / "samples/000003.png").write_bytes(content)


def file_is(name, content):
    """What writes this content, bytes or JSON text; None is a folder."""

    def change(path):
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        (path / name).unlink(missing_ok=True)
        if content is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(content)

    return change


def wide(path):
    Image.new("RGB", (100_000, 1)).save(path / "samples/000003.png")


WITHOUT = {  # damage: the pictures that cannot be made; those that can, although they read it
    "a picture of 900 megapixels": (picture_is(png_header(30_000, 30_000)), "progress strip"),
    "a picture of 150 megapixels": (picture_is(png_header(15_000, 10_000)), "progress strip"),
    "a picture that is none": (picture_is(b"GIF89a and no more"), "progress strip"),
    "a picture that is empty": (picture_is(b""), "progress strip"),
    "a picture that is cut": (picture_is(png_header(70, 70)), "progress strip"),
    "a picture of one line": (wide, "progress strip"),
    "samples/ is a file": (file_is("samples", b"mine"), "progress strip"),
    "a picture is a folder": (file_is("samples/000003.png", None), "", "progress strip"),
    "log.csv without losses": (file_is("log.csv", b"step,epoch\n2,1\n4,2\n"), "losses"),
    "log.csv without steps": (file_is("log.csv", b"loss\n2\n4\n"), "losses"),
    "infinite losses": (file_is("log.csv", b"step,loss\n2,inf\n4,-inf\n"), "losses"),
    "losses that are not numbers": (file_is("log.csv", b"step,loss\n2,nan\n4,nan\n"), "losses"),
    "losses near the limit": (file_is("log.csv", b"step,loss\n2,3e38\n4,-3e38\n"), "", "losses"),
    "log.csv is a folder": (file_is("log.csv", None), "losses"),
    "weights.csv without counts": (file_is("weights.csv", b"step,low\n0,1\n"), "weights"),
    "weights.csv with few counts": (
        file_is("weights.csv", b"step,network,layer,low,high,counts\n0,g,a,0,1,1 2\n"), "weights"),
    "weights.csv is binary": (file_is("weights.csv", bytes(range(256)) * 9), "weights"),
    "last.pt is empty": (file_is("last.pt", b""), "interpolation"),
    "last.pt is a folder": (file_is("last.pt", None), "interpolation"),
    "best.pt is JSON": (file_is("best.pt", b"{}"), "interpolation"),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A run that is finished, without pictures of report.py."""
    path = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(base / "vae_mlp", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        patch.setattr(report, "report", lambda *_, **__: [])
        run("vae_mlp", "--resume", str(path))
    return path


@pytest.mark.parametrize("damage", WITHOUT)
def test_a_picture_that_cannot_be_made_costs_one_line(
    finished, tmp_path, monkeypatch, capsys, damage
):
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(path / "reconstructions")
    harm, names, *others = WITHOUT[damage]
    missing = [name for name in DRAWN if name.split(".")[0] in names.split()]
    harm(path)
    for name, function in DRAWN.items():  # the rest takes seconds
        if name.split(".")[0] not in " ".join([names, *others]).split():
            monkeypatch.setattr(report, function, lambda *_: b"drawn")
    written = [file.name for file in PLOTS(path)]
    assert written == [name for name in DRAWN if name not in missing]
    error = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in error] == [f"no {name}" for name in missing]


@pytest.mark.parametrize("damage", WITHOUT)
def test_the_page_is_made_whatever_is_damaged(finished, tmp_path, capsys, damage):
    """Nor does it say a second time what is wrong."""
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    WITHOUT[damage][0](path)
    content = report.draw_page(page, path, report.read_run(path)).decode("utf-8")
    assert content.endswith("</html>\n") and capsys.readouterr() == ("", "")


ARGS = {  # damage of args.json: what the line says
    "nested without end": ("[" * 100_000, "is damaged"),
    "flags are none": ('{"flags": null}', "is damaged"),
    "flags are text": ('{"flags": "--width 4"}', "is damaged"),
    "data are none": ('{"data": null}', "is damaged"),
    "no size": ('{"data": {"size": null}}', "is damaged"),
    "classes are none": ('{"data": {"size": 16, "classes": null}}', "is damaged"),
    "classes are numbers": ('{"data": {"size": 16, "classes": [1]}}', "is damaged"),
    "the script is a list": ('{"script": ["dcgan"]}', "is damaged"),
    "an infinite epoch": ('{"steps_per_epoch": 1e400}', "is damaged"),
    "an epoch that is no number": ('{"steps_per_epoch": NaN}', "is damaged"),
    "an epoch of 400 digits": ('{"steps_per_epoch": 1' + "0" * 400 + "}", "is damaged"),
    "an epoch of 5000 digits": ('{"steps_per_epoch": 1' + "0" * 5000 + "}", "is damaged"),
    "empty": ("", "is damaged"),
    "a list": ("[1]", "is damaged"),
    "not UTF-8": ("\udcff\udcfe", "is damaged"),
    "absent": (None, "holds no args.json"),
}


@pytest.mark.parametrize("damage", ARGS)
def test_report_refuses_a_damaged_args_json(finished, tmp_path, capsys, damage):
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    text, words = ARGS[damage]
    args = json.loads((path / "args.json").read_text())
    if text is None:
        (path / "args.json").unlink()
    elif text.startswith("{"):
        values = json.loads(text) if "5000" not in damage else {}
        text = json.dumps({**args, **values}) if values else text
        (path / "args.json").write_text(text)
    else:
        (path / "args.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert words in error_of(capsys, report.main, path)


@pytest.mark.filterwarnings("error")
def test_a_name_that_the_font_lacks(finished, tmp_path, capsys):
    """No warning on the terminal, and with PYTHONWARNINGS=error the plot is made, too."""
    path = Path(shutil.copytree(finished, tmp_path / "\u732b\x1b[31m"))
    args = report.read_run(path)
    assert report.draw_losses(path, args)[:4] == b"\x89PNG"
    (path / "log.csv").write_text("step,loss\n2,1\nx,1\n")
    report.read_rows(path / "log.csv")
    line = f"{tmp_path}/\u732b\\x1b[31m/log.csv: 1 damaged rows are left out\n"
    assert capsys.readouterr().err == line


RESULTS = ["[1]", "[" * 100_000, "", '{"values": 3}', '{"values": [1], "report": {}}', "\udcff"]


@pytest.mark.parametrize("content", RESULTS)
def test_a_damaged_metrics_json_costs_the_comparison(
    finished, tmp_path, monkeypatch, capsys, content
):
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    text = content.encode(errors="surrogateescape")
    (path / "metrics.json").write_bytes(text)
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    error = error_of(capsys, report.main, path, finished)
    assert "no comparison of these runs: " in error
    assert not (finished.parent / "comparison.md").exists()


def test_a_script_that_is_gone_costs_one_picture(finished, tmp_path, monkeypatch, capsys):
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    state = training.read_checkpoint(path)
    torch.save({**state, "script": "mygan"}, path / "last.pt")
    for function in DRAWN.values():
        if function != "draw_interpolation":
            monkeypatch.setattr(report, function, lambda *_: b"drawn")
    assert "interpolation.png" not in [file.name for file in PLOTS(path)]
    assert capsys.readouterr().err.count("\n") == 1
