"""benchmarks/gpu.py: every part runs through on the CPU, and a failing part costs nothing else."""

import json
import sys
import time
import zipfile
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from conftest import ROOT, make_folder, make_zip

sys.path.append(str(ROOT / "benchmarks"))
import gpu

import training
from sources import InputError


@pytest.fixture
def data(here, small_weights):
    """A folder as --data takes it: four zips of 40 images in two classes, and weights."""
    for name in gpu.SETS:
        split = ("train/", "test/") if name in ("food", "cifar10") else ("",)
        files = [f"{s}{c}/{i}.png" for i in range(20) for c in "ab" for s in split]
        make_folder(here / "files" / name, files, size=(16, 16))
        (here / "sets" / name).mkdir(parents=True)
        make_zip(here / "files" / name, here / "sets" / name / f"{name}64.zip")
    (here / "sets" / "inception.pth").symlink_to(small_weights)
    return here / "sets"


@pytest.fixture
def in_this_process(monkeypatch, here):
    """Parts run here, which saves imports. They print to their log as they would elsewhere."""
    should_stop = training.Run.should_stop
    monkeypatch.setattr(training.Run, "should_stop", should_stop)  # restored after the test
    monkeypatch.setattr(gpu, "TESTS", ["test_captured.py"])
    ours = {name: gpu.step.OURS[name] for name in ("dcgan", "vae_mlp")}  # test_benchmarks has all
    monkeypatch.setattr(gpu.step, "OURS", ours)
    monkeypatch.setattr(gpu.step, "device_rate", lambda *_: 1e12)
    monkeypatch.setattr(gpu, "PROFILED", {"dcgan": 128})

    def start(part, setup):
        training.Run.should_stop = should_stop  # the last part has replaced it
        with open(setup.work / f"{part}.log", "w", encoding="utf-8") as log:
            with redirect_stdout(log), redirect_stderr(log):
                gpu.run_part(part, setup)
        return ""

    return start


def run_all(words, data, work, start=gpu.in_a_process):
    args = gpu.parse_args(["--device", "cpu", *words])
    work.mkdir()
    (work.parent / "out").mkdir()
    args.to = str(work.parent / "out")
    results = gpu.run_all(args, gpu.find_data(data), work, start)
    assert json.loads((work.parent / "out" / "gpu.json").read_text()) == results
    return results, (work.parent / "out" / "gpu.md").read_text(encoding="utf-8")


def test_a_rehearsal(data, here, in_this_process, monkeypatch, no_plots):
    """Every part runs through on the CPU and leaves its numbers, pictures and report."""
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    parts = [*gpu.DEFAULT, "fade-in-gan"]  # a long part: the others differ by their preset only
    words = ["--minutes", "5", "--only", *parts]
    results, page = run_all(words, data, here / "work", in_this_process)
    assert list(results) == parts
    assert all(not result["problem"] and not result["log"] for result in results.values())
    values = {part: result["result"] for part, result in results.items()}
    assert "skipped" in values["tests"]["summary"] and values["tests"]["exit code"] in (0, 5)
    for part in gpu.BATCHES:
        rows = values[part]["rows"]
        kinds = {(row["script"], row["precision"], row["graph"]) for row in rows}
        assert len(kinds) == len(rows) == len(gpu.step.OURS) * 4
        assert all(row["img/s"] > 0 and row["GFLOP an image"] > 0 for row in rows)
    trainings = [part for part in parts if part in gpu.TRAININGS]
    for part in trainings:
        script, preset, _ = gpu.TRAININGS[part]
        assert f"{script}.py --preset {preset}" in values[part]["command"]
        assert values[part]["all steps"] == (part == "cats")  # the others are stopped
        assert values[part]["steps/s"] > 0 and "(real images: " in values[part]["FID-64"]
        assert "collapse (pixels)" in values[part]
    assert "img/s" in values["metrics"]["features 64, bf16"]
    kernels = [name for name in values["profile"] if name.startswith("dcgan: aten::")]
    assert len(kernels) >= 5 and "ms a step" in values["profile"]["dcgan: busy"]
    with zipfile.ZipFile(here / "out" / "pictures.zip") as archive:
        files = {f"{part}{end}" for part in trainings for end in (".png", "-log.csv")}
        assert files <= set(archive.namelist())
        assert archive.read("cats-log.csv").startswith(b"step,epoch,seconds,img_per_s,")
    assert all(f"## {part}" in page for part in parts)


def test_without_data(here, in_this_process):
    (here / "empty").mkdir()
    words = ["--only", "cats", "metrics", "about", "--skip", "about"]
    results, _ = run_all(words, here / "empty", here / "work", in_this_process)
    assert results["cats"]["result"] == {"not run": "no cats*.zip in --data"}
    assert results["metrics"]["result"] == {"not run": "no Inception weights"}
    assert list(results) == ["cats", "metrics"]


def test_parts_that_fail_and_parts_that_hang(here, monkeypatch):
    """In processes of their own: the next part runs, what was measured and printed is there."""

    def part(name, setup):
        (setup.work / f"{name}.json").write_text('{"begun": 1}', encoding="utf-8")
        print(*(f"line {i} of {name}" for i in range(100)), sep="\n")
        if name == "about":
            raise ValueError("a broken part")
        if name == "tests":
            time.sleep(60)

    monkeypatch.setattr(gpu, "run_part", part)
    monkeypatch.setattr(gpu, "time_limit", lambda *_: 3)
    results, page = run_all(["--only", "about", "tests", "metrics"], here, here / "work")
    problems = [result["problem"] for result in results.values()]
    assert problems == ["exit code 1", "stopped after 3 s, its share of the time", ""]
    assert all(result["result"] == {"begun": 1} for result in results.values())
    assert len(results["about"]["log"]) == 30 and "ValueError: a broken part" in page
    assert "line 99 of tests" in page and results["tests"]["seconds"] < 30
    assert "of metrics" not in page


def test_time_limits():
    """The trainings without a limit of their own share what the others leave."""
    parts = list(gpu.DEFAULT)
    left = 480.0
    for part in parts:
        seconds = gpu.time_limit(part, parts[parts.index(part) + 1 :], left, 8, tiny=False)
        assert seconds == gpu.SECONDS.get(part, seconds)
        if part in gpu.TRAININGS:
            assert seconds > gpu.OVERHEAD + 4
        left -= seconds
    assert part == "speed-rest" and left == pytest.approx(0)  # it takes what others do not need
    double = gpu.time_limit("about", parts[1:], 480, 16, tiny=False)
    assert double == 2 * gpu.time_limit("about", parts[1:], 480, 8, tiny=False)
    assert gpu.time_limit("large-gan", [], 600, 10, tiny=False) == 600
    # after the 65 of 480 seconds that small-gan has for itself
    assert gpu.time_limit("no-noise-gan", ["small-gan"], 480, 8, tiny=False) == 415


def test_long_trainings_run_only_if_named():
    """Every preset of the reports that no machine here has finished has a part."""
    presets = {preset.split()[0] for _, preset, _ in gpu.LONG.values()}
    assert presets >= {"cats-100k", "food-noise", "large-gan", "no-noise-gan", "multistep-critic"}
    assert presets >= {"fade-in-gan", "animals"} and not set(gpu.LONG) & set(gpu.DEFAULT)
    for script, preset, name in gpu.LONG.values():
        args, _ = training.load_script(script).parse_args(["--preset", *preset.split()])
        assert name in gpu.SETS and args.data.startswith(name)
        if script == "wgan_gp":
            assert (
                args.steps == 10_000 > (args.stages - 1) * args.stage_steps
            )  # the last stage, too


def test_pack(data, here, capsys, monkeypatch):
    """What is packed is found again, with held-out images where the set has none of its own."""
    monkeypatch.setattr(gpu, "PACKED", dict.fromkeys(gpu.SETS, (10, 5)))
    monkeypatch.setattr(gpu, "weights_error", lambda *_: "0.1 and 0.2")
    gpu.main(["--data", str(data), "--pack", "pack.zip"])
    out = capsys.readouterr().out
    assert "0.1 and 0.2" in out and "pack.zip: " in out and "pack-cats.zip: " in out
    (here / "unpacked").mkdir()
    found = gpu.unpacked("pack.zip", here / "unpacked")
    assert set(found) == {*gpu.SETS, "weights"}
    for name in gpu.SETS:
        with zipfile.ZipFile(found[name]) as archive:
            folders = [member.split("/")[0] for member in archive.namelist()]
        assert folders.count("train") == 10 and folders.count("test") == 5
    (here / "cats").mkdir()
    cats = gpu.unpacked("pack-cats.zip", here / "cats")
    with zipfile.ZipFile(cats["cats"]) as archive:
        assert len(archive.namelist()) == 40
    monkeypatch.setattr(gpu, "LIMIT", 1000)
    with pytest.raises(InputError, match="more than 50"):
        gpu.main(["--data", str(data), "--pack", "pack.zip"])


def test_weights_in_fp16(data, here, small_weights, oracle):
    """Half the bytes; the features differ by what rounding the weights to 11 bits does."""
    import torch

    from inception import features

    half = {name: tensor.half() for name, tensor in torch.load(small_weights).items()}
    torch.save(half, "half.pth")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8))
    exact = features(images, [64], str(small_weights))[64]
    rounded = features(images, [64], "half.pth")[64]
    assert 0 < np.abs(rounded - exact).max() < 0.01 * np.abs(exact).max()


def test_bad_input(here, capsys):
    (here / "text.zip").write_text("no zip")
    for words, problem in (
        (["--data", "text.zip"], "no folder and no file of --pack"),
        (["--data", "absent"], "no folder and no file of --pack"),
        (["--data", ".", "--pack", "a.zip"], "--pack needs cats, animals"),
        (["--data", ".", "--pack", "a.tar"], "must end in .zip"),
    ):
        with pytest.raises(InputError, match=problem):
            gpu.main(words)
    assert not list(here.glob("gpu*"))
