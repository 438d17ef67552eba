"""benchmarks/quality.py: which weights it measures, and that a kill costs nothing."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, at_step

import datasets
import inception
import metrics
import training
from sources import InputError

sys.path.append(str(ROOT / "benchmarks"))
import quality

FLAGS = "--width 4 --batch 8 --ema 0.9 --precision fp32 --sample-every 1000".split()
MINUTES = "--minutes 0.05 0.1".split()  # 3 and 6 steps


def pixels(images, *_, **__):
    """In place of Inception: 64 numbers of each image."""
    return {64: images[:, 0, ::2, ::2].flatten(1).double().numpy() / 255}


@pytest.fixture
def quick(here, no_plots, small_weights, monkeypatch):
    """quick(*words): main() with two small rows, where a step takes a second.

    Row a has no end; row b ends after 4 steps.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (84, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    np.savez("own.npz", images=images, split=np.arange(84) // 60)
    rows = {
        "a": quality.Row("dcgan", "own", 16, FLAGS),
        "b": quality.Row("dcgan", "shapes", 16, [*FLAGS, "--steps", "4"]),
    }
    monkeypatch.setattr(quality, "SETS", {"own": ("own.npz", 16)})
    monkeypatch.setattr(quality, "all_rows", lambda: rows)
    monkeypatch.setattr(quality, "DIM", 64)
    monkeypatch.setattr(quality, "figure", lambda groups: b"")  # takes longer than all the rest
    monkeypatch.setattr(metrics, "similarity_values", lambda *_: [])
    monkeypatch.setattr(metrics, "features", pixels)
    monkeypatch.setattr(metrics, "real_features", pixels)

    def one_second_each(run):
        run.seconds = float(run.step)

    monkeypatch.setattr(training.Run, "count_time", one_second_each)

    def run(*words):
        flags = ["--weights", str(small_weights), "--to", "out", "--device", "cpu"]
        quality.main([*flags, "--images", "12", *words])

    return run


def points():
    with open("out/quality.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def cells(name):
    """The rows of a Markdown table whose first cell is `name`: {column: text}."""
    with open("out/quality.md", encoding="utf-8") as file:
        table = [[c.strip() for c in line.split("|")[1:-1]] for line in file if line[0] == "|"]
    return [dict(zip(table[0], row, strict=True)) for row in table if row[0] == name]


def only_once(problem):
    """A function that raises when it is called for the first time."""
    problems = [problem]

    def action(*_, **__):
        if problems:
            raise problems.pop()

    return action


def test_the_numbers_are_those_of_the_checkpoints(quick, small_weights, monkeypatch):
    monkeypatch.setattr(metrics, "features", inception.features)
    monkeypatch.setattr(metrics, "real_features", inception.real_features)
    quick("--rows", "a", *MINUTES)
    first, second = points()
    assert [p["step"] for p in (first, second)] == [3, 6]
    assert [p["seconds"] for p in (first, second)] == [3, 6]
    assert [p["images"] for p in (first, second)] == [3 * 8, 6 * 8]
    assert [row["images"] for row in cells("a")] == ["24", "48"]

    test = datasets.load("own.npz", 16, "test").images
    weights = inception.load_weights(small_weights)
    # 12 of the 24 held-out images never choose a best.pt
    train, held_out = datasets.load_parts("own.npz", 16)
    chose = datasets.image_hashes(datasets.reference_images(train, held_out, 100).choose)
    real = test[~torch.isin(datasets.image_hashes(test), chose)]
    x = inception.features(real, [64], weights)[64]
    for point, row in zip((first, second), cells("a"), strict=True):
        checkpoint = training.read_checkpoint(f"out/{point['checkpoint']}")
        assert checkpoint["step"] == point["step"] and row["checkpoint"] == point["checkpoint"]
        script, model = training.open_model(checkpoint)
        fake = script.generate(model, 12, quality.LATENTS)
        y = inception.features(fake, [64], weights)[64]
        fid = metrics.fid(x, y)
        assert len(real) == 12 and point["values"][0]["value"] == pytest.approx(fid, rel=1e-6)
        assert float(row["FID-64"]) == pytest.approx(fid, rel=0.01)
        shares = metrics.prdc(x, y)
        assert float(row["precision-64"]) == shares["precision"]
        assert float(row["recall-64"]) == shares["recall"]


@pytest.mark.parametrize("where", ["training", "measuring", "writing"])
def test_a_kill_costs_nothing(quick, monkeypatch, where):
    """Killed in the middle of the second point: the weights are those of a run that never stops."""
    kill = only_once(KeyboardInterrupt)
    if where == "training":
        at_step(monkeypatch, 5, kill)
    else:
        name = {"measuring": "measure", "writing": "write_results"}[where]
        function = getattr(quality, name)

        def killed(*arguments):
            if len(list(quality.Path("out").glob("**/kept/0.1-minutes.pt"))):
                kill()
            return function(*arguments)

        monkeypatch.setattr(quality, name, killed)
    with pytest.raises(KeyboardInterrupt):
        quick("--rows", "a", *MINUTES)
    (first,) = points()
    steps = []
    count = training.Run.count
    monkeypatch.setattr(
        training.Run, "count", lambda run, **losses: (count(run, **losses), steps.append(run.step))
    )
    quick("--rows", "a", *MINUTES)
    assert steps == ([4, 5, 6] if where == "training" else [])
    assert points()[0] == first and points()[1]["step"] == 6
    quick("--rows", "a", *MINUTES)  # nothing is left to do
    assert len(points()) == 2 and len(steps) == (3 if where == "training" else 0)

    if where != "training":
        return
    straight = ["--data", "own.npz", "--size", "16", *FLAGS, "--eval-images", "0"]
    straight += ["--seed", str(quality.FIRST_SEED), "--steps", "6", "--out", "straight"]
    training.load_script("dcgan").main([*straight, "--device", "cpu"])
    expected = training.read_checkpoint("straight")["models"]
    measured = training.read_checkpoint(f"out/{points()[1]['checkpoint']}")["models"]
    for network, state in expected.items():
        for name, tensor in state.items():
            assert torch.equal(measured[network][name], tensor), name


def test_ctrl_c_ends_the_program(quick, monkeypatch):
    at_step(monkeypatch, 2, lambda: quality.signal.raise_signal(quality.signal.SIGINT))
    with pytest.raises(SystemExit) as stopped:
        quick("--rows", "a", "b", *MINUTES)
    assert stopped.value.code == 130 and not quality.Path("out/quality.jsonl").exists()


def test_a_run_that_ends_before_and_one_that_fails(quick, monkeypatch, capsys):
    at_step(monkeypatch, 2, only_once(InputError("not finite")))
    quick("--rows", "a", "b", "--minutes", "0.05", "0.1", "0.2")
    in_table = {(p["row"], p["minutes"]): p for p in points()}
    assert in_table["a", 0.05]["problem"] == "not finite" and in_table["a", 0.1]["step"] == 6
    assert "failed: not finite" in cells("a")[0].values()
    assert in_table["b", 0.05]["step"] == 3 and in_table["b", 0.1]["step"] == 4
    assert cells("b")[1]["seconds"] == "4.0 (its end)" and ("b", 0.2) not in in_table
    capsys.readouterr()
    quick("--rows", "b", "--minutes", "0.01", "0.1", "0.2")
    assert "past this time" in cells("b")[0]["seconds"] and len(cells("b")) == 3
    assert "0.2 minutes" not in capsys.readouterr().out


def test_seeds_and_changed_flags(quick, monkeypatch, capsys):
    quick("--rows", "a", "b", "--minutes", "0.05", "--seeds", "2")
    assert [(p["row"], p["seed"]) for p in points()] == [
        ("a", 100),
        ("b", 100),
        ("a", 101),
        ("b", 101),
    ]
    checkpoint = training.read_checkpoint(f"out/{points()[2]['checkpoint']}")
    assert checkpoint["flags"]["seed"] == 101
    row = quality.all_rows()["a"]
    quality.all_rows()["a"] = row._replace(words=[*row.words, "--beta1", "0"])
    capsys.readouterr()
    quick("--rows", "a", "--minutes", "0.05")
    assert capsys.readouterr().out.count("dropped: a after 0.05 minutes") == 2
    seeds = [(p["row"], p["seed"]) for p in points()]
    assert seeds == [("b", 100), ("b", 101), ("a", 100)]
    checkpoint = training.read_checkpoint(f"out/{points()[2]['checkpoint']}")
    assert checkpoint["flags"]["beta1"] == 0


def test_a_row_with_further_flags(quick):
    quick("--rows", "a --beta1 0", "--minutes", "0.05")
    (point,) = points()
    assert point["row"] == "a --beta1 0" and "--beta1=0" in point["settings"]
    assert training.read_checkpoint(f"out/{point['checkpoint']}")["flags"]["beta1"] == 0


def test_grids_are_blind(quick):
    quick("--minutes", "0.05", "0.1")
    quick("--grids", "--minutes", "0.1")
    with open("out/quality-grids-key.json", encoding="utf-8") as file:
        key = json.load(file)
    assert sorted(key) == ["own-16-A", "shapes-16-A"]
    pictures = sorted(path.name for path in quality.Path("out/quality-grids").iterdir())
    assert pictures == ["own-16-A.png", "shapes-16-A.png"]
    script, model = training.open_model(
        training.read_checkpoint(f"out/{key['own-16-A']['checkpoint']}")
    )
    grid = datasets.enlarged(datasets.grid(script.generate(model, 64, quality.LATENTS + 2), 8))
    with quality.report.open_picture(quality.Path("out/quality-grids/own-16-A.png")) as picture:
        assert picture.tobytes() == grid.tobytes()
    with pytest.raises(InputError, match="remove it"):
        quick("--grids", "--minutes", "0.1")


def test_what_does_not_compare_is_refused(quick):
    with pytest.raises(InputError, match="no row c; there are: a, b"):
        quick("--rows", "c")
    with pytest.raises(InputError, match="a needs 'elsewhere.own.npz'"):
        quick("--data", "elsewhere")
    quick("--rows", "b", "--minutes", "0.05")
    with pytest.raises(InputError, match="has --images 12: give another --to"):
        quick("--rows", "b", "--minutes", "0.05", "--images", "30")
    quality.Path("out/quality.jsonl").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        quick("--rows", "b", "--minutes", "0.05")


def test_ablation(quick, monkeypatch):
    """It measures on the other half of the held-out images, and says what is changed."""
    quality.all_rows()["c"] = quality.Row("gan_resnet", "own", 16, [])
    entries = [("a", ""), ("c", "--similarity 1"), ("a", "--beta1 0")]
    monkeypatch.setitem(quality.ABLATIONS, "cgan", entries)
    quick("--ablation", "cgan", "--minutes", "0.05")
    with open("out/ablation-cgan.jsonl", encoding="utf-8") as file:
        plain, refused, changed = map(json.loads, file)
    assert refused["row"] == "c --similarity 1" and "add --conditional" in refused["problem"]
    assert (plain["row"], changed["row"]) == ("a", "a --beta1 0")
    assert plain["seed"] == 0 and quality.Path("out/ablation-cgan.md").exists()
    flags = training.read_checkpoint(f"out/{changed['checkpoint']}")["flags"]
    assert flags["beta1"] == 0
    args = quality.parse_args(["--images", "12"])
    choosing = quality.parse_args(["--images", "12", "--ablation", "cgan"])
    row = quality.all_rows()["a"]
    judged, _, _ = quality.real_images(row, "crop", args)
    chose, _, _ = quality.real_images(row, "crop", choosing)
    hashes = [datasets.image_hashes(images) for images in (judged, chose)]
    assert len(hashes[0]) == len(hashes[1]) == 12 and not torch.isin(*hashes).any()


def test_real_images_without_a_split(quick):
    """None of them, nor of the floor, is in the tenth that all other measurements use."""
    images = np.random.default_rng(0).integers(0, 256, (2060, 8, 8), np.uint8)
    np.savez("own.npz", images=images)
    row = quality.all_rows()["a"]._replace(size=8)
    real, floor, words = quality.real_images(row, "crop", quality.parse_args([]))
    data = datasets.load("own.npz", 8)
    tenth = datasets.image_hashes(data.images[datasets.test_rows(2060)])
    both = datasets.image_hashes(torch.cat([real, floor]))
    assert len(real) == len(floor) == 30 and len(both.unique()) == 60
    assert not torch.isin(both, tenth).any() and "training" in words
    choosing = quality.parse_args(["--ablation", "dcgan"])
    real, _, _ = quality.real_images(row, "crop", choosing)
    assert torch.isin(datasets.image_hashes(real), tenth).all()


# -------------------------------------------------------------------------------------------- rows


def test_rows_of_presets(monkeypatch):
    rows = quality.all_rows()
    scripts = {
        path.stem for path in ROOT.glob("*.py") if "\nPRESETS = {" in path.read_text("utf-8")
    }
    assert {row.script for row in rows.values()} == scripts
    assert all(f"{script}-shapes" in rows for script in scripts)
    for name, row in rows.items():
        presets = training.load_script(row.script).PRESETS
        if name.endswith("-report"):
            assert "report" in presets[row.words[-1]] and row.size == presets[row.words[-1]]["size"]
    presets = training.load_script("gan_resnet").PRESETS
    monkeypatch.setitem(presets, "best", {"data": "cifar10", "size": 32})
    new = quality.all_rows()
    assert {f"gan_resnet-{data}-best" for data in quality.SETS} == new.keys() - rows.keys()
    assert "cgan-animals-best" in rows and "cgan-cats-best" not in rows
    assert "cvae-animals-best" in rows and "cvae-cats-best" not in rows


def test_an_ablation_removes_each_flag_of_a_preset(tmp_path, monkeypatch):
    monkeypatch.setitem(quality.ABLATIONS, "cgan", [("cgan-animals-best", quality.EACH)])
    for file, _ in quality.SETS.values():
        (tmp_path / file).touch()
    args = quality.parse_args(["--data", str(tmp_path), "--ablation", "cgan"])
    rows = quality.chosen_rows(args)
    script = training.load_script("cgan")
    whole, _ = script.parse_args(["--preset", "best", "--dry-run"])
    removed = {name.split("without ")[1] for name in rows if "without" in name}
    assert {"shift", "lr_d", "ema"} <= removed and not removed & {"data", "size", "report"}
    for flag in removed:
        typed = rows[f"cgan-animals-best without {flag}"].words
        flags, _ = script.parse_args([*typed, "--data", "animals", "--dry-run"])
        for name in removed | {"batch", "fit"}:
            expected = whole.defaults[name] if name == flag else getattr(whole, name)
            assert getattr(flags, name) == expected


def test_figure():
    def point(row, minutes, seed, fid):
        values = [{"name": "FID-768", "value": fid, "real": 0.1}]
        times = {"minutes": minutes, "seconds": 60 * minutes, "images": 1000 * minutes}
        return {"row": row, "seed": seed, "values": values, "set": "cats-64"} | times

    drawn = []
    group = [point("a", 5, 1, 3.0), point("a", 15, 1, 2.0), point("a", 5, 2, 4.0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            quality.report, "draw_panel", lambda axis, curves, inside: drawn.append(curves)
        )
        patch.setattr("matplotlib.axes.Axes.legend", lambda *_, **__: None)
        assert quality.figure({"cats-64": group}).startswith(b"\x89PNG")
    ((name, minutes, fids, _),) = drawn[0]
    assert name == "a" and minutes.tolist() == [5, 15] and fids.tolist() == [3.5, 2.0]
    ((_, thousands, _, _),) = drawn[1]
    assert thousands.tolist() == [5, 15] and math.isclose(fids[0], 3.5)
