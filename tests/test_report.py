"""report.py: the four pictures of a run, and what it says when one cannot be made."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import datasets
import dcgan
import report

SIZE, PER_EPOCH = 16, 10


def make_run(folder, steps=range(0, 101, 10), log=True, checkpoint=False):
    """A run directory as dcgan.py leaves it. Image k of the grid of step s is grey, of value 2 s + k (modulo 256)."""
    (folder / "samples").mkdir(parents=True)
    about = {"script": "dcgan", "steps_per_epoch": PER_EPOCH, "data": {"size": SIZE, "channels": 3}}
    (folder / "args.json").write_text(json.dumps(about), encoding="utf-8")
    for step in steps:
        values = (2 * step + torch.arange(64)).remainder(256).to(torch.uint8)
        images = values[:, None, None, None].expand(64, 3, SIZE, SIZE)
        datasets.save_picture(datasets.grid(images, 8), folder / "samples" / f"{step:06d}.png")
    if log:
        lines = ["step,epoch,seconds,img_per_s,loss_d_real,loss_d_fake,loss_g,fid"]
        lines += [f"{s},{s / 10},{s},40,{1 / s},{2 / s},{math.log(s)},{'' if s % 20 else s}" for s in range(1, 101)]
        (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if checkpoint:
        generator = dcgan.Generator(SIZE, 3, 5, 2).apply(dcgan.init_weights)
        flags = {"size": SIZE, "latent_dim": 5, "width": 2, "ema": 0.0, "seed": 0}
        networks = {"generator": generator.state_dict()}
        torch.save(
            {"script": "dcgan", "format": 1, "flags": flags, "step": 100, "steps_per_epoch": PER_EPOCH}
            | {"data": about["data"], "networks": networks},
            folder / "last.pt",
        )
    return folder


def names(paths):
    return [path.name for path in paths]


def read_gif(path):
    """[(frame as RGB array, milliseconds)]"""
    with Image.open(path) as gif:
        frames = []
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append((np.asarray(gif.convert("RGB")), gif.info["duration"]))
    return frames


def test_a_whole_run(tmp_path, capsys):
    run = make_run(tmp_path / "run", checkpoint=True)
    written = report.report(run)
    assert names(written) == ["losses.png", "progress.gif", "strip.png", "interpolation.png"]
    assert capsys.readouterr() == ("", "")
    assert not list(run.glob("*.tmp"))
    for path in written:
        with Image.open(path) as picture:
            picture.load()
    with Image.open(run / "interpolation.png") as picture:
        scale = 64 // SIZE
        assert picture.width > scale * (10 * (SIZE + 2) - 2) and picture.height > 6 * scale * SIZE


def test_progress_keeps_first_and_last(tmp_path):
    run = make_run(tmp_path / "run", steps=range(0, 1500, 10))  # 150 samples
    report.report(run)
    frames = read_gif(run / "progress.gif")
    assert len(frames) <= report.GIF_FRAMES
    assert [ms for _, ms in frames] == [frames[0][1]] * (len(frames) - 1) + [2000]
    for (frame, _), step in ((frames[0], 0), (frames[-1], 1490)):
        assert abs(int(frame[28 + 8, 8, 0]) - (2 * step) % 256) < 12  # first image, below the strip of text
        assert frame[:28].min() < 100 and (frame[:28] > 230).mean() > 0.5  # dark writing on a white strip


def test_progress_is_limited_in_size(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", steps=range(0, 400, 10))
    full = len(report.draw_progress(run, report.read_run(run)))
    monkeypatch.setattr(report, "GIF_BYTES", full // 2)
    assert len(report.draw_progress(run, report.read_run(run))) <= full // 2


@pytest.mark.parametrize("count, limit", [(1, 60), (2, 60), (60, 60), (61, 60), (1000, 60)])
def test_spread(count, limit):
    chosen = report.spread(count, limit)
    assert chosen[0] == 0 and chosen[-1] == count - 1 and len(chosen) == min(count, limit)
    assert len(chosen) < 3 or np.ptp(np.diff(chosen)) <= 1  # even


def test_strip_takes_the_nearest_samples(tmp_path, capsys, monkeypatch):
    run, labels = make_run(tmp_path / "run", steps=[0, 10, 20, 55, 100]), []
    original = report.labelled_rows
    monkeypatch.setattr(report, "labelled_rows", lambda rows: labels.extend(rows) or original(rows))
    report.draw_strip(run, report.read_run(run), [1, 5, 5.4, 30])
    assert [label for label, _ in labels] == ["epoch 1", "epoch 5.5", "epoch 10"]
    assert capsys.readouterr().out == f"{run}: epoch 30 is beyond the last samples (epoch 10)\n"
    row = np.asarray(labels[1][1])[:, :, 0]  # step 55, enlarged 4 times: images of value 110, 111, ... 117
    assert row.shape == (4 * SIZE, 4 * (8 * (SIZE + 2) - 2))
    assert [row[32, 4 * (SIZE + 2) * k + 32] for k in range(8)] == list(range(110, 118))


def test_strip_by_default_ends_with_the_last(tmp_path, monkeypatch):
    run, labels = make_run(tmp_path / "run"), []
    original = report.labelled_rows
    monkeypatch.setattr(report, "labelled_rows", lambda rows: labels.extend(rows) or original(rows))
    report.draw_strip(run, report.read_run(run))
    assert [label for label, _ in labels] == ["epoch 0", "epoch 2", "epoch 4", "epoch 6", "epoch 10"]


def test_first_images_of_a_narrow_grid():
    """A grid of 4 columns gives its second row too, and what a grid does not hold stays white."""
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8)
    row = np.asarray(report.first_images(datasets.grid(images, 4), 8, 8))[4, 4::10, 0]
    assert row.tolist() == [0, 1, 2, 3, 4, 5, 255, 255]


def test_running_mean():
    values = np.random.default_rng(0).normal(size=50)
    mean = report.running_mean(values, 5)
    assert np.allclose(mean[20], values[18:23].mean()) and np.allclose(mean[0], values[:3].mean())
    assert np.allclose(report.running_mean(np.ones(7), 20), 1)


def test_losses_of_other_scripts(tmp_path):
    """Any loss_ and any metric column is drawn; holes, a constant column and an empty one do no harm."""
    run = make_run(tmp_path / "run", log=False)
    (run / "log.csv").write_text(
        "step,epoch,seconds,img_per_s,loss_reconstruction,loss_kl,fid,kid\n1,0.1,1,9,700,3,,\n2,0.2,2,9,700,,41.5,\n"
    )
    data = report.draw_losses(run, report.read_run(run))
    (run / "losses.png").write_bytes(data)
    with Image.open(run / "losses.png") as picture:
        assert picture.height > 700  # three panels: reconstruction, kl, fid


@pytest.mark.parametrize(
    "log, words", [(None, "no rows"), ("", "no rows"), ("step,loss_g\n", "no rows"), ("step,loss_g\n1,x\n", "damaged")]
)
def test_a_log_that_cannot_be_drawn(tmp_path, capsys, log, words):
    run = make_run(tmp_path / "run", steps=[0, 10], log=False)
    if log is not None:
        (run / "log.csv").write_text(log)
    assert names(report.report(run)) == ["progress.gif", "strip.png"]
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2 and "no losses.png" in error[0] and words in error[0] and "no checkpoint" in error[1]


def test_a_run_without_samples(tmp_path, capsys):
    assert names(report.report(make_run(tmp_path / "run", steps=[]))) == ["losses.png"]
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == [
        " no progress.gif", " no strip.png", " no interpolation.png"
    ]  # fmt: skip


def test_damaged_files_cost_one_line_each(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "samples" / "000100.png").write_bytes(b"not a picture")
    (run / "best.pt").write_bytes(b"not a checkpoint")
    assert names(report.report(run)) == ["losses.png"]
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 3 and all("is damaged" in line for line in error)


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert names(report.report(make_run(tmp_path / "run"))) == ["progress.gif", "strip.png"]
    assert "matplotlib is not installed" in capsys.readouterr().err


def test_a_checkpoint_of_a_script_that_is_not_here(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run", checkpoint=True)
    monkeypatch.setitem(sys.modules, "dcgan", None)
    assert "interpolation.png" not in names(report.report(run))
    assert "needs dcgan.py" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{", "[]", '{"steps_per_epoch": 0, "data": {"size": 8}}'])
def test_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "args.json").write_text(content)
    with pytest.raises(datasets.InputError, match="run directory"):
        report.report(tmp_path)


@pytest.mark.parametrize("arguments", ["", "a --epochs", "a --epochs -1", "a --epochs inf", "-x"])
def test_bad_arguments_are_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        report.parse_args(arguments.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and error.startswith("report.py: error: ")


def test_command_line(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "report.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("report.py: error: ") and "args.json" in done.stderr
