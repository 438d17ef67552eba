"""report.py: the pictures of a run, and what it says when one cannot be made."""

import io
import json
import math
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_folder, program
from PIL import Image

import datasets
import metrics
import report
import sample
import training
from sources import InputError

SIZE = 16
PER_EPOCH = 10
PLOTS = ["losses.png", "weights.png", "progress.gif", "strip.png"]  # which need no model
PAGE = "report.html"
dcgan = training.load_script("dcgan")


def make_run(folder, steps=range(0, 101, 10), log=True, checkpoint=False):
    """A run directory like one of dcgan.py. Image k of the samples of step s is grey, 2 s + k
    (modulo 256). Three layers have histograms, of eleven steps.

    checkpoint: of a network that was not trained, on the built-in shapes.
    """
    (folder / "samples").mkdir(parents=True)
    about = {"size": SIZE, "channels": 3, "fingerprint": f"shapes-1-{SIZE}"}
    about["classes"] = datasets.SHAPES
    args = {"script": "dcgan", "steps_per_epoch": PER_EPOCH, "data": about}
    args["flags"] = {"data": "shapes"}
    (folder / "args.json").write_text(json.dumps(args), encoding="utf-8")
    for step in steps:
        values = (2 * step + torch.arange(64)).remainder(256).to(torch.uint8)
        images = values[:, None, None, None].expand(64, 3, SIZE, SIZE)
        datasets.save_picture(datasets.grid(images, 8), folder / "samples" / f"{step:06d}.png")
    lines = ["step,network,layer,low,high,counts"]
    for step in range(0, 101, 10):
        for layer in ("generator,a.weight", "generator,b.weight", "discriminator,a.weight"):
            weights = np.random.default_rng(step).normal(0, 1 + step / 100, 9000).clip(-5, 5)
            counts, _ = np.histogram(weights, 50, (-5, 5))
            lines.append(f"{step},{layer},-5,5,{' '.join(map(str, counts))}")
    (folder / "weights.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if log:
        lines = ["step,epoch,seconds,img_per_s,loss_d_real,loss_d_fake,loss_g,fid"]
        for s in range(1, 101):
            fid = "" if s % 20 else s
            lines.append(f"{s},{s / 10},{s},40,{1 / s},{2 / s},{math.log(s)},{fid}")
        (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if checkpoint:
        generator = dcgan.Generator(SIZE, 3, 5, 2).apply(dcgan.init_weights)
        flags = {"size": SIZE, "latent_dim": 5, "width": 2, "ema": 0.0, "seed": 0}
        state = {"script": "dcgan", "format": training.FORMAT, "flags": flags, "step": 100}
        state |= {"data": about, "models": {"generator": generator.state_dict()}}
        torch.save(state, folder / "last.pt")
    return folder


@pytest.fixture
def whole(tmp_path):
    return make_run(tmp_path / "run", checkpoint=True)


@pytest.fixture
def labelled(monkeypatch):
    """The rows and the caption of the last picture that has labelled rows."""
    last = {}

    def labelled_rows(rows, caption=""):
        last.update(rows=rows, caption=caption)
        return sample.labelled_rows(rows, caption)

    monkeypatch.setattr(report, "labelled_rows", labelled_rows)
    return last


def names(paths):
    return [path.name for path in paths]


def test_a_whole_run(whole, capsys):
    written = report.report(whole)
    assert names(written) == [*PLOTS, "interpolation.png", PAGE]
    assert capsys.readouterr() == ("", "")
    assert not list(whole.glob("*.tmp"))
    for path in written[:-1]:
        with Image.open(path) as picture:
            picture.load()
    with Image.open(whole / "interpolation.png") as picture:
        scale = 64 // SIZE
        assert picture.width > scale * (10 * (SIZE + 2) - 2) and picture.height > 6 * scale * SIZE


# ------------------------------------------------------------------------- progress.gif, strip.png


def test_progress_has_the_first_and_the_last_samples(tmp_path):
    run = make_run(tmp_path / "run", steps=range(0, 1500, 10))  # 150 pictures
    report.report(run)
    frames = []
    with Image.open(run / "progress.gif") as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append((np.asarray(gif.convert("RGB")), gif.info["duration"]))
    assert len(frames) <= report.GIF_FRAMES
    times = [milliseconds for _, milliseconds in frames]
    assert times == [times[0]] * (len(frames) - 1) + [2000]
    for (frame, _), step in ((frames[0], 0), (frames[-1], 1490)):
        assert abs(int(frame[28 + 8, 8, 0]) - (2 * step) % 256) < 12  # image 0, below the words
        assert frame[:28].min() < 100 and (frame[:28] > 230).mean() > 0.5  # dark on white


def test_progress_is_limited_in_size(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", steps=range(0, 400, 10))
    full = len(report.draw_progress(run, report.read_run(run)))
    monkeypatch.setattr(report, "GIF_BYTES", full // 2)
    assert len(report.draw_progress(run, report.read_run(run))) <= full // 2


@pytest.mark.parametrize("count", [1, 2, 60, 61, 1000])
def test_spread(count):
    chosen = report.spread(count, 60)
    assert chosen[0] == 0 and chosen[-1] == count - 1 and len(chosen) == min(count, 60)
    assert len(chosen) < 3 or np.ptp(np.diff(chosen)) <= 1  # even


def test_strip_takes_the_nearest_samples(tmp_path, capsys, labelled):
    run = make_run(tmp_path / "run", steps=[0, 10, 20, 55, 100])
    report.draw_strip(run, report.read_run(run), [1, 5, 5.4, 30])
    assert [name for name, _ in labelled["rows"]] == ["epoch 1", "epoch 5.5", "epoch 10"]
    assert capsys.readouterr().out == f"{run}: epoch 30 is beyond the last samples (epoch 10)\n"
    row = np.asarray(labelled["rows"][1][1])[:, :, 0]  # step 55, every pixel 4 times
    assert row.shape == (4 * SIZE, 4 * (8 * (SIZE + 2) - 2))
    assert [row[32, 4 * (SIZE + 2) * k + 32] for k in range(8)] == list(range(110, 118))


@pytest.mark.parametrize(
    "per_epoch, expected",
    [(10, "epoch 0, epoch 2, epoch 4, epoch 6, epoch 10"),
     (10_000, "step 0, step 20, step 40, step 60, step 100")],
)  # fmt: skip
def test_rows_of_the_strip(tmp_path, labelled, per_epoch, expected):
    """By default closer together at the start; a run shorter than an epoch counts steps."""
    run = make_run(tmp_path / "run")
    report.draw_strip(run, report.read_run(run) | {"steps_per_epoch": per_epoch})
    assert ", ".join(name for name, _ in labelled["rows"]) == expected


def test_strip_of_a_conditional_model(whole, labelled):
    """Each row of its samples is a class, so the images are taken down the columns."""
    args = report.read_run(whole) | {"script": "cgan"}
    report.draw_strip(whole, args, [0])
    row = np.asarray(labelled["rows"][0][1])[32, 32 :: 4 * (SIZE + 2), 0]
    assert row.tolist() == list(range(0, 64, 8))
    args["data"]["classes"] = ["one"]  # as gan_resnet.py without --conditional
    report.draw_strip(whole, args, [0])
    row = np.asarray(labelled["rows"][0][1])[32, 32 :: 4 * (SIZE + 2), 0]
    assert row.tolist() == list(range(8))


def test_first_images_of_a_narrow_grid():
    """A grid of 4 columns gives its second row too, and what a grid does not hold stays white."""
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8)
    row = np.asarray(report.first_images(datasets.grid(images, 4), 8, 8))[4, 4::10, 0]
    assert row.tolist() == [0, 1, 2, 3, 4, 5, 255, 255]


# -------------------------------------------------------------------------- losses.png, weights.png


def test_running_mean():
    values = np.random.default_rng(0).normal(size=50)
    mean = report.running_mean(values, 5)
    assert np.isclose(mean[20], values[18:23].mean()) and np.isclose(mean[0], values[:3].mean())
    assert np.allclose(report.running_mean(np.ones(7), 20), 1)


def test_losses_of_other_scripts(tmp_path):
    """Any loss and metric is drawn. Holes, constant columns and empty ones do no harm."""
    run = make_run(tmp_path / "run", log=False)
    (run / "log.csv").write_text(
        "step,epoch,seconds,img_per_s,loss_reconstruction,loss_kl,fid,kid\n"
        "1,0.1,1,9,700,3,,\n2,0.2,2,9,700,,41.5,\n"
    )
    (run / "losses.png").write_bytes(report.draw_losses(run, report.read_run(run)))
    with Image.open(run / "losses.png") as picture:
        assert picture.height > 700  # three panels: reconstruction, kl, fid


def test_a_panel_and_a_chart_are_titled_with_all_that_they_show(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", log=False)
    (run / "log.csv").write_text(
        "step,loss_d_real,loss_d_fake,class_real,class_fake,noise\n1,3,2,0.5,0.6,1\n2,1,2,0.4,1,1\n"
    )
    monkeypatch.setattr(report, "figure_png", lambda figure: figure)
    figure = report.draw_losses(run, report.read_run(run))
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["loss", "class real, class fake", "noise"]
    page = training.tool("page")
    html = report.draw_page(page, run, report.read_run(run)).decode("utf-8")
    for label in labels:
        assert f">{label}<" in html


@pytest.fixture
def trained(tiny, no_plots):
    """trained(*flags) trains dcgan.py in the directory "r" and returns its histograms."""
    given = "--data tiny.npz --size 16 --width 4 --batch 8 --device cpu --precision fp32 --ema 0.9"

    def run(*flags):
        dcgan.main([*flags] if "--resume" in flags else [*given.split(), "--out", "r", *flags])
        return report.read_weights(tiny / "r")

    return run


def test_histograms_of_a_run(trained):
    layers = trained("--steps", "5", "--sample-every", "2")
    models = training.read_checkpoint("r")["models"]
    expected = []
    for network in ("generator", "discriminator"):  # not the average
        for layer, weight in models[network].items():
            if weight.dim() > 1:  # neither norms nor biases
                expected.append((network, layer))
    assert list(layers) == expected and len(expected) == 6
    for (network, layer), histograms in layers.items():
        assert list(histograms) == [0, 2, 4, 5]
        weight = models[network][layer].numpy()
        low, high, counts = histograms[5]  # the step of the checkpoint
        assert low == weight.min() and high == weight.max() and counts.sum() == weight.size
        difference = counts - np.histogram(weight, 50, (low, high))[0]
        assert abs(difference).sum() <= 2  # rounding moves a weight over the edge of its bin


def test_resume_drops_the_histograms_after_the_checkpoint(trained, tiny):
    path = tiny / "r/weights.csv"
    trained("--steps", "4", "--sample-every", "2")
    before = path.read_text(encoding="utf-8")
    later = before.splitlines()[-1].replace("4,", "5,", 1)
    path.write_text(f"{before}{later}\n6,generator,layers.0", encoding="utf-8")  # then kill -9
    layers = trained("--resume", "r", "--steps", "6")
    assert all(list(histograms) == [0, 2, 4, 6] for histograms in layers.values())
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert text.startswith(before) and len(lines) == len(set(lines)) == 1 + 4 * 6


@pytest.fixture
def figures(monkeypatch):
    """The matplotlib figures instead of their pictures, the last one last."""
    made = []
    monkeypatch.setattr(report, "figure_png", made.append)
    return made


def test_one_panel_for_each_layer(whole, figures):
    report.draw_weights(whole, report.read_run(whole))
    (figure,) = figures
    figure.draw_without_rendering()  # places its panels
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["generator a", "generator b", "discriminator a"]
    first, _, third = (axis.get_position() for axis in figure.axes)
    assert first.x0 == third.x0 and first.y0 > third.y1  # each network begins a new row
    for axis in figure.axes:
        assert len(axis.lines) == 8 and axis.get_yscale() == "log"
        darkness = [-sum(line.get_color()[:3]) for line in axis.lines]
        assert darkness == sorted(darkness)
        values, density = axis.lines[-1].get_data()
        assert np.isclose(np.nansum(density) * (values[1] - values[0]), 1)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(words) == 8 and words[0] == "step 0" and words[-1] == "step 100"


def test_few_steps_and_equal_weights_are_drawn(whole, figures):
    counts = "12" + " 0" * 49
    lines = ["step,network,layer,low,high,counts", f"0,vae,a.weight,0.5,0.5,{counts}"]
    lines += [f"0,vae,b.weight,0,1,{counts}", "9,vae,a.weight,0,1,3 4", "9,vae"]  # then kill -9
    (whole / "weights.csv").write_text("\n".join(lines))
    report.draw_weights(whole, report.read_run(whole))
    assert [len(axis.lines) for axis in figures[0].axes] == [0, 1]


LOG = """step,epoch,seconds,img_per_s,loss_g,noise,fid_768,fid_2048,kid_768,ms-ssim,ms-ssim-3,ssim
10,1,60,9,3,0.5,,,,,,
20,2,120,9,2,0.25,4,80,0.02,0.06,0.12,0.2
30,3,240,9,1,0,3,90,0.01,0.05,0.11,0.3
40,4,300,9,1,0,5,95,0.03,0.07,nan,0.4
"""
PANELS = {  # y label: x, y
    "loss": ([10, 20, 30, 40], [3, 2, 1, 1]),
    "noise": ([10, 20, 30, 40], [0.5, 0.25, 0, 0]),
    "FID-768": ([20, 30, 40], [4, 3, 5]),
    "FID": ([20, 30, 40], [80, 90, 95]),
    "KID-768 x 10^3": ([20, 30, 40], [20, 10, 30]),
    "MS-SSIM": ([20, 30, 40], [0.06, 0.05, 0.07]),
    "MS-SSIM, 3 scales": ([20, 30], [0.12, 0.11]),
    "SSIM": ([20, 30, 40], [0.2, 0.3, 0.4]),
}


def curve(line):
    return [np.round(values, 9).tolist() for values in line.get_data()]


def test_every_metric_has_a_panel_of_its_own(whole, figures):
    """Two FIDs and two MS-SSIMs are on different scales."""
    (whole / "log.csv").write_text(LOG)
    report.draw_losses(whole, report.read_run(whole))
    (figure,) = figures
    assert [axis.get_ylabel() for axis in figure.axes] == list(PANELS)
    for axis, (steps, values) in zip(figure.axes, PANELS.values(), strict=True):
        assert [steps, values] in map(curve, axis.lines)


@pytest.mark.parametrize(
    "best, panel, step, value",
    [(None, "FID", 20, 80), (30, "FID", 30, 90), (b"damaged", "FID", 20, 80), (50, "FID", 20, 80)],
)  # fmt: skip
def test_the_best_step_is_marked(whole, figures, best, panel, step, value):
    """That of best.pt, which in a growing model is not the lowest; else the lowest FID."""
    (whole / "log.csv").write_text(LOG)
    if isinstance(best, int):
        state = training.read_checkpoint(whole)
        torch.save({**state, "step": best}, whole / "best.pt")
    elif best:
        (whole / "best.pt").write_bytes(best)
    report.draw_losses(whole, report.read_run(whole))
    rings = {}
    for axis in figures[0].axes:
        for line in axis.lines:
            if line.get_fillstyle() == "none":
                rings[axis.get_ylabel()] = curve(line)
                words = [text.get_text() for text in axis.get_legend().get_texts()]
                assert f"best: step {step}, {value:.2f}" in words
    assert rings == {panel: [[step], [value]]}


def test_the_ring_of_a_long_run_is_inside_its_panel(whole, figures):
    """Of many FIDs the lowest and the highest are cut off, but not the best."""
    lines = ["step,loss_g,fid_768"]
    lines += [
        f"{step},1,{2 if step == 12_345 else 50 + step % 7}" for step in range(45, 20_000, 50)
    ]
    (whole / "log.csv").write_text("\n".join(lines) + "\n")
    report.draw_losses(whole, report.read_run(whole))
    axis = figures[0].axes[1]
    assert axis.get_ylim()[0] < 2
    words = [text.get_text() for text in axis.get_legend().get_texts()]
    assert "best: step 12,345, 2.00" in words


def test_colors_differ_for_everybody():
    """Simulated color blindness (Machado et al. 2009, doi.org/10.1109/TVCG.2009.113, severity 1):
    any two colors are 25 or more apart in CIELAB, where 2 can just be seen."""
    kinds = {
        "none": np.eye(3),
        "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
        "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9309, 0.1476], [0.0047, 0.6914, 0.3039]],
    }
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    srgb = np.array(
        [[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in report.LINES]
    )
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    for matrix in kinds.values():
        t = (linear @ np.transpose(matrix)).clip(0, 1) @ to_xyz.T / to_xyz.sum(1)
        x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
        distances = np.linalg.norm(lab[:, None] - lab, axis=2)
        assert distances[~np.eye(len(lab), dtype=bool)].min() > 25
    assert len({(color, style) for style in report.STYLES for color in report.LINES}) == 16


# ------------------------------------------------------------------------------ comparison-*.png


def overlaid(figures, logs):
    """Draw the overlays of logs, {name: text of log.csv}, as {figure: matplotlib figure}."""
    result = {}
    for kind, columns in report.overlay_columns([log for _, log in logs]).items():
        report.draw_overlay(kind, columns, logs)
        result[kind] = figures[-1]
    return result


@pytest.fixture
def logs(tmp_path):
    """logs(name=text, ...) -> [(name, columns)] as report.py reads them from a log.csv."""

    def read(**texts):
        result = []
        for index, (name, text) in enumerate(texts.items()):
            folder = tmp_path / f"log-{index}"
            folder.mkdir()
            (folder / "log.csv").write_text(text)
            result.append((name, report.read_columns(folder)))
        return result

    return read


def test_curves_of_two_runs(figures, logs):
    """Everything that either run has, over steps and over minutes, in the same color."""
    other = "step,epoch,seconds,img_per_s,loss_critic,fid_768,fid_2048\n5,1,30,9,7,6,\n"
    made = overlaid(figures, logs(one=LOG, other=other))
    rows = {}
    for kind, figure in made.items():
        panels = figure.axes
        rows[kind] = [axis.get_ylabel() for axis in panels[::2]]
        assert [axis.get_xlabel() for axis in panels[-2:]] == ["step", "minutes of training"]
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        has_both = kind in ("losses", "FID")
        assert texts == ["one", "other" if has_both else "other (not measured)"]
        handles = figure.legends[0].legend_handles
        for axis in panels:
            for line in axis.lines:
                handle = handles[["one", "other"].index(line.get_label())]
                assert line.get_color() == handle.get_color()
    assert rows == {
        "losses": ["g", "critic"],  # no noise
        "FID": ["FID-768", "FID"],
        "KID": ["KID-768 x 10^3"],
        "MS-SSIM": ["MS-SSIM", "MS-SSIM, 3 scales"],
        "SSIM": ["SSIM"],
    }
    minutes = {10: 1, 20: 2, 30: 4, 40: 5}
    for kind in ("FID", "KID", "MS-SSIM", "SSIM"):
        axes = made[kind].axes
        for left, right in zip(axes[::2], axes[1::2], strict=True):
            steps, values = PANELS[left.get_ylabel()]
            assert curve(left.lines[0]) == [steps, values]
            assert curve(right.lines[0]) == [[minutes[step] for step in steps], values]
            assert left.get_ylim() == right.get_ylim()
    left, right = made["FID"].axes[:2]
    assert curve(left.lines[1]) == [[5], [6]] and curve(right.lines[1]) == [[0.5], [6]]
    assert len(made["FID"].axes[2].lines) == 1  # the other run has no FID of 2048 features


def test_eight_runs_differ(figures, logs):
    text = "step,seconds,loss\n1,1,2\n2,2,1\n"
    figure = overlaid(figures, logs(**{f"run{i}": text for i in range(8)}))["losses"]
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(looks)) == 8 and len({color for color, _ in looks[:4]}) == 4
    assert {style for _, style in looks[:4]} == {"-"}


def test_long_curves_are_running_means(figures, logs):
    values = np.random.default_rng(0).normal(size=400)
    rows = [f"{i + 1},{i + 1},{value}" for i, value in enumerate(values)]
    text = "\n".join(["step,seconds,loss", *rows, ""])
    figure = overlaid(figures, logs(one=text, two="step,loss\n7,1\n"))["losses"]
    pale, mean = figure.axes[0].lines[:2]
    assert np.allclose(pale.get_ydata(), values) and pale.get_alpha() < 0.5
    assert np.isclose(mean.get_ydata()[200], values[195:205].mean())  # a fortieth of the rows
    assert len(figure.axes[1].lines) == 2  # the second run has no column `seconds`


@pytest.mark.parametrize("last, scale", [(15, "linear"), (10_000, "log")])
def test_a_run_that_is_far_shorter(figures, logs, last, scale):
    """On a straight axis, a run of a thousandth of the steps would be a dot at its edge."""
    text = f"step,seconds,loss\n1,1,2\n{last},{last},1\n"
    figure = overlaid(figures, logs(long=text, one_row="step,seconds,loss\n10,10,2\n"))["losses"]
    assert [axis.get_xscale() for axis in figure.axes] == [scale, scale]
    words = " (logarithmic)" if scale == "log" else ""
    assert [axis.get_xlabel() for axis in figure.axes] == [
        f"step{words}",
        f"minutes of training{words}",
    ]


def test_names_of_runs_are_drawn_as_they_are(figures, logs):
    named = ["$\\frac{a$", "_hidden", "a<b&c", "x" * 60]
    columns = logs(**{f"run{i}": "step,seconds,loss\n1,1,2\n" for i in range(4)})
    runs = [(name, log) for name, (_, log) in zip(named, columns, strict=True)]
    figure = overlaid(figures, runs)["losses"]
    figure.draw_without_rendering()
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == named
    assert not any(text.get_parse_math() for text in texts)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0


# ------------------------------------------------------------------------------------- extremes.png


@pytest.fixture
def scored(monkeypatch, labelled):
    """Instead of the model and MS-SSIM: image i is grey, i, and scores (7 i modulo 200) / 200."""

    def generate(model, n, seed):
        size = labelled.get("size", SIZE)
        return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, size, size)

    def score(images, real):
        labelled.update(images=images, real=real)
        return (7 * torch.arange(len(images)) % 200).double() / 200

    monkeypatch.setattr(dcgan, "generate", generate)
    monkeypatch.setattr(metrics, "mean_ms_ssim", score)
    return labelled


def test_extremes_are_the_best_and_the_worst(whole, scored):
    assert "extremes.png" in names(report.report(whole, extremes=True))
    image_of = {7 * i % 200: i for i in range(200)}  # score -> image
    best = ("best", range(199, 191, -1))
    worst = ("worst", range(7, -1, -1))
    for (label, picture), (expected, ranks) in zip(scored["rows"], (best, worst), strict=True):
        assert label == expected
        row = np.asarray(picture)[64, 64 :: 8 * (SIZE + 2), 0]  # every pixel 8 times
        assert row.tolist() == [image_of[rank] for rank in ranks]
        words = np.asarray(picture)[8 * SIZE :]
        assert words.shape[0] == 24 and words.min() < 100  # the scores
    test = datasets.load("shapes", SIZE, "test").images
    assert torch.equal(scored["real"], test[datasets.shuffled(2000, 0)[:50]])
    assert len(scored["images"]) == 200
    protocol = "mean MS-SSIM of each of 200 generated images with 50 random held-out images"
    assert scored["caption"].startswith(protocol)
    assert "last.pt: plain weights at step 100, latent seed 2" in scored["caption"]


def test_extremes_of_a_model_that_still_grows(whole, scored):
    scored["size"] = SIZE // 2
    report.draw_extremes(whole, report.read_run(whole))
    test = datasets.load("shapes", SIZE, "test").images[datasets.shuffled(2000, 0)[:50]].double()
    expected = test.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))  # (50, 3, 8, 8)
    assert scored["real"].dtype == torch.uint8
    assert (scored["real"] - expected).abs().max() <= 0.5
    assert "averaged down to 8x8" in scored["caption"]


@pytest.fixture
def kept(whole):
    """kept(*steps) fills kept/ of the run, whose last.pt is of step 100."""

    def fill(*steps):
        (whole / "kept").mkdir()
        state = training.read_checkpoint(whole)
        for step in steps:
            torch.save({**state, "step": step}, whole / "kept" / f"{step:06d}.pt")
        return whole

    return fill


def test_extremes_of_kept_checkpoints(kept, scored, capsys):
    """Two rows for each of six of them, evenly spread, and for the best one."""
    run = kept(*range(5, 100, 5))
    (run / "kept" / "notes.txt").write_text("not a checkpoint")
    report.draw_extremes(run, report.read_run(run))
    assert capsys.readouterr().err == ""
    stages = [label.removesuffix(", best") for label, _ in scored["rows"][::3]]
    assert stages == [f"step {step}" for step in (5, 25, 40, 60, 75, 95, 100)]  # of 5, 10 ... 95
    assert [label for label, _ in scored["rows"][1::3]] == [f"{stage}, worst" for stage in stages]
    assert set(scored["rows"][2::3]) == {(None, None)}
    image_of = {7 * i % 200: i for i in range(200)}  # score -> image, in every stage
    for _, picture in scored["rows"][::3]:
        row = np.asarray(picture)[64, 64 :: 8 * (SIZE + 2), 0]
        assert row.tolist() == [image_of[rank] for rank in range(199, 191, -1)]
    assert "6 of 19 checkpoints in kept/" in scored["caption"]
    assert "last.pt: plain weights at step 100" in scored["caption"]


def test_extremes_where_the_best_checkpoint_is_kept(kept, scored):
    run = kept(50, 100)
    report.draw_extremes(run, report.read_run(run))
    assert [label for label, _ in scored["rows"]] == [
        "step 50, best", "step 50, worst", None, "step 100, best", "step 100, worst",
    ]  # fmt: skip


def test_extremes_of_stages_that_grow(kept, scored, monkeypatch):
    """Early images are smaller: their pixels are repeated, and real images averaged down."""

    def generate(model, n, seed):
        made.append(SIZE // 2 if len(made) % 2 else SIZE)  # the best checkpoint is the first
        values = torch.arange(n, dtype=torch.uint8)[:, None, None, None]
        return values.expand(n, 3, made[-1], made[-1])

    made = []
    monkeypatch.setattr(dcgan, "generate", generate)
    run = kept(50)
    report.draw_extremes(run, report.read_run(run))
    assert made == [SIZE, SIZE // 2]
    early, late = scored["rows"][0][1], scored["rows"][3][1]
    assert early.size == late.size and early.tobytes() == late.tobytes()
    lines = scored["caption"].splitlines()
    assert sum("mean MS-SSIM" in line for line in lines) == 2
    assert sum("averaged down to 8x8" in line for line in lines) == 1


def test_a_damaged_kept_checkpoint(kept, scored):
    run = kept(50)
    (run / "kept" / "000060.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="000060.pt' is damaged"):
        report.draw_extremes(run, report.read_run(run))


def test_extremes_of_data_without_a_split(tiny, scored):
    """The caption says that they are training images; or they are what the run held out."""
    run = make_run(tiny / "run", checkpoint=True)
    args = report.read_run(run)
    args["flags"]["data"] = "tiny.npz"
    args["data"]["fingerprint"] = datasets.load("tiny.npz", SIZE).fingerprint
    report.draw_extremes(run, args)
    assert "50 random training images (nothing is held out) of tiny" in scored["caption"]
    args["flags"]["hold_out"] = 9
    report.draw_extremes(run, args)
    assert "9 random held-out images of tiny" in scored["caption"]
    held_out = datasets.load_parts("tiny.npz", SIZE, 9)[1].images
    assert sorted(map(bytes, scored["real"].numpy())) == sorted(map(bytes, held_out.numpy()))


@pytest.mark.parametrize("hold_out", [0, 5])
def test_extremes_of_a_run_on_a_part_of_its_data(tmp_path, monkeypatch, scored, hold_out):
    """Real images are made square as for the run. Training images are those it was trained on."""
    monkeypatch.chdir(tmp_path)
    make_folder(
        tmp_path / "photos", [f"{c}/{i}.png" for c in "ab" for i in range(9)], size=(24, 16)
    )
    run = make_run(tmp_path / "run", checkpoint=True)
    args = report.read_run(run)
    flags = {"fit": "squash", "limit_per_class": 3, "hold_out": hold_out}
    args["flags"] |= {"data": "photos", **flags}
    args["data"]["fingerprint"] = datasets.load("photos", SIZE, fit="squash").fingerprint
    report.draw_extremes(run, args)
    train, held_out = datasets.load_parts("photos", SIZE, hold_out, "squash", 3)
    expected = (held_out or train).images.numpy()
    assert sorted(map(bytes, scored["real"].numpy())) == sorted(map(bytes, expected))
    words = "5 random held-out images" if hold_out else "6 random training images (nothing is"
    assert words in scored["caption"]
    del args["flags"]["fit"], args["flags"]["limit_per_class"]  # of an older run: cropped
    args["data"]["fingerprint"] = datasets.load("photos", SIZE).fingerprint
    report.draw_extremes(run, args)
    cropped = {bytes(image) for image in datasets.load("photos", SIZE).images.numpy()}
    assert {bytes(image) for image in scored["real"].numpy()} <= cropped


@pytest.mark.parametrize(
    "change, words",
    [({"flags": {"data": "gone.npz"}}, "no data set or path 'gone.npz'"),
     ({"flags": {}}, "does not name the data"),
     ({"data": {"size": SIZE, "fingerprint": "x", "classes": []}}, "fingerprint differs")],
)  # fmt: skip
def test_extremes_without_the_data(whole, scored, capsys, change, words):
    args = report.read_run(whole) | change
    (whole / "args.json").write_text(json.dumps(args), encoding="utf-8")
    assert len(report.report(whole, extremes=True)) == 6  # all the others
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no extremes.png: " in error and words in error


def test_extremes_without_metrics(whole, capsys, monkeypatch):
    monkeypatch.setattr(training, "tool", lambda name: None)
    assert len(report.report(whole, extremes=True)) == 5
    assert "no extremes.png: it needs metrics.py" in capsys.readouterr().err


def test_a_grid_of_as_many_as_asked(whole):
    (whole / "grid.png").write_bytes(report.draw_grid(whole, 99, "cpu"))
    _, model = training.open_model(training.read_checkpoint(whole))
    expected = datasets.grid(dcgan.generate(model, 99, seed=2))
    expected = np.asarray(expected).repeat(4, 0).repeat(4, 1)
    assert np.array_equal(np.asarray(Image.open(whole / "grid.png"))[:-28], expected)


# --------------------------------------------------------------------------------- damaged runs


@pytest.mark.parametrize(
    "log, words",
    [(None, "no rows"), ("", "no rows"), ("step,loss_g\n", "no rows"),
     ("step,loss_g\n1,x\n", "is damaged: none of its rows is whole; put a copy back")],
)  # fmt: skip
def test_a_log_that_cannot_be_drawn(tmp_path, capsys, log, words):
    run = make_run(tmp_path / "run", steps=[0, 10], log=False)
    if log is not None:
        (run / "log.csv").write_text(log)
    assert names(report.report(run)) == [*PLOTS[1:], PAGE]
    first, second = capsys.readouterr().err.splitlines()
    assert "no losses.png" in first and words in first and "no checkpoint" in second
    assert ("train for longer" in first) == (words == "no rows")


def test_a_run_without_samples_and_histograms(tmp_path, capsys):
    run = make_run(tmp_path / "run", steps=[])
    (run / "weights.csv").unlink()
    assert names(report.report(run)) == ["losses.png", PAGE]
    missing = [line.split(":")[1] for line in capsys.readouterr().err.splitlines()]
    assert missing == [f" no {name}" for name in [*PLOTS[1:], "interpolation.png"]]


def test_damaged_files_cost_one_line_each(whole, capsys):
    (whole / "samples" / "000100.png").write_bytes(b"not a picture")
    (whole / "best.pt").write_bytes(b"not a checkpoint")
    (whole / "weights.csv").write_text("step,network,layer,low,high,counts\n0,g,a,x,1," + "1 " * 50)
    assert names(report.report(whole)) == ["losses.png", PAGE]
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 4 and all("is damaged" in line for line in error)


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    for module in ["matplotlib", *sys.modules]:
        if module.split(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, module, None)
    written = names(report.report(make_run(tmp_path / "run")))
    assert written == ["progress.gif", "strip.png", PAGE]
    assert capsys.readouterr().err.count("matplotlib is not installed") == 2


def test_a_checkpoint_of_a_script_that_is_not_here(whole, capsys):
    state = training.read_checkpoint(whole) | {"script": "mygan"}
    torch.save(state, whole / "last.pt")
    assert names(report.report(whole)) == [*PLOTS, PAGE]
    assert "made by mygan.py: copy it next to" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- comparison


@pytest.fixture
def two_runs(trained, tiny, small_weights):
    """One of a preset, measured on the way and at the end; one of wgan_gp.py, not measured, in a
    directory called "<|>"."""
    measure = f"--eval-every 2 --eval-images 8 --dims 64 2048 --weights {small_weights}"
    trained("--preset", "cats", "--steps", "6", "--log-every", "1", *measure.split())
    flags = "--data tiny.npz --size 16 --width 4 --batch 8 --steps 4 --device cpu --precision fp32"
    training.load_script("wgan_gp").main([*flags.split(), "--out", "<|>"])
    return [tiny / "r", tiny / "<|>"]


def test_comparison(two_runs):
    """Every cell against what the files say."""
    run, _ = two_runs
    text, page = report.compare(two_runs)
    table = {}
    for row in text.splitlines():
        if row.startswith("|"):
            what, *cells = (cell.strip() for cell in row[1:-1].split(" | "))
            table[what] = cells
    assert table[""] == ["r", "&lt;\\|>", "real images"]
    assert table["model"][:2] == ["dcgan --preset cats", "wgan_gp"]
    assert table["data"][0] == "tiny, 100 images" and table["image"][0] == "3x16x16"
    assert table["steps x batch"][:2] == ["6 x 8", "4 x 8"]
    checkpoint = training.read_checkpoint(run)
    count = sum(p.numel() for p in dcgan.Generator(16, 3, 100, 4).parameters())
    assert table["trained parameters"][0].startswith(f"{count:,} (generator) + ")
    assert table["minutes of training"][0] == f"{checkpoint['seconds'] / 60:.1f} (cpu, fp32)"
    log = report.read_columns(run)
    fids = dict(zip(log["step"], log["fid_64"], strict=True))
    step = min((step for step in fids if step % 2 == 0), key=fids.get)
    assert table["best FID-64 (step)"][:2] == [f"{fids[step]:.2f} ({step:.0f})", "-"]
    measured = json.loads((run / "metrics.json").read_text())["values"]
    fid = next(value for value in measured if value["name"] == "FID-64")
    expected = [metrics.format_value(fid), "-", metrics.format_value(fid, "real")]
    assert table["FID-64"] == expected and f"- FID-64 of r: {fid['protocol']}" in text
    assert table["FID"][:2] == ["not measured", "-"]
    (note,) = (line for line in text.splitlines() if line.startswith("- the report of r:"))
    left_out = "the report's numbers are left out: this run is not quite that preset: "
    assert note.startswith(f"- the report of r: {left_out}")
    assert "--batch=8" in note and "--data=tiny.npz" in note and "132.7" not in text
    row = list(log["step"]).index(step)
    for title, column, unit in (("KID-64 x 10^3", "kid_64", 1e3), ("MS-SSIM", "ms-ssim", 1)):
        shown, other, _ = table[f"{title} at that step"]
        assert math.isclose(float(shown), unit * log[column][row], rel_tol=1e-3) and other == "-"
    assert ">model</th><td>dcgan --preset cats</td><td>wgan_gp</td>" in page
    assert "<th>&lt;|&gt;</th>" in page
    # the samples of each run, since there are no plots here
    samples = sum(len(list(folder.glob("samples/*.png"))) for folder in two_runs)
    assert page.count('src="data:image/jpeg;base64,') == page.count(" src=") == samples


@pytest.fixture
def compared(monkeypatch):
    """compared(*folders): the rows of the table as {what: cells}, and the notes, without training:
    the runs of make_run have no optimizers."""
    monkeypatch.setattr(report, "facts", lambda *_: {"model": "dcgan"})

    def compare(*folders):
        rows, notes = report.comparison_table(folders, [folder.name for folder in folders])
        return {what: cells for what, *cells in rows}, [": ".join(note) for note in notes]

    return compare


@pytest.mark.parametrize(
    "more, left_out",
    [({}, False), ({"changed": "--steps 200"}, True),
     ({"changed": "--log-every 7", "comparable": True}, False),
     ({"changed": "--steps 200", "comparable": False}, True)],
)  # fmt: skip
def test_the_number_of_a_report_stands_only_beside_its_like(whole, compared, more, left_out):
    values = [
        {"name": "FID", "value": 140.5, "real": 20.25, "protocol": "ours"},
        {"name": "KID", "value": None, "reason": "no weights"},
    ]
    theirs = {"FID": 132.7, "KID": 0.5, "protocol": "theirs"}
    result = {"values": values, "report": theirs, "step": 100, **more}
    (whole / "metrics.json").write_text(json.dumps(result))
    table, notes = compared(whole)
    words = f"this run is not quite that preset: {more.get('changed')}"
    if left_out:
        assert table["FID"] == ["140.50", "20.25"] and table["KID x 10^3"][0] == "not measured"
        assert f"the report: the report's numbers are left out: {words}" in notes
    else:
        assert table["FID"] == ["140.50 (report: 132.7)", "20.25"]
        assert table["KID x 10^3"][0] == "not measured (report: 0.5)"
        assert f"the report: theirs; {words}" if more else "the report: theirs" in notes
    assert "FID: ours" in notes


MEASURED = {
    "real": "food64", "checkpoint": "best.pt", "step": 40, "weights": "plain weights at step 40",
    "size": 16, "images": 60,
    "values": [
        {"name": "FID-768", "value": 31.25, "real": 1.5, "protocol": "60 images of step 40"},
        {"name": "KID", "value": 0.01, "std": 0.002, "real": 0.001, "real_std": 0, "protocol": ""},
        {"name": "FID", "value": None, "reason": "no weights"},
    ],
}  # fmt: skip


def test_what_metrics_measured_afterwards(whole, tmp_path, compared, capsys):
    """Rows of their own, which say of which checkpoint and against what; protocols below."""
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    (whole / "metrics-best-food64.json").write_text(json.dumps(MEASURED))
    again = {**MEASURED, "checkpoint": "kept/000010.pt", "real": "a|b"}
    (whole / "metrics-000010-a_b.json").write_text(json.dumps(again))
    values = [{"name": "FID-768", "value": 2.5, "real": 1.5, "protocol": "other images"}]
    (other / "metrics-best-food64.json").write_text(json.dumps({**MEASURED, "values": values}))
    table, notes = compared(whole, other)
    assert table["FID-768 of best.pt against food64"] == ["31.25", "2.50", "1.50"]
    assert table["KID x 10^3 of best.pt against food64"] == ["10.00 +- 2.00", "-", "1.00"]
    assert table["FID of best.pt against food64"] == ["not measured", "-", ""]
    assert table["FID-768 of kept/000010.pt against a|b"] == ["31.25", "-", "1.50"]
    for run, protocol in (("run", "60 images of step 40"), ("other", "other images")):
        assert f"FID-768 of best.pt against food64 of {run}: {protocol}" in notes
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{", "\0", json.dumps({**MEASURED, "values": 3}), "[" * 100_000,
     json.dumps({**MEASURED, "values": [*MEASURED["values"], {"name": "KID"}]}),
     json.dumps({**MEASURED, "values": [{"name": [], "value": 1, "protocol": ""}]}),
     json.dumps({**MEASURED, "values": [{"name": "FID", "value": "x", "protocol": ""}]}),
     json.dumps({"values": MEASURED["values"]})],
)  # fmt: skip
def test_a_damaged_measurement_is_left_out(whole, compared, capsys, content):
    (whole / "metrics-best-cats.json").write_text(content)
    (whole / "metrics-best-food64.json").write_text(json.dumps(MEASURED))
    table, _ = compared(whole)
    assert [what for what in table if " of " in what] == [
        f"{name} of best.pt against food64" for name in ("FID-768", "KID x 10^3", "FID")
    ]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "metrics-best-cats.json' is damaged and left out" in error


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_names_of_runs_reach_nothing_as_they_are(two_runs, tiny, capsys):
    """Control characters, formulas, HTML and Markdown."""
    run, other = two_runs
    name = "\x1b[31m$\\frac{<img src=x>*"
    shutil.copytree(run, tiny / name)
    about = json.loads((tiny / name / "args.json").read_text(encoding="utf-8"))
    about["data"]["name"] = "<b>*x*\n"
    (tiny / name / "args.json").write_text(json.dumps(about), encoding="utf-8")
    folder = tiny / name
    assert report.draw_losses(folder, report.read_run(folder))  # \\frac{ alone is no formula
    capsys.readouterr()
    report.main([name, str(other)])
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    text = (tiny / "comparison.md").read_text(encoding="utf-8")
    assert r"|  | \\x1b\[31m\$\\frac{&lt;img src=x>\* |" in text
    page = (tiny / "comparison.html").read_text(encoding="utf-8")
    for content in text, page:
        assert "\x1b" not in content and "<img src=x" not in content and "<b>*" not in content


def test_comparison_on_the_command_line(two_runs, tiny, capsys):
    run, other = two_runs
    report.main(["r", "<|>"])
    assert "wrote comparison.md\nwrote comparison.html\n" in capsys.readouterr().out
    text = (tiny / "comparison.md").read_text(encoding="utf-8")
    assert text == report.compare(two_runs)[0]
    page = (tiny / "comparison.html").read_text(encoding="utf-8")
    overlays = [f"comparison-{kind}.png" for kind in ("losses", "fid", "kid", "ms-ssim", "ssim")]
    assert sorted(overlays) == sorted(names(tiny.glob("comparison-*.png")))
    assert page == report.compare(two_runs)[1]
    assert "<p>r, &lt;|&gt;</p>" in page and "<h2>r</h2>" not in page  # it has no pictures
    path = run / "metrics.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "step": 4}))  # as if steps 5 and 6 were not measured
    text = report.compare(two_runs)[0]
    assert "| step of the values below | 4 |" in text
    assert "below of r: the run has been prolonged since" in text
    (other / "log.csv").unlink()
    with pytest.raises(InputError, match="no comparison of these runs: log.csv has no rows"):
        report.main(["r", "<|>"])


# ------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize("content", [None, "{", "[]", '{"steps_per_epoch": 0}'])
def test_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "args.json").write_text(content)
    with pytest.raises(InputError, match="run directory"):
        report.report(tmp_path)


@pytest.mark.parametrize(
    "given", ["", "a --epochs", "a --epochs -1", "a --epochs inf", "a --grid 0"]
)
def test_bad_arguments_are_one_line(capsys, given):
    with pytest.raises(SystemExit) as stop:
        report.main(given.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert error.startswith("report.py: error: ")


def test_the_program(tmp_path):
    done = program(tmp_path, ROOT / "report.py", tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith("report.py: error: ") and "args.json" in done.stderr


def test_class_rows(monkeypatch):
    """A row of eight images for each class, beside its name; not more than 16."""

    def generate(model, n, label):
        return torch.full((n, 3, SIZE, SIZE), 10 * label, dtype=torch.uint8)

    for count, rows in ((3, 3), (20, 16)):
        checkpoint = {"data": {"classes": [f"class {c}" for c in range(count)]}}
        script = types.SimpleNamespace(generate=generate)
        opened = (checkpoint, script, None, "words")
        monkeypatch.setattr(report, "open_model", lambda *_, opened=opened: opened)
        labelled = []

        def labelled_rows(pairs, caption, labelled=labelled):
            labelled.extend([pairs, caption])
            return sample.labelled_rows(pairs, caption)

        monkeypatch.setattr(report, "labelled_rows", labelled_rows)
        picture = Image.open(io.BytesIO(report.draw_class_rows(Path("r"), "cpu")))
        pairs, caption = labelled
        assert [name for name, _ in pairs] == [f"class {c}" for c in range(rows)]
        assert [np.asarray(row)[5, 5].tolist() for _, row in pairs] == [
            [10 * c] * 3 for c in range(rows)
        ]
        assert picture.width > pairs[0][1].width and picture.height > rows * pairs[0][1].height
        assert ("the first 16 of 20 classes" in caption) is (count == 20)
