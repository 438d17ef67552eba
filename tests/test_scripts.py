"""What every model script promises: exact resume, no half-written files, one line for bad input. One row per script."""

import csv
import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import datasets
import report
from datasets import InputError, read_checkpoint

PLOTS = report.report

TINY = "--data tiny.npz --size 16 --width 4 --batch 8 --log-every 3 --device cpu --precision fp32".split()
# script -> flags that switch on everything with a state of its own
VAE = "--ema 0.9 --lr-decay 0.99 --likelihood sigma --kl-warmup 15 --hold-out 10 --latent-dim 6"
SCRIPTS = {
    "dcgan": "--ema 0.9 --noise 0.1 --noise-steps 15 --lr-decay 0.99 --d-steps 2".split(),
    # the second stage of growth begins where the tests interrupt and resume
    "wgan_gp": "--ema 0.9 --noise 0.1 --noise-steps 15 --lr-decay 0.99 --critic-steps 2 --normalize channel --stages 2 "
    "--stage-steps 10 --fade-steps 4".split(),
    "vae_mlp": VAE.split(),
    "cvae": f"{VAE} --balance".split(),
    "cgan": "--ema 0.9 --noise 0.1 --noise-steps 15 --lr-decay 0.99 --d-steps 2 --g-steps 2 --r1 1 --r1-every 3 "
    "--augment --weight-decay 0.1 --latent-dim 6 --balance".split(),
    "ddpm": "--ema 0.9 --lr-decay 0.99 --blocks 1 --timesteps 20 --sample-steps 2 --guidance 2 --eta 0.5 --flip "
    "--balance".split(),
}
PRESET = {"dcgan": "cats", "wgan_gp": "small-gan", "vae_mlp": "cats", "cvae": "animals", "cgan": "animals",
          "ddpm": "mnist"}  # fmt: skip
AUTOENCODERS, CONDITIONAL = ("vae_mlp", "cvae"), ("cvae", "cgan", "ddpm")
every_script = pytest.mark.parametrize("name", SCRIPTS)


@pytest.fixture
def tiny(here, monkeypatch):
    """A current folder with 100 labelled colour images of 16x16 in tiny.npz. Runs end without plots, which take longer
    than all their steps; test_a_run_directory has them."""
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 4, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    np.savez(here / "tiny.npz", images=images, labels=np.arange(100) % 3, classes=["a", "b", "c"])
    return here


def run(name, *flags):
    """The script's program in this process; bad input ends in SystemExit as it does in a process of its own."""
    script = importlib.import_module(name)
    datasets.run_program(f"{name}.py", script.main, script.parse_args([*flags]))


def train(name, *flags):
    run(name, *TINY, *SCRIPTS[name], *flags)


def assert_same(a, b):
    """Two checkpoints hold bit-identical networks and optimisers."""
    a, b = read_checkpoint(a), read_checkpoint(b)
    assert a["step"] == b["step"] and a["drawn"] == b["drawn"]
    for network in a["networks"]:
        for key, value in a["networks"][network].items():
            assert torch.equal(value, b["networks"][network][key]), (network, key)
    for optimiser in a["optimisers"]:
        for index, state in a["optimisers"][optimiser]["state"].items():
            for key, value in state.items():
                assert torch.equal(value, b["optimisers"][optimiser]["state"][index][key]), (optimiser, index, key)
    assert torch.equal(a["rng"]["cpu"], b["rng"]["cpu"])


def rows(run_directory):
    with open(f"{run_directory}/log.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------ resume


@every_script
def test_a_run_directory(tiny, name, capsys, monkeypatch):
    monkeypatch.setattr(report, "report", PLOTS)
    train(name, "--steps", "7", "--sample-every", "3")
    out = capsys.readouterr().out
    run_directory = tiny / f"runs/{name}-tiny-1"
    assert f"--load {run_directory.relative_to(tiny)}" in out
    assert [p.name for p in sorted((run_directory / "samples").iterdir())] == [
        "000000.png", "000003.png", "000006.png", "000007.png"
    ]  # fmt: skip
    rows_of_samples = 3 if name in CONDITIONAL else 8  # a row for each class
    assert Image.open(run_directory / "samples/000007.png").size == (8 * 18 - 2, rows_of_samples * 18 - 2)
    more = {
        "vae_mlp": ["reconstructions.gif"],
        "cvae": ["reconstructions.gif", "classes.png"],
        "ddpm": ["denoising.png", "guidance.png"],
    }.get(name, [])
    for picture in ("losses.png", "progress.gif", "strip.png", "interpolation.png", *more):
        Image.open(run_directory / picture).verify()
    args = json.loads((run_directory / "args.json").read_text(encoding="utf-8"))
    count = 90 if "--hold-out" in SCRIPTS[name] else 100
    assert args["flags"]["width"] == 4 and args["data"]["count"] == count and args["script"] == name
    assert [row["step"] for row in rows(run_directory)] == ["3", "6", "7"]
    assert all(float(value) == float(value) for row in rows(run_directory) for value in row.values())
    checkpoint = read_checkpoint(run_directory)
    assert checkpoint["step"] == 7 and checkpoint["data"]["fingerprint"] == args["data"]["fingerprint"]
    train(name, "--steps", "1")
    assert (tiny / f"runs/{name}-tiny-2/last.pt").exists()


@every_script
def test_resume_is_exact(tiny, name):
    train(name, "--steps", "20", "--out", "a")
    train(name, "--steps", "10", "--save-every", "4", "--sample-every", "3", "--out", "b")
    torch.manual_seed(12345)  # another state than a fresh process would have
    torch.randn(7)
    run(name, "--resume", "b", "--steps", "20")
    assert_same("a", "b")

    def losses(run_directory):
        # row 10 closes the log of the first part early, and so the next one (11 or 12) has fewer steps than it had
        keep = [row for row in rows(run_directory) if row["step"] not in ("10", "11", "12")]
        return [{k: v for k, v in row.items() if k not in ("seconds", "img_per_s")} for row in keep]

    assert losses("a") == losses("b") and len(losses("a")) == 6


@every_script
@pytest.mark.parametrize(
    "number, place", [(signal.SIGINT, "train_step"), (signal.SIGTERM, "train_step"), (signal.SIGINT, "save_picture")]
)
def test_a_signal_saves_and_says_how_to_go_on(tiny, name, number, place, monkeypatch, capsys):
    """Also one that comes while a picture is made, between two steps."""
    script = importlib.import_module(name)
    train(name, "--steps", "12", "--out", "a")
    original = getattr(script, place)
    calls = []

    def interrupted(*arguments):
        if len(calls) == 4:
            signal.raise_signal(number)
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(script, place, interrupted)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        train(name, "--steps", "12", "--sample-every", "1", "--out", "b")
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    step = 5 if place == "train_step" else 2 if name in AUTOENCODERS else 4  # they save two pictures each time
    assert f"saved at step {step} of 12" in (out := capsys.readouterr().out)
    assert f"python {name}.py --resume b" in out and read_checkpoint("b")["step"] == step
    monkeypatch.setattr(script, place, original)
    run(name, "--resume", "b")
    assert_same("a", "b")
    assert [row["step"] for row in rows("b")] == [row["step"] for row in rows("a")]


@every_script
def test_kill_at_any_moment_leaves_a_checkpoint_that_resumes(tiny, name):
    command = [sys.executable, ROOT / f"{name}.py", *TINY, "--steps", "100000", "--save-every", "1", "--out", "r"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    last, step = tiny / "r/last.pt", -1
    for pause in (0.0, 0.37) if name == "dcgan" else (0.13,):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline, seen = time.time() + 120, last.stat().st_mtime_ns if last.exists() else 0
        while not (last.exists() and last.stat().st_mtime_ns > seen):
            assert process.poll() is None and time.time() < deadline, process.stderr.read()
            time.sleep(0.002)
        time.sleep(pause)
        process.kill()
        process.wait()
        process.stderr.close()
        assert read_checkpoint("r")["step"] >= step
        step = read_checkpoint("r")["step"]
        command = [sys.executable, ROOT / f"{name}.py", "--resume", "r"]
    run(name, "--resume", "r", "--steps", str(step + 5))
    assert read_checkpoint("r")["step"] == step + 5
    assert not [row for row in rows("r") if int(row["step"]) > step + 5]


@every_script
def test_not_finite_stops_and_keeps_the_last_good_checkpoint(tiny, name, capsys):
    with pytest.raises(SystemExit) as stop:
        train(name, "--steps", "30", "--lr", "1e39", "--save-every", "1", "--out", "r")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "not finite at step 1" in error and "r/last.pt" in error
    checkpoint = read_checkpoint("r")
    assert checkpoint["step"] == 0
    assert all(v.isfinite().all() for n in checkpoint["networks"].values() for v in n.values())


@every_script
def test_a_loss_that_becomes_nan_names_its_step(tiny, name, monkeypatch, capsys):
    script = importlib.import_module(name)
    original, steps = script.train_step, iter(range(30))
    monkeypatch.setattr(script, "train_step", lambda *given: original(*given) * (1 if next(steps) != 5 else torch.nan))
    with pytest.raises(SystemExit):
        train(name, "--steps", "30", "--save-every", "4", "--log-every", "10", "--out", "r")
    assert "not finite at step 6" in capsys.readouterr().err and read_checkpoint("r")["step"] == 4


@every_script
@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_keeps_the_last_good_checkpoint(tiny, name, monkeypatch, capsys):
    import resource

    script = importlib.import_module(name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    original, steps = script.train_step, iter(range(6))

    def fill_the_disk(*given):
        if next(steps) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        return original(*given)

    monkeypatch.setattr(script, "train_step", fill_the_disk)
    try:
        with pytest.raises(SystemExit) as stop:
            train(name, "--steps", "6", "--save-every", "2", "--out", "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert read_checkpoint("r")["step"] == 2 and not [p for p in (tiny / "r").iterdir() if p.suffix == ".tmp"]
    monkeypatch.setattr(script, "train_step", original)
    run(name, "--resume", "r")
    assert read_checkpoint("r")["step"] == 6


@every_script
def test_two_processes_do_not_train_in_one_run(tiny, name, capsys):
    train(name, "--steps", "2", "--out", "r")
    with datasets.locked("r/.lock"), pytest.raises(SystemExit) as stop:
        run(name, "--resume", "r", "--steps", "4")
    assert stop.value.code == 2 and "another process is training in 'r'" in capsys.readouterr().err


@every_script
def test_a_run_killed_before_its_first_checkpoint_is_begun_again(tiny, name):
    (tiny / "r").mkdir()
    for left in (".lock", "args.json", "log.csv", "last.pt.123.tmp"):
        (tiny / "r" / left).write_text("half")
    train(name, "--steps", "1", "--out", "r")
    assert read_checkpoint("r")["step"] == 1


# -------------------------------------------------------------------------------------------------- copy alone


def program(folder, *arguments, **environment):
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@every_script
def test_copied_alone_it_trains_resumes_and_samples(tiny, name):
    """In processes of their own, with nothing but datasets.py beside. Resume is exact between processes too."""
    shutil.copy(ROOT / f"{name}.py", tiny)
    shutil.copy(ROOT / "datasets.py", tiny)
    common = [f"{name}.py", *TINY, *SCRIPTS[name]]
    first = program(tiny, *common, "--steps", "10", "--eval-every", "10", "--out", f"runs/{name}-tiny-7")
    assert first.returncode == 0, first.stderr
    lines = first.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["metrics.py is not used", "report.py is not used"], lines
    second = program(tiny, f"{name}.py", "--resume", "--steps", "20")
    assert second.returncode == 0, second.stderr
    train(name, "--steps", "20", "--out", "a")
    assert_same("a", f"runs/{name}-tiny-7")
    made = program(tiny, f"{name}.py", "--load", "a", "--generate", "5", "--to", "pictures")
    assert made.returncode == 0 and len(list((tiny / "pictures").glob("*.png"))) == 5


@every_script
def test_a_foreign_or_missing_datasets_is_one_line(tmp_path, name):
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    (tmp_path / "datasets.py").write_text("def load_dataset(name): ...\n")
    result = program(tmp_path, f"{name}.py")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "datasets.py" in result.stderr


@every_script
def test_foreign_metrics_and_report_are_one_line_each(tiny, name, monkeypatch, capsys):
    for module in ("metrics", "report"):
        monkeypatch.setitem(sys.modules, module, type(sys)(module))
        sys.modules[module].__file__ = f"/home/me/{module}.py"
    train(name, "--steps", "2", "--eval-every", "1", "--out", "r")
    err = capsys.readouterr().err
    assert "metrics.py is not ours" in err and "report.py is not ours" in err


@every_script
def test_help_and_typing_errors_need_no_torch(tmp_path, name):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    for arguments, code in ((["--help"], 0), (["--stpes", "3"], 2)):
        result = program(tmp_path, ROOT / f"{name}.py", *arguments, PYTHONPATH=str(tmp_path))
        assert result.returncode == code and "torch was imported" not in result.stderr
    assert result.stderr.count("\n") == 1


# --------------------------------------------------------------------------------------------------- bad input


def make_bad_files(folder):
    (folder / "empty").mkdir()
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 and so on")
    (folder / "broken.pt").write_bytes(b"not a checkpoint")
    (folder / "text.txt").write_text("hello")
    torch.save({"a": 1}, folder / "other.pt")
    (folder / "taken").mkdir()
    (folder / "taken/file").write_text("mine")


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
    ("--generate 4", "--load"),
    ("--load r", "--load goes with one of --generate N, --interpolate N"),
    ("--load r --resume r --generate 4", "--load goes with one of --generate N, --interpolate N"),
    ("--to grid.png", "--load"),
    ("--load r --generate 4 --lr 0.1", "--lr does nothing"),
    ("--seed 99999999999999", "below"),
    ("--data tiny.npz --batch 8 --width 99999999999", "memory"),
    ("--data tiny.npz --batch 8 --preset PRESET --size 16 --eval-images 1", "needs 2 images"),
    ("--data tiny.npz --batch 8 --preset PRESET --size 16 --weights nofile", "no file 'nofile'"),
    ("--resume r/last.pt", "takes a run directory: --resume r\n"),
    ("--load r --generate 4 --to grid.jpg", "give a .png"),
    ("--load r --generate 0", "whole number"),
    ("--resume r --out s", "leave out --out"),
    ("--data no-such-set", "no data set or path"),
    ("--data empty", "no images"),
    ("--data broken.zip", "not a readable zip"),
    ("--data text.txt", "no folder, zip or .npz"),
    ("--data animals", "its folder at data/downloads/animals\n"),
    ("--data tiny.npz --batch 101", "100 images"),
    ("--data tiny.npz --device cuda:77", "no device 'cuda:77'"),
    ("--data tiny.npz --device tpu", "no device 'tpu'"),
    ("--data tiny.npz --batch 8 --out taken", "not empty"),
    ("--data tiny.npz --batch 8 --out text.txt", "not empty"),
    ("--resume nowhere", "no checkpoint 'nowhere'"),
    ("--resume empty", "no last.pt"),
    ("--resume", "no run of"),
    ("--resume broken.pt", "damaged"),
    ("--resume r", "is finished"),
    ("--resume r --width 8 --steps 9", "cannot become 8"),
    ("--resume r --data other.npz --steps 9", "not the data"),
    ("--load other.pt --generate 4", "not a checkpoint of this"),
    ("--load r --generate 4 --to taken", "not an empty folder"),
]


@every_script
@pytest.mark.parametrize("flags, words", BAD, ids=[flags for flags, _ in BAD])
def test_bad_input_is_one_line_and_loses_nothing(tiny, name, flags, words, capsys):
    make_bad_files(tiny)
    flags = flags.replace("PRESET", PRESET[name])
    np.savez(tiny / "other.npz", images=np.random.default_rng(1).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8))
    if " r" in flags:
        train(name, "--steps", "2", "--out", "r")
    before = {p: p.read_bytes() for p in tiny.rglob("*") if p.is_file() and p.parts[-2] != "data"}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(name, *flags.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and err.count("\n") == 1 and words in err and "error: " in err, err
    assert {p: p.read_bytes() for p in before} == before
    assert not (tiny / "runs").exists()


@every_script
def test_a_checkpoint_of_another_script(tiny, name, capsys):
    train(name, "--steps", "1", "--out", "r")
    checkpoint = read_checkpoint("r")
    checkpoint["script"] = next(s for s in datasets.SCRIPTS if s != name)
    datasets.write_checkpoint(checkpoint, "r/last.pt")
    for flags in (["--resume", "r"], ["--load", "r", "--generate", "1"]):
        with pytest.raises(SystemExit) as stop:
            run(name, *flags)
        assert stop.value.code == 2 and "with that script" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- using a checkpoint


@every_script
def test_dry_run_trains_nothing(tiny, name, capsys):
    train(name, "--dry-run", "--epochs", "3")
    out = capsys.readouterr().out
    assert "parameters" in out and "Nothing was trained" in out and not (tiny / "runs").exists()


@every_script
def test_generate_and_interpolate(tiny, name):
    train(name, "--steps", "3", "--out", "r")
    script = importlib.import_module(name)
    checkpoint = read_checkpoint("r")
    few, many = script.generate(checkpoint, 3, seed=5), script.generate(checkpoint, 130, seed=5)
    side = 8 if name == "wgan_gp" else 16  # its first stage of growth
    assert few.shape == (3, 3, side, side) and few.dtype == torch.uint8
    assert (few.int() - many[:3].int()).abs().max() <= 1  # a picture does not depend on the others in its batch
    assert not torch.equal(few, script.generate(checkpoint, 3, seed=6))
    run(name, "--load", "r", "--generate", "5", "--to", "g.png", "--seed", "5")
    run(name, "--load", "r/last.pt", "--generate", "3", "--to", "folder", "--seed", "5")
    first = np.asarray(Image.open("folder/00000.png"))
    assert np.array_equal(first, few[0].permute(1, 2, 0).numpy())
    assert np.array_equal(first, np.asarray(Image.open("g.png"))[:side, :side])
    kinds = [["--interpolation", kind] for kind in script.FLAGS.get("interpolation", (0, []))[1]] or [[]]
    for kind in kinds:
        run(name, "--load", "r", "--interpolate", "6", *kind, "--to", f"walk{len(kind)}.png")
        assert Image.open(f"walk{len(kind)}.png").size == (6 * (side + 2) - 2, 8 * (side + 2) - 2)


@every_script
def test_evaluation_without_weights_goes_on(tiny, name, monkeypatch, capsys):
    """best.pt, metrics.json and the table, where the Inception weights are neither there nor to be had."""
    metrics = importlib.import_module("metrics")
    monkeypatch.setattr(metrics, "official_path", lambda: tiny / "absent.pth")
    monkeypatch.setattr(metrics, "download", lambda: "no network")
    monkeypatch.setattr(metrics, "conditional", functools.partial(metrics.conditional, steps=3))
    train(name, "--preset", PRESET[name], "--steps", "2", "--eval-images", "10", "--out", "r")
    out = capsys.readouterr().out
    assert "FID-768" in out and "not measured here" in out and "collapse (pixels)" in out and "real images" in out
    found = json.loads((tiny / "r/metrics.json").read_text(encoding="utf-8"))
    values = found["values"]
    assert all(v["value"] is None for v in values if v["name"].startswith(("FID", "KID")))
    assert next(v for v in values if v["name"] == "collapse (pixels)")["pairs"] == 90
    assert not (tiny / "r/best.pt").exists()
    names = {v["name"] for v in values}
    assert ("bound (nats)" in names) == (name in AUTOENCODERS) and ("class accuracy" in names) == (name in CONDITIONAL)
    # who stops the measuring after the last step has it made up for by --resume; then the run is finished
    (tiny / "r/metrics.json").unlink()
    run(name, "--resume", "r")
    assert json.loads((tiny / "r/metrics.json").read_text(encoding="utf-8")) == found and found["step"] == 2
    with pytest.raises(SystemExit):
        run(name, "--resume", "r")
    assert "is finished" in capsys.readouterr().err


@every_script
def test_best_is_the_lowest_fid(tiny, name, monkeypatch):
    metrics = importlib.import_module("metrics")
    found = iter([{"fid_768": 9.0, "kid_768": 0.1}, {"fid_768": 4.0}, {"fid_768": 6.0}])
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: [])
    monkeypatch.setattr(metrics, "scores", lambda _: next(found))
    train(name, "--steps", "6", "--eval-every", "2", "--eval-images", "10", "--out", "r")
    assert read_checkpoint("r/best.pt")["step"] == 4 and read_checkpoint("r")["best"] == 4.0
    assert [row["fid_768"] for row in rows("r") if row["fid_768"]] == ["9.0", "4.0", "6.0"]
    found = iter([{"fid_64": 5.0}])
    run(name, "--resume", "r", "--steps", "8", "--dims", "64")  # another protocol: 5.0 is not worse than 4.0 but new
    assert read_checkpoint("r/best.pt")["step"] == 8 and read_checkpoint("r")["best"] == 5.0


@every_script
def test_measuring_does_not_change_training(tiny, name, monkeypatch):
    metrics = importlib.import_module("metrics")
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: [])
    monkeypatch.setattr(metrics, "scores", lambda _: {})
    train(name, "--steps", "8", "--out", "a")
    train(name, "--steps", "8", "--eval-every", "2", "--eval-images", "10", "--sample-every", "1", "--out", "b")
    assert_same("a", "b")


@pytest.mark.parametrize("name", ["vae_mlp", "cvae"])
@pytest.mark.parametrize(
    "flags, words",
    [
        ("--hold-out 100", "to less than that"),
        ("--hold-out 1", "from 2"),
        ("--data shapes --hold-out 50", "a test split of its own"),
        ("--kl-weight 0", "a number of at least"),
        ("--likelihood laplace", "invalid choice"),
    ],
)
def test_bad_input_to_autoencoders(tiny, name, flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        run(name, *TINY, *flags.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and words in err and not (tiny / "runs").exists()


def test_bad_input_to_the_importance_bound(tiny, capsys):
    train("vae_mlp", "--steps", "2", "--out", "r")
    np.savez("grey.npz", images=np.zeros((30, 16, 16), np.uint8))
    capsys.readouterr()

    def error(*flags):
        with pytest.raises(SystemExit) as stop:
            run("vae_mlp", *flags)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.count("\n") == 1
        return err

    assert "with --load" in error(*TINY, "--iwae", "4")
    assert "1 channels" in error("--load", "r", "--iwae", "4", "--data", "grey.npz")
    assert "1 channels" in error("--load", "r", "--interpolate", "4", "--data", "grey.npz")
    assert "at least 2" in error("--load", "r", "--iwae", "4", "--eval-images", "1")
    np.savez("tiny.npz", images=np.random.default_rng(1).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8))
    assert "fingerprint" in error("--load", "r", "--iwae", "4")


def test_more_classes_than_rows(tiny):
    """The held-out images are of classes that the sample grid has no room for."""
    images = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(200) % 20
    np.savez("many.npz", images=images, labels=labels, split=(labels >= 16).astype(int))
    run("cvae", "--data", "many.npz", *TINY[2:], "--steps", "1", "--out", "r")
    assert read_checkpoint("r")["example_labels"].tolist() == [16, 17, 18, 19] * 4


def test_pictures_leave_batchnorm_in_training_mode(tiny):
    """Without an average the network in training makes the pictures: afterwards its statistics must go on moving."""
    flags = ["--width", "4", "--batch", "8", "--device", "cpu", "--sample-every", "1"]
    run("cvae", "--data", "tiny.npz", "--size", "16", *flags, "--steps", "2", "--out", "a")
    run("cvae", "--data", "tiny.npz", "--size", "16", *flags, "--steps", "3", "--out", "b")
    a, b = (read_checkpoint(r)["networks"]["cvae"]["encoder.1.running_mean"] for r in "ab")
    assert not torch.equal(a, b)


@every_script
def test_default_run_is_a_preset_and_flags_win(name):
    script = importlib.import_module(name)
    args = script.parse_args([])
    assert args.preset == "shapes" and args.data == "shapes" and args.size == (16 if name == "ddpm" else 32)
    assert script.parse_args(["--width", "8"]).width == 8
    assert script.parse_args(["--epochs", "3"]).steps is None  # a length on the command line beats the preset's
    assert script.parse_args(["--data", "x.zip"]).preset is None
    assert getattr(script.parse_args(["--lr", "0.5"]), "lr_d", None) is None  # a rate for both beats the preset's two


@every_script
def test_an_unknown_key_in_a_preset_is_an_error(name, monkeypatch):
    script = importlib.import_module(name)
    monkeypatch.setitem(script.PRESETS, "odd", {"no_such_flag": 1})
    monkeypatch.setitem(script.FLAGS, "preset", (None, ["odd"], ""))
    with pytest.raises(AssertionError, match="no_such_flag"):
        script.parse_args(["--preset", "odd"])


@every_script
def test_resume_refuses_a_changed_data_set(tiny, name):
    train(name, "--steps", "2", "--out", "r")
    np.savez(tiny / "tiny.npz", images=np.random.default_rng(1).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8))
    script = importlib.import_module(name)
    with pytest.raises(InputError, match="fingerprint"):
        script.main(script.parse_args(["--resume", "r", "--steps", "4"]))


def test_ctrl_c_twice_ends_at_once(tiny, monkeypatch, capfd):
    """Once lets a step, and an evaluation, finish. Whoever does not want to wait loses what came after last.pt."""
    steps = []

    def twice(run, losses):
        steps.append(run.step)
        signal.raise_signal(signal.SIGINT)
        assert len(steps) == 1
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(datasets.Run, "record", twice)
    with pytest.raises(SystemExit) as stop:
        train("vae_mlp", "--steps", "5", "--out", "r")
    said = capfd.readouterr().err
    assert stop.value.code == 130 and "Ctrl-C again" in said and "interrupted" in said
    assert read_checkpoint("r")["step"] == 0


def test_what_no_evaluation_will_read_is_said(tiny, capsys):
    train("dcgan", "--steps", "1", "--weights", "w.pth", "--eval-images", "8")
    assert "--weights does nothing here" in capsys.readouterr().err


@pytest.mark.parametrize("dims, best", [("2048", False), ("64 2048", True)])
def test_an_evaluation_says_what_it_measured_and_what_not(tiny, small_weights, dims, best, capsys):
    more = f"--eval-every 2 --eval-images 8 --weights {small_weights} --dims {dims}"
    train("dcgan", "--steps", "4", "--out", "r", *more.split())
    out = capsys.readouterr().out
    assert out.count("not measured here") == 1 and ("so no best.pt" in out) is not best
    assert ("step 2: FID-64 " in out and "the best so far: best.pt" in out) is best
    assert (tiny / "r/best.pt").exists() is best


@every_script
def test_resume_of_a_run_from_another_device(tiny, name):
    """On a Mac's GPU weights and Adam's averages are not channels last; the kernel here pairs them by their places."""
    train(name, "--steps", "4", "--out", "a")
    shutil.copytree("a", "b")
    checkpoint = read_checkpoint("b")
    for optimiser in checkpoint["optimisers"].values():
        for state in optimiser["state"].values():
            state |= {key: value.contiguous() for key, value in state.items()}
    datasets.write_checkpoint(checkpoint, "b/last.pt")
    for side in "a", "b":
        run(name, "--resume", side, "--steps", "6")
    assert_same("a", "b")


@pytest.mark.parametrize(
    "problem, told",
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (
            NotImplementedError("The operator 'aten::vdot' is not currently implemented for the MPS device."),
            "FALLBACK=1",
        ),
        (NotImplementedError("not yet"), None),
    ],
)
def test_errors_of_a_gpu(problem, told, capsys):
    """What a user can mend is one line; what is a mistake of ours keeps its traceback."""

    def main(_):
        raise problem

    with pytest.raises(SystemExit if told else type(problem)) as ended:
        datasets.run_program("x.py", main, None)
    if told:
        assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_script
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_trains_and_resumes(tiny, name, precision):
    flags = [*TINY, *SCRIPTS[name], "--device", "cuda", "--precision", precision]
    run(name, *flags, "--steps", "20", "--out", "a")
    run(name, *flags, "--steps", "10", "--out", "b")
    half = read_checkpoint("b")
    run(name, "--resume", "b", "--steps", "20")
    a, b = read_checkpoint("a"), read_checkpoint("b")
    assert a["drawn"] == b["drawn"] and torch.equal(a["rng"]["cuda"], b["rng"]["cuda"])

    def distance(one, other):  # of weights, without BatchNorm's statistics
        return sum(
            (value - other["networks"][network][key]).square().sum()
            for network, state in one["networks"].items()
            for key, value in state.items()
            if "running" not in key and value.is_floating_point()
        ).sqrt()

    assert distance(a, b) < 0.25 * distance(a, half)  # a GPU may add in another order every time
