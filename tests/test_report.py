"""report.py: the pictures of a run, and what it says when one cannot be made."""

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
import metrics
import report
import wgan_gp

SIZE, PER_EPOCH = 16, 10


def make_run(folder, steps=range(0, 101, 10), log=True, checkpoint=False):
    """A run directory as dcgan.py leaves it. Image k of the grid of step s is grey, of value 2 s + k (modulo 256).

    checkpoint: of networks without training, on the built-in shapes. Three layers have weights, at eleven moments.
    """
    (folder / "samples").mkdir(parents=True)
    data = {"size": SIZE, "channels": 3, "fingerprint": f"shapes-1-{SIZE}"}
    about = {"script": "dcgan", "steps_per_epoch": PER_EPOCH, "data": data, "flags": {"data": "shapes"}}
    (folder / "args.json").write_text(json.dumps(about), encoding="utf-8")
    for step in steps:
        values = (2 * step + torch.arange(64)).remainder(256).to(torch.uint8)
        images = values[:, None, None, None].expand(64, 3, SIZE, SIZE)
        datasets.save_picture(datasets.grid(images, 8), folder / "samples" / f"{step:06d}.png")
    lines = ["step,network,layer,low,high,counts"]
    for step in range(0, 101, 10):
        for layer in ("generator,a.weight", "generator,b.weight", "discriminator,a.weight"):
            counts = np.random.default_rng(step).normal(0, 1 + step / 100, 9000).clip(-5, 5)
            counts = np.histogram(counts, 50, (-5, 5))[0]
            lines.append(f"{step},{layer},-5,5,{' '.join(map(str, counts))}")
    (folder / "weights.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
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
    assert names(written) == ["losses.png", "weights.png", "progress.gif", "strip.png", "interpolation.png"]
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


def test_a_run_shorter_than_an_epoch_counts_steps(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(report, "labelled_rows", lambda rows: labels.extend(name for name, _ in rows) or rows[0][1])
    run = make_run(tmp_path / "run", steps=range(0, 101, 10))
    report.draw_strip(run, report.read_run(run) | {"steps_per_epoch": 10_000})
    assert labels == ["step 0", "step 20", "step 40", "step 60", "step 100"]


def test_text_is_cut_and_has_other_alphabets():
    page = Image.new("RGB", (300, 30), report.PAPER)
    report.write_text(page, (0, 15), "Zürich, Владивосток, Αθήνα", width=100)
    drawn = np.asarray(page).min(axis=(0, 2)) < 128
    assert drawn[:100].any() and not drawn[100:].any()
    letters = {report.font(16).getmask(letter).getbbox() for letter in "üжΩ"}
    assert len(letters) == 3  # a box, where the font lacks a letter, is always the same


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


# ------------------------------------------------------------------------------------------------ weight histograms


@pytest.fixture
def program(here, monkeypatch):
    """Runs dcgan.py in an empty current folder, on 40 images and without a report at the end."""
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    np.savez("tiny.npz", images=np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    tiny = "--data tiny.npz --size 16 --width 4 --batch 8 --device cpu --precision fp32 --ema 0.9".split()

    def run(*flags):
        first = [] if "--resume" in flags else [*tiny, "--out", "r"]
        datasets.run_program("dcgan.py", dcgan.main, dcgan.parse_args([*first, *flags]))
        return report.read_weights(here / "r")

    return run


def test_histograms_of_a_run(program):
    layers = program("--steps", "5", "--sample-every", "2")
    checkpoint = datasets.read_checkpoint("r")
    expected = [
        (network, layer)
        for network in ("generator", "discriminator")  # not the average
        for layer, weight in checkpoint["networks"][network].items()
        if weight.dim() > 1  # neither norms nor biases
    ]
    assert list(layers) == expected and len(expected) == 6
    for (network, layer), moments in layers.items():
        assert list(moments) == [0, 2, 4, 5]
        weight = checkpoint["networks"][network][layer].numpy()
        low, high, counts = moments[5]  # the moment of the checkpoint
        assert low == weight.min() and high == weight.max() and counts.sum() == weight.size
        difference = counts - np.histogram(weight, 50, (low, high))[0]
        assert abs(difference).sum() <= 2  # a weight may be rounded over the edge of a bin


def test_resume_drops_the_histograms_after_the_checkpoint(program):
    def table():
        with open("r/weights.csv", encoding="utf-8") as file:
            return file.read()

    program("--steps", "4", "--sample-every", "2")
    before = table()
    with open("r/weights.csv", "a", encoding="utf-8") as file:
        file.write(before.splitlines()[-1].replace("4,", "5,", 1) + "\n6,generator,layers.0")  # then came kill -9
    layers = program("--resume", "r", "--steps", "6")
    assert all(list(moments) == [0, 2, 4, 6] for moments in layers.values()) and table().startswith(before)
    lines = table().splitlines()
    assert len(lines) == 1 + 4 * 6 and len(set(lines)) == len(lines)


def test_histograms_of_odd_weights(tmp_path):
    """Equal weights are counted, weights that are not finite are left out, and neither stops a run."""
    run = datasets.Run.__new__(datasets.Run)  # nothing but what draw() needs
    run.networks, run.step, run.device = {"net": torch.nn.ModuleList()}, 3, torch.device("cpu")
    run.sample = lambda: None
    run.histograms = datasets.Log(tmp_path / "weights.csv", ["step", "network", "layer", "low", "high", "counts"], 0)
    run.draw()  # a network without weights
    for value in (0.5, math.nan, math.inf):
        run.networks["net"].append(torch.nn.Linear(4, 3))
        run.networks["net"][-1].weight.data.fill_(0.5)[0, 0] = value
    run.draw()
    header, line = (tmp_path / "weights.csv").read_text().splitlines()
    assert line == "3,net,0.weight,0.5,0.5,12" + " 0" * 49


def drawn(monkeypatch, run):
    figures, original = [], report.figure_png
    monkeypatch.setattr(report, "figure_png", lambda figure: figures.append(figure) or original(figure))
    report.draw_weights(run, report.read_run(run))
    return figures[0]


def test_one_panel_for_each_layer(tmp_path, monkeypatch):
    figure = drawn(monkeypatch, make_run(tmp_path / "run"))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["generator a", "generator b", "discriminator a"]
    first, _, third = (axis.get_position() for axis in figure.axes)
    assert first.x0 == third.x0 and first.y0 > third.y1  # every network begins a new row
    for axis in figure.axes:
        assert len(axis.lines) == 8 and axis.get_yscale() == "log"
        darkness = [-sum(line.get_color()[:3]) for line in axis.lines]
        assert darkness == sorted(darkness)
        values, density = axis.lines[-1].get_data()
        assert np.isclose(np.nansum(density) * (values[1] - values[0]), 1)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(words) == 8 and words[0] == "step 0" and words[-1] == "step 100"


def test_few_moments_and_equal_weights_are_drawn(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    counts = "12" + " 0" * 49
    lines = ["step,network,layer,low,high,counts", f"0,vae,a.weight,0.5,0.5,{counts}", f"0,vae,b.weight,0,1,{counts}"]
    (run / "weights.csv").write_text("\n".join([*lines, "9,vae,a.weight,0,1,3 4", "9,vae"]))
    figure = drawn(monkeypatch, run)
    assert [len(axis.lines) for axis in figure.axes] == [0, 1]


def test_a_run_from_before_there_were_histograms(tmp_path, capsys):
    run = make_run(tmp_path / "run", checkpoint=True)
    (run / "weights.csv").unlink()
    assert names(report.report(run)) == ["losses.png", "progress.gif", "strip.png", "interpolation.png"]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no weights.png: the run has no weights.csv" in error


# ---------------------------------------------------------------------------------------------------- best and worst


@pytest.fixture
def scored(monkeypatch):
    """In place of the model and of MS-SSIM: picture i is grey, of value i, and scores (7 i modulo 200) / 200."""
    seen = {}

    def generate(checkpoint, n, seed):
        side = seen.get("side", SIZE)
        return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, side, side)

    def score(images, real):
        seen.update(images=images, real=real)
        return (7 * torch.arange(len(images)) % 200).double() / 200

    monkeypatch.setattr(dcgan, "generate", generate)
    monkeypatch.setattr(metrics, "mean_ms_ssim", score, raising=False)
    original = report.labelled_rows

    def labelled_rows(rows, caption=""):
        seen.update(rows=rows, words=caption)  # of the last picture, which extremes.png is
        return original(rows, caption)

    monkeypatch.setattr(report, "labelled_rows", labelled_rows)
    return seen


def test_extremes_are_the_best_and_the_worst(tmp_path, scored):
    run = make_run(tmp_path / "run", checkpoint=True)
    assert "extremes.png" in names(report.report(run, extremes=True))
    place = {7 * i % 200: i for i in range(200)}  # score -> picture
    for (label, picture), ranks in zip(scored["rows"], (range(199, 191, -1), range(7, -1, -1)), strict=True):
        assert label == ("best" if ranks[0] == 199 else "worst")
        row = np.asarray(picture)[64, 64 :: 8 * (SIZE + 2), 0]  # images enlarged 8 times
        assert row.tolist() == [place[rank] for rank in ranks]
        below = np.asarray(picture)[8 * SIZE :]
        assert below.shape[0] == 24 and below.min() < 100  # the scores
    real, test = scored["real"], datasets.load("shapes", SIZE, "test").images
    assert len(scored["images"]) == 200 and torch.equal(real, test[datasets.shuffled(2000, 0)[:50]])
    assert scored["words"].startswith("mean MS-SSIM of each of 200 generated images with 50 random held-out images")
    assert "last.pt: plain weights at step 100" in scored["words"] and "latent seed 2" in scored["words"]


def test_extremes_of_a_model_that_still_grows(tmp_path, scored):
    scored["side"] = SIZE // 2
    run = make_run(tmp_path / "run", checkpoint=True)
    report.draw_extremes(run, report.read_run(run))
    test = datasets.load("shapes", SIZE, "test").images[datasets.shuffled(2000, 0)[:50]].double()
    expected = test.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))  # (50, 3, 8, 8)
    assert scored["real"].dtype == torch.uint8 and (scored["real"] - expected).abs().max() <= 0.5
    assert "averaged down to 8x8" in scored["words"]


def test_extremes_of_data_without_a_split(here, scored):
    """Images of the training, which the caption says; or those that the run held out."""
    images = np.random.default_rng(0).integers(0, 256, (60, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez("own.npz", images=images)
    run = make_run(here / "run", checkpoint=True)
    args = report.read_run(run)
    args["flags"]["data"] = "own.npz"
    args["data"]["fingerprint"] = datasets.load("own.npz", SIZE).fingerprint
    report.draw_extremes(run, args)
    assert "50 random training images (nothing is held out) of own" in scored["words"]
    args["flags"]["hold_out"] = 9
    report.draw_extremes(run, args)
    assert "9 random held-out images of own" in scored["words"]
    held_out = datasets.load_parts("own.npz", SIZE, 9)[1].images
    assert sorted(map(bytes, scored["real"].numpy())) == sorted(map(bytes, held_out.numpy()))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"flags": {"data": "gone.npz"}}, "no data set or path 'gone.npz'"),
        ({"flags": {}}, "does not name the data"),
        ({"data": {"size": SIZE, "fingerprint": "other"}}, "fingerprint differs"),
    ],
)
def test_extremes_without_the_data(tmp_path, scored, capsys, change, words):
    run = make_run(tmp_path / "run", checkpoint=True)
    about = report.read_run(run) | change
    (run / "args.json").write_text(json.dumps(about), encoding="utf-8")
    assert len(names(report.report(run, extremes=True))) == 5  # all the others
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no extremes.png: " in error and words in error


def test_extremes_without_metrics(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "metrics", None)
    assert len(report.report(make_run(tmp_path / "run", checkpoint=True), extremes=True)) == 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "metrics.py beside" in error


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "log, words", [(None, "no rows"), ("", "no rows"), ("step,loss_g\n", "no rows"), ("step,loss_g\n1,x\n", "damaged")]
)
def test_a_log_that_cannot_be_drawn(tmp_path, capsys, log, words):
    run = make_run(tmp_path / "run", steps=[0, 10], log=False)
    if log is not None:
        (run / "log.csv").write_text(log)
    assert names(report.report(run)) == ["weights.png", "progress.gif", "strip.png"]
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2 and "no losses.png" in error[0] and words in error[0] and "no checkpoint" in error[1]


def test_a_run_without_samples(tmp_path, capsys):
    assert names(report.report(make_run(tmp_path / "run", steps=[]))) == ["losses.png", "weights.png"]
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == [
        " no progress.gif", " no strip.png", " no interpolation.png"
    ]  # fmt: skip


def test_damaged_files_cost_one_line_each(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "samples" / "000100.png").write_bytes(b"not a picture")
    (run / "best.pt").write_bytes(b"not a checkpoint")
    (run / "weights.csv").write_text("step,network,layer,low,high,counts\n0,g,a,x,1," + "1 " * 50)
    assert names(report.report(run)) == ["losses.png"]
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 4 and all("is damaged" in line for line in error)


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert names(report.report(make_run(tmp_path / "run"))) == ["progress.gif", "strip.png"]
    assert capsys.readouterr().err.count("matplotlib is not installed") == 2


def test_a_checkpoint_of_a_script_that_is_not_here(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run", checkpoint=True)
    monkeypatch.setitem(sys.modules, "dcgan", None)
    assert "interpolation.png" not in names(report.report(run))
    assert "needs dcgan.py" in capsys.readouterr().err


@pytest.fixture
def two_runs(program, here, small_weights):
    """One of a preset, measured on the way and at the end; one of wgan_gp.py, not measured, in a folder with "<|>"."""
    asked = f"--eval-every 2 --eval-images 8 --dims 64 2048 --weights {small_weights}"
    program("--preset", "cats", "--steps", "6", "--log-every", "1", *asked.split())
    tiny = "--data tiny.npz --size 16 --width 4 --batch 8 --steps 4 --device cpu --precision fp32"
    wgan_gp.main(wgan_gp.parse_args([*tiny.split(), "--out", "<|>"]))
    return [here / "r", here / "<|>"]


def test_comparison(two_runs):
    """Every cell against what the files say."""
    text, page = report.compare(two_runs)
    cells = [[cell.strip() for cell in row[1:-1].split(" | ")] for row in text.splitlines() if row.startswith("|")]
    table = {name: row for name, *row in cells}
    assert table[""] == ["r", "<\\|>", "real images"] and table["model"][:2] == ["dcgan --preset cats", "wgan_gp"]
    assert table["data"][0] == "tiny, 40 images" and table["picture"][0] == "3x16x16"
    assert table["steps x batch"][:2] == ["6 x 8", "4 x 8"]
    last = datasets.read_checkpoint(two_runs[0])
    generator = dcgan.Generator(16, 3, 100, 4)
    count = sum(parameter.numel() for parameter in generator.parameters())
    assert table["trained parameters"][0].startswith(f"{count:,} (generator) + ")
    assert table["minutes of training"][0] == f"{last['seconds'] / 60:.1f} (cpu, fp32)"
    log = report.read_log(two_runs[0])
    fids = dict(zip(log["step"], log["fid_64"], strict=True))
    step = min((step for step in fids if step % 2 == 0), key=fids.get)
    assert table["best FID-64 (step)"][:2] == [f"{fids[step]:.2f} ({step:.0f})", "-"]
    values = {v["name"]: v for v in json.loads((two_runs[0] / "metrics.json").read_text())["values"]}
    assert table["FID-64"][0] == metrics.shown(values["FID-64"])
    assert table["FID-64"][2] == metrics.shown(values["FID-64"], "real")
    assert table["FID"][:2] == ["not measured (report: 132.7)", "-"]
    assert f"- FID-64 of r: {values['FID-64']['protocol']}" in text
    (note,) = (line for line in text.splitlines() if line.startswith("- the report of r:"))
    plan = dcgan.PRESETS["cats"]
    assert note.startswith(f"- the report of r: {plan['report']['protocol']}; this run is not quite that preset: ")
    flags = json.loads((two_runs[0] / "args.json").read_text())["flags"]
    other = {name for name, value in plan.items() if name != "report" and flags[name] not in (value, None)}
    assert other == {name[2:].replace("-", "_") for name in note.split() if name.startswith("--")} >= {"data", "batch"}
    assert "<td>model</td><td>dcgan --preset cats</td><td>wgan_gp</td>" in page and "<th>&lt;|&gt;</th>" in page
    assert (
        page.count('src="data:image/png;base64,') == page.count("src=") == 2
    )  # the last samples of each: no plots here


def test_comparison_on_the_command_line(two_runs, here, monkeypatch, capsys):
    report.main(report.parse_args(["r", "<|>"]))
    assert "wrote comparison.md\nwrote comparison.html\n" in capsys.readouterr().out
    assert (here / "comparison.md").read_text(encoding="utf-8") == report.compare(two_runs)[0]
    path = two_runs[0] / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 4}))  # as if six steps were not measured yet
    text = report.compare(two_runs)[0]
    assert "| step of the figures below | 4 |" in text and "below of r: the run has been prolonged since" in text
    (two_runs[1] / "log.csv").unlink()
    with pytest.raises(datasets.InputError, match="no comparison of these runs: log.csv has no rows"):
        report.main(report.parse_args(["r", "<|>"]))


def test_a_grid_of_as_many_as_asked(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", checkpoint=True)
    made = []
    monkeypatch.setattr(
        dcgan,
        "generate",
        lambda checkpoint, n, seed, device: made.append((n, seed)) or torch.full((n, 3, SIZE, SIZE), 9).byte(),
    )
    (run / "grid.png").write_bytes(report.draw_grid(run, 99, "cpu"))
    assert made == [(99, 2)] and Image.open(run / "grid.png").size == (4 * (10 * 18 - 2), 4 * (10 * 18 - 2) + 28)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"steps_per_epoch": 0, "data": {"size": 8}}'])
def test_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "args.json").write_text(content)
    with pytest.raises(datasets.InputError, match="run directory"):
        report.report(tmp_path)


@pytest.mark.parametrize("arguments", ["", "a --epochs", "a --epochs -1", "a --epochs inf", "a --grid 0", "-x"])
def test_bad_arguments_are_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        report.parse_args(arguments.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and error.startswith("report.py: error: ")


def test_command_line(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "report.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("report.py: error: ") and "args.json" in done.stderr
