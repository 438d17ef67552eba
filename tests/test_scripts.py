"""What every script promises: exact resume, no half-written files, one line for bad input."""

import contextlib
import functools
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, at_step, make_folder, program
from PIL import Image

import datasets
import metrics
import report
import sample
import training
from sources import InputError, locked, read_log, run_program
from training import read_checkpoint

PLOTS = report.report
TINY = "--data tiny.npz --size 16 --width 4 --batch 8 --log-every 3 --device cpu --precision fp32"
TINY = TINY.split()

# script -> flags that switch on everything with a state of its own. The tests interrupt at step 10,
# where the second stage of wgan_gp's growth begins.
NOISE = "--ema 0.9 --noise 0.1 --noise-steps 15 --lr-decay 0.99"
VAE = "--ema 0.9 --lr-decay 0.99 --likelihood sigma --kl-warmup 15 --hold-out 10 --latent-dim 6"
SCRIPTS = {
    "dcgan": f"{NOISE} --d-steps 2 --upsample nearest --flip",
    "wgan_gp": f"{NOISE} --critic-steps 2 --normalize channel --stages 2 --stage-steps 10 "
    "--fade-steps 4 --upsample nearest --flip",
    "vae_mlp": VAE,
    "cvae": f"{VAE} --balance",
    "cgan": f"{NOISE} --d-steps 2 --g-steps 2 --r1 1 --r1-every 3 --augment --weight-decay 0.1 "
    "--latent-dim 6 --balance --upsample nearest --flip",
    "gan_resnet": f"{NOISE} --g-steps 2 --conditional --similarity 1",
    "ddpm": "--ema 0.9 --lr-decay 0.99 --blocks 1 --timesteps 20 --sample-steps 2 --guidance 2 "
    "--eta 0.5 --flip --balance",
}
PRESET = {
    "dcgan": "cats",
    "wgan_gp": "small-gan",
    "vae_mlp": "cats",
    "cvae": "animals",
    "cgan": "animals",
    "gan_resnet": "cifar10-conditional",
    "ddpm": "mnist",
}
AUTOENCODERS = ("vae_mlp", "cvae")
CONDITIONAL = ("cvae", "cgan", "ddpm", "gan_resnet")
every_script = pytest.mark.parametrize("name", SCRIPTS)
pytestmark = pytest.mark.usefixtures("no_plots", "narrow")  # test_a_run_directory has plots


class NarrowResNet(torchvision.models.ResNet):
    """ResNet-18 with an eighth of its channels, which makes the tests of gan_resnet.py faster."""

    def __init__(self, num_classes):
        super().__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])
        self.fc = torch.nn.Linear(64, num_classes)

    def _make_layer(self, block, planes, *rest, **options):
        return super()._make_layer(block, planes // 8, *rest, **options)


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(training.load_script("gan_resnet"), "resnet18", NarrowResNet)


def run(name, *flags):
    """The script's program in this process; bad input ends in SystemExit, as in its own process."""
    script = training.load_script(name)
    run_program(functools.partial(script.main, [*flags]))


def train(name, *flags):
    run(name, *TINY, *SCRIPTS[name].split(), *flags)


def error_of(capsys, name, *flags):
    """Run a script that must end with one line on stderr and exit code 2: that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(name, *flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "error: " in error, error
    return error


def tensors(tree):
    """All tensors in nested dicts and lists, in order."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [tensor for part in tree for tensor in tensors(part)]
    return [tree] if isinstance(tree, torch.Tensor) else []


def assert_same(a, b, keys=("models", "optimizers", "rng")):
    """Two checkpoints hold bit-identical models, optimizers and random states."""
    a = read_checkpoint(a)
    b = read_checkpoint(b)
    assert a["step"] == b["step"] and a["drawn"] == b["drawn"]
    for key in keys:
        assert len(tensors(a[key])) > 0
        for x, y in zip(tensors(a[key]), tensors(b[key]), strict=True):
            assert torch.equal(x, y)


def log(run_directory):
    """The rows of log.csv without what depends on the clock."""
    rows = read_log(datasets.Path(run_directory) / "log.csv")
    return [{k: v for k, v in row.items() if k not in ("seconds", "img_per_s")} for row in rows]


# ----------------------------------------------------------------------------------------- resume


@every_script
def test_a_run_directory(tiny, name, capsys, monkeypatch):
    monkeypatch.setattr(report, "report", PLOTS)
    train(name, "--steps", "7", "--sample-every", "3")
    run_directory = tiny / f"runs/{name}-tiny-1"
    out = capsys.readouterr().out
    assert f"python sample.py {run_directory.relative_to(tiny)}" in out
    samples = sorted(path.name for path in (run_directory / "samples").iterdir())
    assert samples == ["000000.png", "000003.png", "000006.png", "000007.png"]
    rows = 3 if name in CONDITIONAL else 8  # a row for each class
    size = Image.open(run_directory / "samples/000007.png").size
    assert size == (8 * 18 - 2, rows * 18 - 2)
    pictures = ["losses.png", "weights.png", "progress.gif", "strip.png", "interpolation.png"]
    pictures += ["reconstructions.gif"] if name in AUTOENCODERS else []
    assert (run_directory / "report.html").stat().st_size < 3_000_000
    pictures += ["denoising.png", "guidance.png"] if name == "ddpm" else []
    pictures += ["classes.png"] if name in CONDITIONAL else []
    for picture in pictures:
        Image.open(run_directory / picture).verify()
    args = json.loads((run_directory / "args.json").read_text(encoding="utf-8"))
    assert args["flags"]["width"] == 4 and args["script"] == name and args["finished"] == 7
    assert args["data"]["count"] == (90 if "--hold-out" in SCRIPTS[name] else 100)
    source = (run_directory / "source.py").read_text(encoding="utf-8")
    assert source == (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert [row["step"] for row in log(run_directory)] == ["3", "6", "7"]
    assert all(float(value) == float(value) for row in log(run_directory) for value in row.values())
    checkpoint = read_checkpoint(run_directory)
    assert checkpoint["step"] == 7
    assert checkpoint["data"]["fingerprint"] == args["data"]["fingerprint"]
    train(name, "--steps", "1")
    assert (tiny / f"runs/{name}-tiny-2/last.pt").exists()


@every_script
def test_resume_is_exact(tiny, name):
    train(name, "--steps", "20", "--out", "a")
    train(name, "--steps", "10", "--save-every", "4", "--sample-every", "3", "--out", "b")
    torch.manual_seed(12345)  # another state than a new process would have
    run(name, "--resume", "b", "--steps", "20")
    assert_same("a", "b")
    # row 10 closes the log of the first part early, so the next row is a mean over fewer steps
    a, b = ([row for row in log(r) if row["step"] not in ("10", "11", "12")] for r in "ab")
    assert a == b and len(a) == 6


@every_script
def test_resume_of_a_run_from_another_device(tiny, name):
    """On a Mac, weights and Adam's averages are not channels last; here the kernel pairs them."""
    train(name, "--steps", "4", "--out", "a")
    shutil.copytree("a", "b")
    checkpoint = read_checkpoint("b")
    for optimizer in checkpoint["optimizers"].values():
        for state in optimizer["state"].values():
            state |= {key: value.contiguous() for key, value in state.items()}
        for group in optimizer["param_groups"]:  # as saved on a GPU
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
            group["capturable"] = True
    torch.save(checkpoint, "b/last.pt")
    for folder in "ab":
        run(name, "--resume", folder, "--steps", "6")
    assert_same("a", "b", ["models", "rng"])


@every_script
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["step", "picture"])
def test_a_signal_saves_and_says_how_to_go_on(tiny, name, number, place, monkeypatch, capsys):
    train(name, "--steps", "12", "--out", "a")
    b = "b" * 250  # the command that resumes names all of it
    with monkeypatch.context() as patch:
        if place == "step":
            at_step(patch, 5, functools.partial(signal.raise_signal, number))
        else:
            save_picture = datasets.save_picture

            def interrupted(picture, path):
                if path.parts[-2:] == ("samples", "000005.png"):
                    signal.raise_signal(number)
                save_picture(picture, path)

            patch.setattr(datasets, "save_picture", interrupted)
        before = signal.getsignal(number)
        with pytest.raises(SystemExit) as stop:
            train(name, "--steps", "12", "--sample-every", "1", "--out", b)
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    out = capsys.readouterr().out
    assert "saved at step 5 of 12" in out and f"python {name}.py --resume {b}\n" in out
    run(name, "--resume", b)
    assert_same("a", b)
    assert [row["step"] for row in log(b)] == [row["step"] for row in log("a")]


def test_ctrl_c_twice_ends_at_once(tiny, monkeypatch, capfd):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 2, twice)
    with pytest.raises(SystemExit) as stop:
        train("vae_mlp", "--steps", "5", "--out", "r")
    error = capfd.readouterr().err
    assert stop.value.code == 130 and "Ctrl-C again" in error and "interrupted" in error
    assert read_checkpoint("r")["step"] == 0


@every_script
def test_kill_9_leaves_a_checkpoint_that_resumes(tiny, name, monkeypatch):
    resnet18 = torchvision.models.resnet18  # as in its process
    monkeypatch.setattr(training.load_script("gan_resnet"), "resnet18", resnet18)
    flags = [*TINY, "--steps", "100000", "--save-every", "1", "--out", "r"]
    command = [sys.executable, ROOT / f"{name}.py", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    last = tiny / "r/last.pt"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.time() + 120
        while not last.exists():
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.002)
        time.sleep(0.13)
        process.kill()
    step = read_checkpoint("r")["step"]
    run(name, "--resume", "r", "--steps", str(step + 5))
    assert read_checkpoint("r")["step"] == step + 5
    assert not [row for row in log("r") if int(row["step"]) > step + 5]


@every_script
def test_a_run_killed_before_its_first_checkpoint_is_begun_again(tiny, name):
    (tiny / "r").mkdir()
    for left in (".lock", "args.json", "log.csv", "source.py", "last.pt.123.tmp"):
        (tiny / "r" / left).write_text("half")
    train(name, "--steps", "1", "--out", "r")
    assert read_checkpoint("r")["step"] == 1


@every_script
def test_what_was_stopped_after_the_last_step_is_made_up_for(tiny, name, monkeypatch, capsys):
    class Stop(Exception):
        pass

    def stopped(*_, **__):
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(report, "report", stopped)
        train(name, "--steps", "3", "--out", "r")
    drawn = []
    monkeypatch.setattr(report, "report", lambda *_, **__: drawn)
    run(name, "--resume", "r")
    assert "finished" in error_of(capsys, name, "--resume", "r")


@every_script
def test_a_damaged_log_does_not_cost_the_checkpoint(tiny, name, capsys):
    train(name, "--steps", "6", "--out", "r")
    damaged = b"step,loss\n3,0.5\nabc,1\n\0\0\0\n\xff\xfe,2\n4"
    (tiny / "r/log.csv").write_bytes(damaged)
    run(name, "--resume", "r", "--steps", "7")
    assert "damaged rows are left out" in capsys.readouterr().err
    assert [row["step"] for row in log("r")] == ["3", "7"]


# ------------------------------------------------------------------------------------- what stops


@every_script
def test_not_finite_stops_and_keeps_the_last_good_checkpoint(tiny, name, monkeypatch, capsys):
    set_lr = training.set_lr
    monkeypatch.setattr(training, "set_lr", lambda optimizer, _: set_lr(optimizer, 1e39))
    flags = [*TINY, *SCRIPTS[name].split(), "--steps", "30", "--save-every", "1"]
    error = error_of(capsys, name, *flags, "--out", "r")
    assert "not finite at step 1" in error and "r/last.pt" in error
    checkpoint = read_checkpoint("r")
    assert checkpoint["step"] == 0
    assert all(t.isfinite().all() for t in tensors(checkpoint["models"]))


@every_script
def test_a_loss_that_becomes_nan_names_its_step(tiny, name, monkeypatch, capsys):
    count = training.Run.count

    def counted(self, **losses):
        if self.step == 5:
            losses = {key: value * torch.nan for key, value in losses.items()}
        count(self, **losses)

    monkeypatch.setattr(training.Run, "count", counted)
    flags = [*TINY, *SCRIPTS[name].split(), "--steps", "30", "--save-every", "4", "--out", "r"]
    assert "not finite at step 6" in error_of(capsys, name, *flags, "--log-every", "10")
    assert read_checkpoint("r")["step"] == 4


def test_infinite_statistics_of_batchnorm_are_not_saved(tiny, monkeypatch, capsys):
    update = training.update_ema

    def damaged(ema, model, decay):
        update(ema, model, decay)
        next(iter(model.buffers())).fill_(torch.inf)

    monkeypatch.setattr(training, "update_ema", damaged)
    flags = [*TINY, *SCRIPTS["dcgan"].split(), "--steps", "4", "--save-every", "2", "--out", "r"]
    assert "not finite at step 2" in error_of(capsys, "dcgan", *flags)
    assert read_checkpoint("r")["step"] == 0


@every_script
@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_keeps_the_last_good_checkpoint(tiny, name, monkeypatch, capsys):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with monkeypatch.context() as patch:
            at_step(patch, 4, full)
            flags = [*TINY, *SCRIPTS[name].split(), "--steps", "6", "--save-every", "2"]
            error_of(capsys, name, *flags, "--out", "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_checkpoint("r")["step"] == 2
    assert not list((tiny / "r").glob("*.tmp"))
    run(name, "--resume", "r")
    assert read_checkpoint("r")["step"] == 6


@every_script
def test_two_processes_do_not_train_in_one_run(tiny, name, capsys):
    train(name, "--steps", "2", "--out", "r")
    with locked("r/.lock"):
        error = error_of(capsys, name, "--resume", "r", "--steps", "4")
    assert "another process is training in 'r'" in error


# ------------------------------------------------------------------------------------- bad input


def make_bad_files(folder):
    (folder / "empty").mkdir()
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 and so on")
    (folder / "broken.pt").write_bytes(b"not a checkpoint")
    (folder / "text.txt").write_text("hello")
    torch.save({"a": 1}, folder / "other.pt")
    torch.save({"script": "dcgan", "format": 1}, folder / "old.pt")
    (folder / "taken").mkdir()
    (folder / "taken/file").write_text("mine")
    pixels = np.random.default_rng(1).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "other.npz", images=pixels, labels=np.arange(50) % 3)


BAD = [
    ("--no-such-flag", "unrecognized arguments"),
    ("--epochs many", "whole number"),
    ("--batch 1", "whole number of at least 2"),
    ("--steps -5", "whole number"),
    ("--lr nan", "a number"),
    ("--ema 1.0", "below 1"),
    ("--size 7", "argument --size: "),
    ("--preset dogs", "invalid choice"),
    ("--dims 100", "invalid choice"),
    ("--precision fp16", "invalid choice"),
    ("--seed 99999999999999", "below"),
    ("--data tiny.npz --batch 8 --width 99999999999", "is not a whole number"),
    ("--data tiny.npz --batch 8 --width 2000000000", "--width"),
    ("--data tiny.npz --batch 8 --preset PRESET --size 16 --eval-images 1", "needs 2 images"),
    ("--data tiny.npz --batch 8 --preset PRESET --size 16 --weights nofile", "'nofile'"),
    ("--resume r/last.pt", "takes a run directory: --resume r\n"),
    ("--resume r --out s", "leave out --out"),
    ("--data no-such-set", "no data set or path"),
    ("--data empty", "no images"),
    ("--data broken.zip", "not a readable zip"),
    ("--data text.txt", "no folder, zip or .npz"),
    ("--data animals", "data/downloads/animals"),
    ("--data tiny.npz --batch 101", "100 images"),
    ("--data tiny.npz --device cuda:77", "no device 'cuda:77'"),
    ("--data tiny.npz --device tpu", "no device 'tpu'"),
    ("--data tiny.npz --batch 8 --out taken", "not empty"),
    ("--data tiny.npz --batch 8 --out text.txt", "not empty"),
    ("--resume nowhere", "no checkpoint 'nowhere'"),
    ("--resume empty", "no last.pt"),
    ("--resume", "no run of"),
    ("--resume broken.pt", "damaged"),
    ("--resume other.pt", "not a checkpoint"),
    ("--resume old.pt", "first edition"),
    ("--resume r", "is finished"),
    ("--resume r --width 8 --steps 9", "cannot become 8"),
    ("--resume r --data other.npz --steps 9", "not the data"),
]


@every_script
@pytest.mark.parametrize("flags, words", BAD, ids=[flags for flags, _ in BAD])
def test_bad_input_is_one_line_and_loses_nothing(tiny, name, flags, words, capsys):
    make_bad_files(tiny)
    flags = flags.replace("PRESET", PRESET[name]).split()
    if "r" in flags or "r/last.pt" in flags:
        train(name, "--steps", "2", "--out", "r")
    files = {p: p.read_bytes() for p in tiny.rglob("*") if p.is_file() and p.parts[-2] != "data"}
    assert words in error_of(capsys, name, *flags)
    assert {path: path.read_bytes() for path in files} == files
    assert not (tiny / "runs").exists()


@every_script
def test_a_checkpoint_that_does_not_fit(tiny, name, capsys):
    """Of another script, of a changed network, or damaged: one line, and the file stays."""
    train(name, "--steps", "1", "--out", "r")
    good = read_checkpoint("r")

    def error(changed):
        torch.save(changed, "r/last.pt")
        return error_of(capsys, name, "--resume", "r", "--steps", "2")

    assert "resume it with that script" in error({**good, "script": "mygan"})
    assert "has changed since" in error({**good, "models": {}})
    flags = {**good["flags"], "width": 8}
    assert "has changed since" in error({**good, "flags": flags})


@every_script
def test_only_the_flags_of_a_short_set_may_change(tiny, name, capsys):
    script = training.load_script(name)
    train(name, "--steps", "2", "--out", "r")
    args, _ = script.parse_args(["--resume", "r", "--steps", "9", "--log-every", "1"])
    assert args.steps == 9 and args.log_every == 1 and args.width == 4 and args.batch == 8
    args, typed = script.parse_args(["--resume", "r", "--epochs", "3"])
    assert args.steps is None and typed == {"resume", "epochs"}
    for flags in (["--seed", "1"], ["--batch", "16"], ["--lr", "0.5"], ["--ema", "0.5"]):
        assert "cannot become" in error_of(capsys, name, "--resume", "r", *flags)


@every_script
def test_fit_and_limit_reach_the_data(tiny, name, capsys):
    make_folder(tiny / "photos", [f"{c}/{i}.png" for c in "ab" for i in range(20)], size=(24, 16))
    datasets.say_once.cache_clear()
    flags = "--data photos --batch 4 --fit squash --limit-per-class 9".split()
    hold_out = ["--hold-out", "4"] if name in AUTOENCODERS else []
    train(name, *flags, *hold_out, "--dry-run")
    out, err = capsys.readouterr()
    assert f"18 of {36 if hold_out else 40} training images are used (at most 9 a class)" in err
    assert "18 images (3, 16, 16), squashed to 16x16 (bicubic, antialiased), " in out


def test_a_run_on_a_part_of_the_data_is_not_resumed_on_another(tiny, capsys):
    """What it was trained on is in the checkpoint and in the first lines. Older checkpoints lack
    the flags: those were trained on all images, cropped."""
    datasets.say_once.cache_clear()
    whole = datasets.load("tiny.npz", 16)
    train("dcgan", "--steps", "2", "--out", "r", "--limit-per-class", "33", "--fit", "pad")
    out, err = capsys.readouterr()
    assert "99 of 100 training images are used (at most 33 a class)" in err
    assert (
        "tiny 16x16, 99 images (16x16 as they are, none of them held out, at most 33 a cla" in out
    )
    assert "3 classes: a 33, b 33, c 33" in out
    checkpoint = read_checkpoint("r")
    about = checkpoint["data"]
    assert about["count"] == 99 and about["counts"] == [33, 33, 33]
    assert about["fingerprint"] == whole.fingerprint

    def refused(*flags):
        return error_of(capsys, "dcgan", "--resume", "r", "--steps", "4", *flags)

    assert "--fit was pad in this run and cannot become crop" in refused("--fit", "crop")
    words = "--limit-per-class was 33 in this run and cannot become"
    for limit in ("0", "34"):
        assert words in refused("--limit-per-class", limit)
    run("dcgan", "--resume", "r", "--steps", "4", "--limit-per-class", "33", "--fit", "pad")
    assert read_checkpoint("r")["data"]["count"] == 99

    train("dcgan", "--steps", "2", "--out", "old")
    older = torch.load("old/last.pt", weights_only=True)
    for flag in ("fit", "limit_per_class"):
        del older["flags"][flag]
    torch.save(older, "old/last.pt")
    for flags in (["--fit", "squash"], ["--limit-per-class", "9"]):
        error = error_of(capsys, "dcgan", "--resume", "old", "--steps", "3", *flags)
        assert f"cannot become {flags[1]}" in error
    run("dcgan", "--resume", "old", "--steps", "3", "--fit", "crop", "--limit-per-class", "0")
    flags = read_checkpoint("old")["flags"]
    assert flags["fit"] == "crop" and flags["limit_per_class"] == 0
    for flag in ("fit", "limit_per_class"):
        torch.save({**older, "flags": {**older["flags"], flag: [1]}}, "old/last.pt")
        assert "damaged" in error_of(capsys, "dcgan", "--resume", "old", "--steps", "4")


def test_a_limit_that_no_class_reaches_changes_nothing(tiny):
    train("vae_mlp", "--steps", "3", "--out", "a")
    train("vae_mlp", "--steps", "3", "--out", "b", "--limit-per-class", "34", "--fit", "squash")
    assert_same("a", "b")


def test_presets_prepare_images_as_the_reports_did():
    """R0 squashed its animals, and R1 trained on 1,000 paintings of each style."""
    squashed = set()
    for name in SCRIPTS:
        for preset, flags in training.load_script(name).PRESETS.items():
            if flags.get("data") == "animals":
                squashed.add((name, preset))
            assert flags.get("fit") == ("squash" if flags.get("data") == "animals" else None)
            limit = 1000 if flags.get("data") == "artbench10" else None
            assert flags.get("limit_per_class") == limit
    assert squashed == {(s, p) for s in ("cvae", "cgan", "ddpm") for p in ("animals", "best")}


@every_script
def test_default_run_is_a_preset_and_flags_win(name):
    script = training.load_script(name)

    def args(*flags):
        return script.parse_args([*flags])[0]

    assert args().preset == "shapes" and args().data == "shapes" and args().size in (16, 32)
    assert args("--width", "8").width == 8
    assert args("--epochs", "3").steps is None  # a length typed beats that of the preset
    assert args("--data", "x.zip").preset is None
    assert getattr(args("--lr", "0.5"), "lr_d", None) is None  # one rate beats the preset's two


@every_script
def test_an_unknown_key_in_a_preset_is_an_error(name, monkeypatch):
    script = training.load_script(name)
    monkeypatch.setitem(script.PRESETS, "odd", {"no_such_flag": 1})
    with pytest.raises(AssertionError, match="no_such_flag"):
        script.parse_args(["--preset", "odd"])


@every_script
def test_dry_run_trains_nothing(tiny, name, capsys):
    train(name, "--dry-run", "--epochs", "3")
    out = capsys.readouterr().out
    assert "parameters" in out and "Nothing was trained" in out and not (tiny / "runs").exists()


@pytest.mark.parametrize(
    "name, flag",
    [
        ("dcgan", "--d-steps"),
        ("cgan", "--d-steps"),
        ("gan_resnet", "--d-steps"),
        ("wgan_gp", "--critic-steps"),
    ],
)
@pytest.mark.parametrize("batch, updates, steps", [(50, 5, 4), (20, 3, 17), (20, 4, 12)])
def test_epochs_are_passes_over_the_data(tiny, name, flag, batch, updates, steps, capsys):
    """10 passes over the 100 images, drawn by several updates of one network in each step."""
    train(name, flag, str(updates), "--batch", str(batch), "--epochs", "10", "--dry-run")
    out = capsys.readouterr().out
    each = 100 / batch / updates
    assert f"plan: {steps} steps of {batch} images, {each:.7g} an epoch ({steps / each:.1f} " in out
    assert abs(steps * updates * batch - 10 * 100) <= updates * batch / 2


def test_a_script_that_is_imported_never_ends_the_interpreter(tmp_path):
    """With a foreign datasets.py, say Hugging Face's, importing is an ImportError."""
    shutil.copy(ROOT / "dcgan.py", tmp_path)
    (tmp_path / "datasets.py").write_text("def load_dataset(name): ...\n")
    code = "try:\n    import dcgan\nexcept ImportError as error:\n    print('caught', error.name)"
    result = program(tmp_path, "-c", code)
    assert result.returncode == 0 and result.stdout.startswith("caught")


# ------------------------------------------------------------------------------------- evaluation


@every_script
def test_evaluation_without_weights_goes_on(tiny, name, monkeypatch, capsys):
    """best.pt, metrics.json and the table, where the Inception weights cannot be had."""
    inception = importlib.import_module("inception")
    monkeypatch.setattr(inception, "official_path", lambda: tiny / "absent.pth")
    monkeypatch.setattr(inception, "download", lambda: "no network")
    conditional = functools.partial(metrics.conditional, steps=3)
    monkeypatch.setattr(metrics, "conditional", conditional)
    train(name, "--preset", PRESET[name], "--steps", "2", "--eval-images", "10", "--out", "r")
    out = capsys.readouterr().out
    assert "FID-768" in out and "not measured here" in out and "collapse (pixels)" in out
    result = json.loads((tiny / "r/metrics.json").read_text(encoding="utf-8"))
    values = {value["name"]: value for value in result["values"]}
    assert all(values[n]["value"] is None for n in values if n.startswith(("FID", "KID")))
    assert values["collapse (pixels)"]["pairs"] == 90
    assert not (tiny / "r/best.pt").exists() and result["step"] == 2
    assert ("bound (nats)" in values) == (name in AUTOENCODERS)
    assert ("class accuracy" in values) == (name in CONDITIONAL)


@every_script
def test_numbers_are_written_before_any_plot(tiny, name, monkeypatch):
    """A plot that fails must not cost them."""
    small = functools.partial(metrics.conditional, steps=3)
    monkeypatch.setattr(metrics, "conditional", small)

    def broken(*_, **__):
        assert (tiny / "r/metrics.json").exists()
        raise InputError("no plot today")

    monkeypatch.setattr(report, "report", broken)
    flags = ["--preset", PRESET[name], "--steps", "1", "--eval-images", "8", "--dims", "64"]
    with pytest.raises(SystemExit):
        train(name, *flags, "--out", "r")
    assert (tiny / "r/metrics.json").exists()


@every_script
def test_best_is_the_lowest_fid(tiny, name, monkeypatch):
    scores = iter([{"fid_768": 9.0, "kid_768": 0.1}, {"fid_768": 4.0}, {"fid_768": 6.0}])
    monkeypatch.setattr(metrics, "usable_dims", lambda dims, weights: (None, dims))
    monkeypatch.setattr(metrics, "curve", lambda *_, **__: next(scores))
    train(name, "--steps", "6", "--eval-every", "2", "--eval-images", "10", "--out", "r")
    assert read_checkpoint("r/best.pt")["step"] == 4 and read_checkpoint("r")["best"] == 4.0
    assert [row["fid_768"] for row in log("r") if row["fid_768"]] == ["9.0", "4.0", "6.0"]
    scores = iter([{"fid_64": 5.0}])  # another protocol: 5.0 is not worse than 4.0, but new
    run(name, "--resume", "r", "--steps", "8", "--dims", "64")
    assert read_checkpoint("r/best.pt")["step"] == 8 and read_checkpoint("r")["best"] == 5.0


@every_script
def test_a_preset_of_a_report_measures_a_curve(tiny, name, monkeypatch):
    """20 times, but at least 100 steps apart, unless the preset or the command line says more."""
    script = training.load_script(name)
    monkeypatch.setattr(metrics, "usable_dims", lambda dims, weights: (None, dims))
    monkeypatch.setattr(metrics, "curve", lambda *_, **__: {"fid_768": 1.0})
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: [])
    monkeypatch.setattr(metrics, "conditional", lambda *_, **__: [])
    common = [*TINY, "--preset", PRESET[name], "--eval-images", "10"]
    if name == "ddpm":
        common += ["--sample-steps", "2"]
    points = [100, 101]
    if script.PRESETS[PRESET[name]].get("eval_every"):
        points = [3]
    if name == "gan_resnet":  # a hundred steps of its networks would take long
        zero = torch.zeros(())
        monkeypatch.setattr(script, "discriminator_step", lambda *_: (zero, zero))
        monkeypatch.setattr(script, "generator_step", lambda *_: (zero, zero))
    run(name, *common, "--steps", str(points[-1]), "--out", "r")
    assert [int(row["step"]) for row in log("r") if row["fid_768"]] == points
    run(name, *common, "--steps", "2", "--eval-every", "0", "--out", "never")
    assert "fid_768" not in log("never")[-1]
    assert (tiny / "never/metrics.json").exists()


@pytest.mark.parametrize("name", ["dcgan", "cgan", "gan_resnet", "wgan_gp"])
@pytest.mark.parametrize("stop", [False, True])
def test_statistics_of_averaged_weights(tiny, name, stop, monkeypatch):
    """They are of latents that go through the averaged generator, at the end or if stopped."""
    if stop:
        monkeypatch.setattr(training.Run, "should_stop", lambda run: run.step == 3)
        monkeypatch.setattr(training.Run, "goodbye", lambda run: 130)
    with contextlib.suppress(SystemExit):
        train(name, "--steps", "5", "--out", "r")
    checkpoint = read_checkpoint("r")
    assert checkpoint["step"] == (3 if stop else 5)
    _, model = training.open_model(checkpoint)
    inputs = {}

    def look(layer, args):
        inputs.setdefault(layer, []).append(args[0].transpose(0, 1).flatten(1))

    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    script = training.load_script(name)
    seed = checkpoint["flags"]["seed"] + 4
    copied = {norm: (norm.running_mean.clone(), norm.running_var.clone()) for norm in norms}
    model.train()
    z = training.latents(1000, model.latent_dim, seed)
    rows = [z]
    if hasattr(script, "asked_labels"):
        labels = script.asked_labels(model, 1000, seed)
        rows.append(training.one_hot(labels, model.classes))
    growth = [model.stage, model.alpha] if name == "wgan_gp" else []
    for chunk in zip(*(tensor.split(100) for tensor in rows), strict=True):
        model(*chunk, *growth)
    for hook in hooks:
        hook.remove()
    assert inputs
    for norm, batches in inputs.items():
        mean, variance = copied[norm]
        means = torch.stack([batch.mean(1) for batch in batches]).mean(0)
        torch.testing.assert_close(mean, means, rtol=1e-3, atol=1e-5)
        variances = torch.stack([batch.var(1) for batch in batches]).mean(0)
        torch.testing.assert_close(variance, variances, rtol=1e-3, atol=1e-6)


@every_script
def test_measuring_does_not_change_training(tiny, name, monkeypatch):
    monkeypatch.setattr(metrics, "usable_dims", lambda dims, weights: (None, dims))
    monkeypatch.setattr(metrics, "curve", lambda *_, **__: {})
    train(name, "--steps", "8", "--out", "a")
    often = ["--eval-every", "2", "--eval-images", "10", "--sample-every", "1"]
    train(name, "--steps", "8", *often, "--out", "b")
    assert_same("a", "b")


def test_an_evaluation_says_what_it_measured_and_what_not(tiny, small_weights, capsys):
    more = f"--eval-every 2 --eval-images 8 --weights {small_weights} --dims 64 2048"
    train("dcgan", "--steps", "4", "--out", "r", *more.split())
    out = capsys.readouterr().out
    assert out.count("not measured here") == 1
    assert "step 2: FID-64 " in out and "the best so far: best.pt" in out
    assert (tiny / "r/best.pt").exists()


def test_flags_that_no_evaluation_reads(tiny, capsys):
    train("dcgan", "--steps", "1", "--weights", "w.pth", "--eval-images", "8")
    assert "--weights do nothing" in capsys.readouterr().err


# ------------------------------------------------------------------------------- a trained model


@every_script
def test_kept_weights_make_the_images_of_their_step(tiny, name):
    train(name, "--steps", "4", "--keep-every", "2", "--out", "r")
    assert sorted(path.name for path in (tiny / "r/kept").iterdir()) == ["000002.pt", "000004.pt"]
    train(name, "--steps", "2", "--out", "half")
    for kept, whole in (("r/kept/000002.pt", "half"), ("r/kept/000004.pt", "r")):
        checkpoint = read_checkpoint(kept)
        assert len(checkpoint["models"]) == 2 and checkpoint["optimizers"] == {}
        script, model = training.open_model(checkpoint)
        _, expected = training.open_model(read_checkpoint(whole))
        assert torch.equal(script.generate(model, 9, 1), script.generate(expected, 9, 1))
    run(name, "--resume", "r", "--steps", "6", "--keep-every", "3")
    assert (tiny / "r/kept/000006.pt").exists() and not (tiny / "r/kept/000003.pt").exists()


def test_kept_weights_cannot_be_resumed(tiny, capsys):
    train("dcgan", "--steps", "1", "--keep-every", "1", "--out", "r")
    assert "takes a run directory" in error_of(capsys, "dcgan", "--resume", "r/kept/000001.pt")


@every_script
def test_image_k_depends_on_the_seed_and_k_only(tiny, name):
    train(name, "--steps", "3", "--out", "r")
    script, model = training.open_model(read_checkpoint("r"))
    assert not model.training
    size = 8 if name == "wgan_gp" else 16  # its first stage of growth
    many = script.generate(model, 130, seed=5)
    assert many.shape == (130, 3, size, size) and many.dtype == torch.uint8
    for first, n in ((0, 3), (17, 20), (100, 30)):
        part = script.generate(model, n, seed=5, first=first)
        assert (part.int() - many[first : first + n].int()).abs().max() <= 1
    assert not torch.equal(many[:3], script.generate(model, 3, seed=6))
    for kind in script.WALKS:
        walk = script.walk(model, kind, 2, 6, seed=3)
        assert walk.shape == (12, 3, size, size)
        assert torch.equal(walk, script.walk(model, kind, 2, 6, seed=3))
    if hasattr(script, "asked_labels"):
        labels = script.asked_labels(model, 130, 5)
        assert labels.unique().tolist() == [0, 1, 2]
        assert torch.equal(labels[40:60], script.asked_labels(model, 20, 5, first=40))
        lions = script.generate(model, 4, seed=5, label=1)
        assert lions.shape == (4, 3, size, size)


@every_script
def test_averaged_and_plain_weights(tiny, name):
    train(name, "--steps", "6", "--out", "r")
    checkpoint = read_checkpoint("r")
    images = []
    for weights in ("ema", "plain"):
        script, model = training.open_model(checkpoint, weights=weights)
        images.append(script.generate(model, 4))
    assert not torch.equal(*images)
    del checkpoint["models"]["ema"]  # a run without an average: both are the plain weights
    _, model = training.open_model(checkpoint, weights="ema")
    assert torch.equal(script.generate(model, 4), images[1])


@every_script
def test_pictures_leave_the_model_in_training_mode(tiny, name):
    """Without an average, the network in training makes the pictures. They change nothing."""
    flags = [*TINY, "--steps", "4", "--eval-images", "0"]
    run(name, *flags, "--sample-every", "1", "--out", "a")
    run(name, *flags, "--sample-every", "4", "--out", "b")
    assert_same("a", "b")


# ------------------------------------------------------------------------------------------ copies

CHANGED = {  # script: (text, what a student writes there instead)
    "dcgan": (
        "nn.Sequential(*layers, nn.Tanh())",
        "nn.Sequential(*layers, nn.Conv2d(channels, channels, 1), nn.Tanh())",
    ),
    "cvae": ("EMBEDDING = 128", "EMBEDDING = 96"),
}


@pytest.mark.parametrize("name, copy", [("dcgan", "mygan"), ("cvae", "cvae (1)")])
def test_a_renamed_and_changed_copy(tiny, name, copy):
    """It trains and resumes with three files beside it; with the tools it is sampled, measured and
    reported. In processes of their own, without PYTHONPATH."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    old, new = CHANGED[name]
    assert text.count(old) == 1
    (tiny / f"{copy}.py").write_text(text.replace(old, new), encoding="utf-8")
    for file in ("training", "datasets", "sources"):
        shutil.copy(ROOT / f"{file}.py", tiny)

    def ok(*words):
        result = program(tiny, *words, PYTHONPATH="")
        assert result.returncode == 0, result.stderr
        return result

    flags = [*TINY, *SCRIPTS[name].split()]
    first = ok(f"{copy}.py", *flags, "--steps", "4", "--eval-every", "4")
    lines = [line.split(":")[0] for line in first.stderr.splitlines()]
    assert lines == ["metrics.py is not used", "report.py is not used"]
    words = shlex.split(first.stdout.split("try next: ")[1])  # as a shell would read them
    assert [word for word in words if word.endswith(".py")] == [f"{copy}.py"]
    ok(f"{copy}.py", "--resume", "--steps", "8")
    ok(f"{copy}.py", *flags, "--steps", "8", "--out", "whole")
    assert_same("whole", f"runs/{copy}-tiny-1")
    for file in ("sample.py", "metrics.py", "inception.py", "report.py", "page.py", "page.html"):
        shutil.copy(ROOT / file, tiny)
    run_directory = f"runs/{copy}-tiny-1"
    assert "report.py" not in ok(f"{copy}.py", "--resume", run_directory, "--steps", "9").stderr
    for file in ("losses.png", "report.html"):
        assert (tiny / run_directory / file).exists()
    ok("sample.py", run_directory, "--count", "6", "--to", "images/")
    assert len(list((tiny / "images").glob("**/*.png"))) == 6
    ok("report.py", run_directory)
    if name == "cvae":
        assert (tiny / run_directory / "classes.png").exists()
    measured = ok("metrics.py", "tiny.npz", run_directory, "--eval-images", "8", "--no-classes")
    assert "collapse (pixels)" in measured.stdout


def test_sample_and_report_answer_a_changed_network_in_one_line(tiny, capsys, monkeypatch):
    train("dcgan", "--steps", "1", "--out", "r")
    checkpoint = read_checkpoint("r")
    checkpoint["flags"]["width"] = 8
    torch.save(checkpoint, "r/last.pt")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_program(functools.partial(sample.main, ["r"]))
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "does not fit dcgan.py" in error
    monkeypatch.setattr(report, "report", PLOTS)
    report.report("r")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "does not fit dcgan.py" in error


# --------------------------------------------------------------------------------------------- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_script
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_runs_are_saved_and_resumed(tiny, name, precision):
    """Across a capture: the resumed run ends much closer to the uninterrupted one than it began."""
    flags = [*TINY, *SCRIPTS[name].split(), "--device", "cuda", "--precision", precision]
    # Without `deterministic`, a GPU adds in another order each time, and gan_resnet.py in fp32 went
    # another way: far from each other after 10 steps.
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
        run(name, *flags, "--steps", "20", "--out", "a")
        run(name, *flags, "--steps", "10", "--out", "b")
        half = read_checkpoint("b")
        run(name, "--resume", "b", "--steps", "20")
    a = read_checkpoint("a")
    b = read_checkpoint("b")
    assert a["drawn"] == b["drawn"] and torch.equal(a["rng"]["cuda"], b["rng"]["cuda"])

    def distance(one, other):  # of weights, without BatchNorm's statistics
        total = 0.0
        for model, state in one["models"].items():
            for key, value in state.items():
                if "running" not in key and value.is_floating_point():
                    total += (value - other["models"][model][key]).square().sum()
        return total**0.5

    assert distance(a, b) < 0.25 * distance(a, half)
