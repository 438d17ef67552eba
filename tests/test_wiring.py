"""What runs around the formulas, found by changing the code one place at a time: which weights make the pictures, which
half of the real images is measured on, which label belongs to which image, which column, which seed."""
# ruff: noqa: F811, the fixture `tiny` comes from test_scripts

import importlib
import json
import os

import numpy as np
import pytest
import test_augment as ta
import test_datasets as td
import test_report as tr
import torch
from PIL import Image
from test_augment import QUICK, outcomes
from test_augment import data as augment_data  # noqa
from test_ddpm import Ideal, flags, network, setting, trained  # noqa
from test_metrics import images as pics
from test_scripts import AUTOENCODERS, SCRIPTS, TINY, every_script, rows, run, tiny, train  # noqa: F401

import augment
import cgan
import cvae
import datasets
import dcgan
import ddpm
import metrics
import report
from datasets import Batches, load, read_checkpoint
from ddpm import alpha_bars


# --- scripts
@every_script
def test_pictures_and_metrics_are_those_of_the_averaged_network(tiny, name, monkeypatch):
    seen = []
    monkeypatch.setattr(metrics, "evaluate", lambda real, fake, **_: seen.append(fake) or [])
    monkeypatch.setattr(metrics, "scores", lambda _: {})
    more = ["--eta", "0"] if name == "ddpm" else []
    train(name, "--steps", "4", "--lr", "0.02", "--eval-every", "4", "--eval-images", "10", "--out", "r", *more)
    script, found = importlib.import_module(name), read_checkpoint("r")
    main = next(iter(found["networks"]))  # the generator, the VAE, the U-Net
    weights = found["networks"]
    averaged, plain = (found | {"networks": {main: weights[which]}} for which in ("ema", main))
    made = script.generate(found, 10, 2)
    assert torch.equal(made, script.generate(averaged, 10, 2)) and not torch.equal(made, script.generate(plain, 10, 2))
    assert (seen[0].int() - made.int()).abs().max() <= 1


def test_what_the_final_numbers_are_of(tiny, monkeypatch):
    arrays = dict(np.load("tiny.npz"))
    np.savez("tiny.npz", **arrays, split=(np.arange(100) % 4 == 3).astype(int))
    calls, asked = [], []
    monkeypatch.setattr(
        metrics, "evaluate", lambda real, fake, floor=None, **_: calls.append((real, fake, floor)) or []
    )
    monkeypatch.setattr(metrics, "scores", lambda _: {})
    monkeypatch.setattr(metrics, "conditional", lambda *given, **_: asked.append(given) or [])
    train("cgan", "--preset", "animals", "--steps", "2", "--eval-every", "2", "--eval-images", "10", "--out", "r")
    (chose, _, _), (real, fake, floor) = calls
    held_out = {image.numpy().tobytes() for image in load("tiny.npz", 16, "test").images}
    halves = [{image.numpy().tobytes() for image in half} for half in (chose, real)]
    assert len(halves[0] | halves[1]) == 20 and (halves[0] | halves[1]) <= held_out and torch.equal(floor, chose)
    found = read_checkpoint("r")
    assert torch.equal(fake, cgan.generate(found, 10, 2))
    train_part, test_part, many, classes = asked[0]
    assert len(train_part.images) == 75 and len(test_part.images) == 25
    assert torch.equal(many, cgan.generate(found, len(many), 3))
    assert torch.equal(classes, datasets.random_labels(found["data"]["counts"], len(many), 3))


def test_columns_of_the_log(tiny):
    train("dcgan", "--steps", "14", "--out", "r")  # an epoch: 12 batches, two of which are drawn in a step
    table = rows("r")
    assert [row["step"] for row in table] == ["3", "6", "9", "12", "14"]
    assert [float(row["epoch"]) for row in table] == [0.5, 1, 1.5, 2, 2.3333]
    for before, row in zip(table, table[1:], strict=False):
        seconds = float(row["seconds"]) - float(before["seconds"])
        images = 8 * (int(row["step"]) - int(before["step"]))
        assert images / float(row["img_per_s"]) == pytest.approx(seconds, abs=0.002)
    run("dcgan", "--resume", "r", "--steps", "20", "--log-every", "100")
    seconds = [float(row["seconds"]) for row in rows("r")]
    assert seconds == sorted(seconds) and [row["step"] for row in rows("r")][5:] == ["18", "20"]  # the end of an epoch


def test_default_intervals_and_epochs_on_resume(tiny):
    flags = [*TINY, *SCRIPTS["vae_mlp"]]
    run("vae_mlp", *flags, "--steps", "101", "--out", "r")
    assert sorted(os.listdir("r/samples")) == ["000000.png", "000100.png", "000101.png"]
    run("vae_mlp", *flags, "--steps", "3", "--out", "s")
    (tiny / "s/last.pt.123.tmp").write_text("half")  # left by kill -9
    run("vae_mlp", "--resume", "s", "--epochs", "2")
    assert read_checkpoint("s")["step"] == 2 * 11 and not (tiny / "s/last.pt.123.tmp").exists()


def test_another_number_of_images_is_another_protocol(tiny, monkeypatch):
    found = iter([{"fid_768": 4.0}, {"fid_768": 5.0}])
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: [])
    monkeypatch.setattr(metrics, "scores", lambda _: next(found))
    train("dcgan", "--steps", "2", "--eval-every", "2", "--eval-images", "10", "--out", "r")
    run("dcgan", "--resume", "r", "--steps", "4", "--eval-images", "20")
    assert read_checkpoint("r/best.pt")["step"] == 4


def test_the_plan(tiny, capsys):
    train("dcgan", "--dry-run", "--epochs", "3")
    out = capsys.readouterr().out
    assert "plan: 18 steps of 8 images, 6 steps an epoch (3.0 epochs)" in out
    args = dcgan.parse_args(["--data", "x", "--size", "16", "--width", "4"])
    count = sum(p.numel() for p in dcgan.make_generator(args, 3).parameters())
    assert f"Generator: {count:,} parameters" in out


@pytest.mark.parametrize("name", ["dcgan", "cgan"])
def test_flags_reach_the_optimisers(tiny, name):
    run(name, *TINY, "--beta1", "0.3", "--weight-decay", "0.2", "--steps", "1", "--out", "r")
    for optimiser in read_checkpoint("r")["optimisers"].values():
        group = optimiser["param_groups"][0]
        assert tuple(group["betas"]) == (0.3, 0.999) and group["weight_decay"] == 0.2


def test_wgan_gps_optimisers_are_the_papers(tiny):
    train("wgan_gp", "--steps", "1", "--out", "r")
    for optimiser in read_checkpoint("r")["optimisers"].values():
        assert tuple(optimiser["param_groups"][0]["betas"]) == (0.0, 0.9)


@pytest.mark.parametrize("name", ["dcgan", "cgan", "wgan_gp"])
def test_each_network_has_its_rate_and_the_decay(tiny, name):
    train(name, "--steps", "3", "--lr-g", "0.001", "--lr-d", "0.004", "--out", "r")
    rates = [o["param_groups"][0]["lr"] for o in read_checkpoint("r")["optimisers"].values()]
    assert rates == pytest.approx([0.001 * 0.99**2, 0.004 * 0.99**2])


# --- datasets
def test_labels_and_splits_stay_with_their_images(here):
    folder = here / "d"
    for i in range(150):
        path = folder / ("train" if i % 3 else "test") / f"class{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    (folder / "inf").mkdir()
    Image.new("L", (8, 8), 200).save(folder / "inf/0.png")  # not used
    (folder / "test/class0/000.png").write_bytes(b"")  # damaged
    for split in "train", "test":
        data = load(folder, 8, split)
        value = data.images[:, 0, 0, 0].long()
        assert torch.equal(data.labels, value % 2) and ((value % 3 == 0) == (split == "test")).all()
    assert len(load(folder, 8, "all").images) == 149


@pytest.mark.parametrize("make", ["folder", "zip", "npz"])
def test_an_image_changed_in_place_is_seen(here, make):
    def write(value):
        if make == "npz":
            np.savez("x.npz", images=np.full((2, 8, 8), value, np.uint8))
            return "x.npz"
        (here / "x").mkdir(exist_ok=True)
        Image.new("L", (8, 8), value).save(here / "x/a.bmp")
        Image.new("L", (8, 8), value).save(here / "x/b.bmp")
        return td.make_zip(here / "x", here / "x.zip") if make == "zip" else here / "x"

    assert load(write(7), 8).images[0, 0, 0, 0] == 7
    path = write(9)
    for p in here.glob("x*"):
        for q in [p, *p.glob("*")] if p.is_dir() else [p]:
            os.utime(q, ns=(1, 1))
    assert load(path, 8).images[0, 0, 0, 0] == 9


def test_rows_of_the_samples_are_classes():
    z, y = datasets.class_rows(3, 5, seed=1)
    assert y.argmax(1).tolist() == [0] * 8 + [1] * 8 + [2] * 8 and torch.equal(
        z, datasets.latents(8, 5, 1).repeat(3, 1)
    )


def test_orders_of_seeds():
    data = td.unbalanced()
    a, b = Batches(data, 16, seed=0), Batches(data, 16, seed=1)
    assert not torch.equal(a.rows(a.per_epoch)[0], b.rows(0)[0])


def test_shares(here, capsys):
    np.savez("x.npz", images=np.zeros((8, 8, 8), np.uint8), labels=[0] * 6 + [1] * 2, classes=["cat", "dog"])
    datasets.main(datasets.parse_args(["x.npz", "--size", "8"]))
    out = capsys.readouterr().out
    assert "6   75.0 %" in out and "2   25.0 %" in out and "3.00 times" in out


# --- metrics
def test_scores_and_shown():
    values = [
        {"name": "FID", "value": 3.0},
        {"name": "KID-768", "value": 0.004},
        {"name": "KID", "value": None},
        {"name": "MS-SSIM (generated, real)", "value": 0.1},
        {"name": "MS-SSIM (among generated)", "value": 0.2},
    ]
    assert metrics.scores(values) == {"fid_2048": 3.0, "kid_768": 0.004, "ms-ssim": 0.1}
    kid = {"name": "KID", "value": 0.0123, "std": 0.001, "se": 0.002, "real": 0.0004, "real_std": 0.0001}
    assert metrics.shown(kid) == "12.30 +- 1.00 (se 2.00)" and metrics.shown(kid, "real") == "0.40 +- 0.10"
    assert metrics.title(kid) == "KID x 10^3"


def test_kid_of_the_floor(small_weights):
    real, floor, fake = pics(12), pics(12, seed=1), pics(10, seed=2) // 2
    by = {v["name"]: v for v in metrics.evaluate(real, fake, floor, dims=(64,), weights=small_weights, seed=3)}
    x, y, z = (metrics.features(side, (64,), small_weights)[64] for side in (real, fake, floor))
    assert (by["KID-64"]["value"], by["KID-64"]["std"]) == pytest.approx(metrics.kid(x, y, seed=3), rel=1e-3)
    assert (by["KID-64"]["real"], by["KID-64"]["real_std"]) == pytest.approx(metrics.kid(x, z, seed=3), rel=1e-3)


def test_sides_of_the_command_line(here, small_weights, capsys):
    values = np.arange(60, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    np.savez("x.npz", images=values, labels=np.arange(60) % 3, split=(np.arange(60) >= 30).astype(int))
    found, words, labels, _ = metrics.side("x.npz", None, 20, 16, "test", 3, "cpu")
    value = found[:, 0, 0, 0].long()
    assert (value >= 30).all() and torch.equal(labels, value % 3) and "held-out test split" in words
    np.savez("y.npz", images=values)
    assert "no held-out split" in metrics.side("y.npz", None, 20, 16, "test", 3, "cpu")[1]
    given = ["x.npz", "y.npz", "--eval-images", "12", "--dims", "64", "--weights", str(small_weights), "--size", "16"]
    metrics.main(metrics.parse_args([*given, "--floor", "--json"]))
    found = json.loads(capsys.readouterr().out)["fakes"][0]["values"][0]
    assert found["real"] > 1e-3  # the floor's images are other ones


def test_what_the_classifier_sees(random_weights, monkeypatch):
    monkeypatch.setattr(metrics, "features", lambda images, dims, *_, **__: {d: images.flatten(1)[:, :d] for d in dims})
    fitted, asked = [], []

    def classifier(images, labels, *_):
        fitted.append((images, labels))
        return lambda images: asked.append(images) or torch.zeros(len(images), dtype=torch.int64)

    monkeypatch.setattr(metrics, "classifier", classifier)
    metrics._kept.clear()
    train = load("shapes", 16)
    train = train._replace(images=train.images[:300], labels=train.labels[:300])
    settings = {"dims": (64,), "weights": random_weights, "eval_images": 100}
    a = metrics.conditional(train, None, train.images[:200].flip(3), train.labels[:200], **settings)
    (images, _), _ = fitted
    assert len(images) == 270
    known = {image.numpy().tobytes() for image in images}
    (tested,) = {len(x): x for x in asked if len(x) == 30}.values()
    assert not known & {image.numpy().tobytes() for image in tested}
    b = metrics.conditional(train, None, 255 - train.images[:200], train.labels[:200], **settings)
    assert [v["real"] for v in a[2:]] == [v["real"] for v in b[2:]] and len(
        fitted
    ) == 3  # real ones do not depend on the fake
    other = train._replace(labels=train.labels.flip(0))
    metrics.conditional(other, None, train.images[:200], train.labels[:200], **settings)
    assert len(fitted) == 5  # other labels: another classifier


# --- ddpm


def test_every_clipped_guess(monkeypatch):
    args = flags("--timesteps=100", "--sample-steps=10")
    seen, original = [], ddpm.ddim_step
    monkeypatch.setattr(
        ddpm, "ddim_step", lambda bars, t, s, x_0, *rest: seen.append(x_0) or original(bars, t, s, x_0, *rest)
    )
    x = torch.randn(4, 3, 16, 16)
    for clip in True, False:
        seen.clear()
        list(ddpm.denoise(Ideal(args, 0.9, 0.5), x, torch.zeros(4).long(), args, range(4), clip=clip))
        assert (max(x_0.abs().max() for x_0 in seen) <= 1) == clip


def test_guidance_and_classes_of_the_pictures(trained, monkeypatch):
    found, asked = read_checkpoint(trained), []
    original = ddpm.guess_noise
    monkeypatch.setattr(
        ddpm, "guess_noise", lambda unet, x, t, y, g: asked.append((y, g)) or original(unet, x, t, y, g)
    )
    rows = ddpm.guided(found, strengths=(0.0, 4.0), columns=5)
    assert {g for _, g in asked} == {0.0, 4.0} and not torch.equal(rows[:5], rows[5:])
    asked.clear()
    ddpm.generate(found, 130, 4, sample_steps=1)
    assert torch.equal(torch.cat([y for y, _ in asked]), datasets.random_labels(found["data"]["counts"], 130, 4))


def test_the_guidance_on_the_command_line(trained, here):
    for strength in 1, 8:
        given = f"--load={trained} --generate=4 --guidance={strength} --eta=0 --device=cpu --to={strength}.png"
        ddpm.main(ddpm.parse_args(given.split()))
        want = datasets.grid(ddpm.generate(read_checkpoint(trained), 4, 0, guidance=strength, eta=0.0))
        assert np.abs(np.asarray(Image.open(f"{strength}.png")).astype(int) - np.asarray(want)).max() <= 1
    assert (here / "1.png").read_bytes() != (here / "8.png").read_bytes()


def test_the_grid_of_samples_has_a_row_for_each_class(tiny, monkeypatch):
    seen = []
    original = ddpm.pictures
    monkeypatch.setattr(ddpm, "pictures", lambda unet, x, y, *rest: seen.append((x, y)) or original(unet, x, y, *rest))
    train("ddpm", "--steps", "1", "--out", "r")
    x, y = seen[0]
    assert y.tolist() == [0] * 8 + [1] * 8 + [2] * 8 and torch.equal(x[:8], x[8:16]) and not torch.equal(x[0], x[1])


# --- autoencoders
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_what_is_measured_is_held_out(tiny, name, monkeypatch):
    script, seen = importlib.import_module(name), []
    original = script.measure
    monkeypatch.setattr(script, "measure", lambda model, *given: seen.append(given) or original(model, *given))
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: [])
    monkeypatch.setattr(metrics, "conditional", lambda *_, **__: [])
    images = np.arange(100, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3)
    np.savez("tiny.npz", images=images, labels=np.arange(100) % 3, classes=["a", "b", "c"])
    train(
        name, "--preset", "cats" if name == "vae_mlp" else "animals", "--steps", "3", "--eval-images", "8", "--out", "r"
    )
    held_out = datasets.load_parts("tiny.npz", 16, 10)[1]
    known = {image.numpy().tobytes() for image in held_out.images}
    assert len(seen) == 2  # in the log, and in the end
    for given in seen:
        assert {image.numpy().tobytes() for image in given[0]} <= known
        if name == "cvae":
            assert torch.equal(given[1], given[0][:, 0, 0, 0].long() % 3)


# --- augment


def test_generated_images_are_of_their_class(augment_data, monkeypatch):
    monkeypatch.setattr(
        ddpm,
        "generate",
        lambda checkpoint, n, seed, device, label=None: torch.full(
            (n, 3, 16, 16), 50 + 70 * label if label is not None else 9
        ).byte(),
    )
    seen = []
    monkeypatch.setattr(
        augment, "train_classifier", lambda real, made, *rest: seen.append(made) or dict.fromkeys(augment.SCORES, 0.5)
    )
    ta.run("--data", "x.npz", "--per-class", "4", *ta.TINY.split(), "--generator-flags", QUICK, "--out", "r")
    made = seen[2]
    assert torch.equal(made.images[:, 0, 0, 0].long(), 50 + 70 * made.labels)


def test_no_flip_and_grey(augment_data):
    train = load("x.npz", 16)
    grey = train._replace(images=train.images[:, :1])
    given = [augment.parse_args(["--data", "x.npz", *more]) for more in ([], ["--no-flip"])]
    assert [augment.may_flip(d, a) for d in (train, grey) for a in given] == [True, False, False, False]


def test_columns_of_the_table():
    found = [{"accuracy": 0.8, "precision": 0.7, "recall": 0.6}] * 3
    line = augment.table({(50, "real"): found}).splitlines()[2]
    assert line == "| 50 | real | 80.0 ± 0.0 | 70.0 ± 0.0 | 60.0 ± 0.0 |"


def test_the_curve_is_in_percent(here, monkeypatch):
    from matplotlib.axes import Axes

    seen, original = [], Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda self, *a, **k: seen.append(a) or original(self, *a, **k))
    augment.draw_curve(outcomes(0.7, 0.05), here / "c.png", "t")
    assert [a[1][0] for a in seen] == pytest.approx([70, 70, 75, 75], abs=0.5)


def test_saturation_leaves_grey_alone():
    """In a colour image that is all grey, only contrast changes how far its values lie apart: by a quarter at most."""
    x = torch.where(torch.arange(16) < 8, -0.2, 0.2).expand(300, 3, 16, 16)
    torch.manual_seed(0)
    changed = augment.classical(x, flip=False)
    apart = (changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))) / 0.4
    assert apart.min() >= 0.75 - 1e-5 and apart.max() <= 1.25 + 1e-5 and apart.std() > 0.1


def test_the_classifier_is_measured_in_eval_mode_and_its_rate_ends_at_0(augment_data, monkeypatch):
    modes, rates = [], []
    original = torch.nn.Sequential.forward

    def forward(self, x):
        if isinstance(self[-1], torch.nn.Linear):
            modes.append(self.training)
        return original(self, x)

    monkeypatch.setattr(torch.nn.Sequential, "forward", forward)
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: (rates.append(self.param_groups[0]["lr"]), step(self, *a, **k))[1],
    )
    train = load("x.npz", 16)
    args = augment.parse_args("--data x.npz --size 16 --steps 10 --batch 4 --width 8 --device cpu".split())
    augment.train_classifier(train, None, train, args, False, 0, torch.device("cpu"))
    assert modes == [True] * 10 + [False] and max(rates) == pytest.approx(2e-3) and rates[-1] < 1e-5 and rates[0] < 2e-4


def test_the_device_of_a_resumed_run(here):
    args = augment.parse_args(["--data", "x.npz", "--device", "cpu"])
    (here / "r").mkdir()
    (here / "r/settings.json").write_text(json.dumps(vars(args) | {"fingerprint": ""}))
    devices = [
        augment.resumed(augment.parse_args(["--resume", "r", *more])).device for more in ([], ["--device", "mps"])
    ]
    assert devices == ["cpu", "mps"]


# --- report


def test_the_axis_of_epochs(tmp_path, monkeypatch):
    figures, original = [], report.figure_png
    monkeypatch.setattr(report, "figure_png", lambda figure: figures.append(figure) or original(figure))
    folder = tr.make_run(tmp_path / "run")
    report.draw_losses(folder, report.read_run(folder))
    (epochs,) = figures[0].axes[0].child_axes
    assert epochs.get_xlim() == pytest.approx([x / tr.PER_EPOCH for x in figures[0].axes[0].get_xlim()])


def test_first_images_down_the_columns():
    images = torch.arange(24, dtype=torch.uint8)[:, None, None, None].expand(24, 1, 8, 8)  # three rows: classes
    row = np.asarray(report.first_images(datasets.grid(images, 8), 8, 8, down=True))[4, 4::10, 0]
    assert row.tolist() == [0, 8, 16, 1, 9, 17, 2, 10]


def test_the_strip_of_a_conditional_model_goes_down(tmp_path, monkeypatch):
    folder, seen, original = tr.make_run(tmp_path / "run"), [], report.first_images
    monkeypatch.setattr(report, "first_images", lambda *given: seen.append(given[3]) or original(*given))
    args = report.read_run(folder)
    for given, down in (args["flags"], False), (args["flags"] | {"class": None}, True):
        report.draw_strip(folder, args | {"flags": given})
        assert set(seen) == {down}
        seen.clear()


def test_the_best_checkpoint_is_drawn(tmp_path):
    folder = tr.make_run(tmp_path / "run", checkpoint=True)
    torch.save(torch.load(folder / "last.pt") | {"step": 40}, folder / "best.pt")
    checkpoint, _, words = report.open_model(folder)
    assert checkpoint["step"] == 40 and words == "dcgan, best.pt: plain weights at step 40"


def test_rows_of_interpolation_and_of_ddpm(tmp_path, monkeypatch):
    folder, seen, original = tr.make_run(tmp_path / "run", checkpoint=True), [], report.labelled_rows
    monkeypatch.setattr(
        report, "labelled_rows", lambda rows, words="": seen.append((rows, words)) or original(rows, words)
    )
    shift = {"spherical": 0, "linear": 100}
    monkeypatch.setattr(
        dcgan,
        "interpolate",
        lambda _, rows, frames, kind, device: (
            (shift[kind] + torch.arange(rows * frames)).byte()[:, None, None, None].expand(-1, 3, tr.SIZE, tr.SIZE)
        ),
    )
    report.draw_interpolation(folder, "cpu")
    first = [(label, np.asarray(picture)[0, 0, 0]) for label, picture in seen[0][0] if label]
    assert first == [
        ("spherical", 0),
        ("linear", 100),
        ("spherical", 10),
        ("linear", 110),
        ("spherical", 20),
        ("linear", 120),
    ]


def test_titles_of_classes(tmp_path, monkeypatch):
    folder, texts = tr.make_run(tmp_path / "run", checkpoint=True), []

    class Model:
        as_every_class = staticmethod(lambda checkpoint, device: (torch.zeros(8, 3, 16, 16, dtype=torch.uint8), 4))

    monkeypatch.setattr(report, "open_model", lambda _: ({"data": {"classes": ["cat", "dog"]}}, Model, "words"))
    monkeypatch.setattr(report, "write_text", lambda page, place, text, *_, **__: texts.append((place[0], text)))
    report.draw_classes(folder, "cpu")
    assert [text for _, text in texts] == ["real", "back", "cat", "dog", "words"] and texts[0][0] < texts[1][0] < texts[
        2
    ][0]


def test_rows_of_denoising(tmp_path, monkeypatch):
    seen, original = [], report.labelled_rows

    class Model:
        denoising = staticmethod(
            lambda checkpoint, rows, frames, device: (
                torch.arange(rows * frames).byte()[:, None, None, None].expand(-1, 3, 16, 16),
                [*range(frames)],
            )
        )

    monkeypatch.setattr(
        report,
        "open_model",
        lambda _: ({"data": {"classes": ["cat", "dog"]}, "flags": {"sampler": "ddim"}}, Model, "words"),
    )
    monkeypatch.setattr(report, "labelled_rows", lambda rows, words="": seen.append(rows) or original(rows, words))
    report.draw_denoising(tmp_path, "cpu")
    assert [(label, np.asarray(picture)[0, 0, 0]) for label, picture in seen[0]] == [("cat", 0), ("dog", 10)]


@every_script
def test_the_average_is_of_the_first_weights_and_the_new(tiny, name):
    for lr, out in ("1e-12", "a"), ("0.02", "b"):  # the first weights, and one step
        train(name, "--steps", "1", "--lr", lr, "--out", out)
    a, b = read_checkpoint("a")["networks"], read_checkpoint("b")["networks"]
    main = next(iter(b))
    for key, value in b["ema"].items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(value, 0.9 * a[main][key] + 0.1 * b[main][key], rtol=1e-4, atol=1e-6)


def test_what_the_unet_is_asked():
    args, _, unet, *_ = ours = setting("--drop-label=0.5", "--flip")
    batches, seen, bars = setting("--drop-label=0.5", "--flip")[1], [], alpha_bars(args.noise_schedule, 50)
    unet.register_forward_pre_hook(lambda _, given: seen.append(given))
    for step in range(8):
        torch.manual_seed(step)
        ddpm.train_step(ddpm.schedule(step, args), *ours)
        torch.manual_seed(step)
        x, labels = next(batches)
        mirrored = torch.rand(8, 1, 1, 1) < 0.5
        t, eps, dropped = torch.randint(1, 51, (8,)), torch.randn_like(x), torch.rand(8) < 0.5
        x = torch.where(mirrored, x[..., torch.arange(15, -1, -1)], x)
        bar = bars[t][:, None, None, None]
        torch.testing.assert_close(seen[-1][0], (bar.sqrt() * x + (1 - bar).sqrt() * eps).float())
        assert torch.equal(seen[-1][1], t) and torch.equal(seen[-1][2], torch.where(dropped, 3, labels))


def test_test_columns_of_the_log(tiny, monkeypatch):
    monkeypatch.setattr(cvae, "measure", lambda *_: [1.0, 2.0, 3.0, 4.0])
    train("cvae", "--steps", "3", "--out", "r")
    assert [rows("r")[0][f"{name}_test"] for name in cvae.LOSSES] == ["1.0", "2.0", "3.0", "4.0"]


def test_best_is_chosen_by_the_widest_features_and_knows_itself(tiny, monkeypatch):
    found = iter([{"fid_64": 1.0, "fid_192": 9.0}, {"fid_64": 2.0, "fid_192": 4.0}])
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: [])
    monkeypatch.setattr(metrics, "scores", lambda _: next(found))
    train("dcgan", "--steps", "4", "--eval-every", "2", "--eval-images", "10", "--dims", "64", "192", "--out", "r")
    assert read_checkpoint("r/best.pt")["best"] == 4.0 and read_checkpoint("r/best.pt")["step"] == 4


def test_latents_of_the_extremes(tmp_path, monkeypatch):
    folder, seen = tr.make_run(tmp_path / "run", checkpoint=True), []
    found = torch.load(folder / "last.pt")
    torch.save(found | {"flags": found["flags"] | {"seed": 7}}, folder / "last.pt")
    monkeypatch.setattr(
        dcgan, "generate", lambda checkpoint, n, seed: seen.append(seed) or torch.zeros(n, 3, 16, 16).byte()
    )
    monkeypatch.setattr(metrics, "mean_ms_ssim", lambda images, real: torch.zeros(len(images)))
    report.draw_extremes(folder, report.read_run(folder))
    assert seen == [9]


def test_the_time_is_told_in_sines_and_cosines():
    unet, seen = network(flags("--timesteps=250", "--width=32")), []
    unet.embed_time.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    t = torch.tensor([1, 125, 250])
    unet(torch.zeros(3, 3, 16, 16), t, t * 0)
    angles = 4.0 * t[:, None] * 10_000 ** (-torch.arange(16) / 16)  # 1,000 steps, however many there are
    torch.testing.assert_close(seen[0], torch.cat([angles.sin(), angles.cos()], 1), rtol=1e-3, atol=1e-3)
