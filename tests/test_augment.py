"""augment.py: subsets, scores, the classifier, the refusal of leaks, the verdict, and a whole small run."""

import csv
import importlib
import json
import math
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import augment
import datasets
import report
from datasets import InputError, load

TINY = "--size 16 --add 5 --steps 2 --batch 4 --width 8 --seeds 3 --device cpu"
QUICK = "--steps 2 --width 4 --batch 4 --timesteps 10 --sample-steps 2 --save-every 1 --device cpu --precision fp32"


@pytest.fixture
def data(here, monkeypatch):
    """120 labelled images of 16x16 in three colours, of which 30 are held out."""
    monkeypatch.setattr(report, "report", lambda *_, **__: [])
    rng = np.random.default_rng(0)
    labels, images = np.arange(120) % 3, rng.integers(0, 80, (120, 16, 16, 3), np.uint8)
    images[np.arange(120), :, :, labels] += 120
    np.savez(
        "x.npz",
        images=images,
        labels=labels,
        classes=["red", "green", "blue"],
        split=(np.arange(120) >= 90).astype(int),
    )
    return here


def run(*given):
    datasets.run_program("augment.py", augment.main, augment.parse_args([*given]))


def results(folder):
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------ the parts


def test_subsets_are_nested_and_even(data):
    train = load("x.npz", 16)
    few, more = augment.subset(train, 4), augment.subset(train, 9)
    assert torch.bincount(few.labels).tolist() == [4, 4, 4] and torch.bincount(more.labels).tolist() == [9, 9, 9]
    known = {image.numpy().tobytes() for image in more.images}
    assert all(image.numpy().tobytes() in known for image in few.images)
    held_out = {image.numpy().tobytes() for image in load("x.npz", 16, "test").images}
    assert not known & held_out
    with pytest.raises(InputError, match="'red' of x has 30 training images, and 31"):
        augment.subset(train, 31)


def test_scores_against_counting():
    asked, found = torch.randint(0, 5, (2, 300), generator=torch.Generator().manual_seed(0))
    found[found == 4] = 3  # class 4 is never called
    precision, recall = [], []
    for c in range(5):
        right = sum(int(a == c and f == c) for a, f in zip(asked, found, strict=True))
        called, there = int((found == c).sum()), int((asked == c).sum())
        precision.append(right / called if called else 0.0)
        recall.append(right / there)
    values = augment.scores(asked, found, 5)
    assert values["accuracy"] == pytest.approx((asked == found).double().mean().item())
    assert values["precision"] == pytest.approx(sum(precision) / 5) and values["recall"] == pytest.approx(
        sum(recall) / 5
    )


def test_the_classifier_is_resnet18():
    """torchvision's with its weights, a first layer of 3x3, and no pooling behind it."""
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=7)
    theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    ours = augment.resnet18(3, 7, 32)
    pairs = list(zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)
    assert augment.resnet18(1, 3, 64, width=8)[0](torch.zeros(1, 1, 64, 64)).shape[-1] == 32


def test_classical_augmentation():
    torch.manual_seed(0)
    x = torch.rand(200, 3, 16, 16) * 2 - 1
    changed = augment.classical(x, flip=True)
    assert changed.shape == x.shape and changed.abs().max() <= 1 and not torch.allclose(changed[0], changed[1])
    ramp = torch.linspace(-0.5, 0.5, 16).expand(200, 1, 16, 16)  # grows to the right, unless mirrored
    mirrored = augment.classical(ramp, flip=True)
    share = (mirrored[:, 0, 8, 12] < mirrored[:, 0, 8, 3]).float().mean().item()
    assert 0.35 < share < 0.65
    straight = augment.classical(ramp, flip=False)
    assert (straight[:, 0, 8, 12] > straight[:, 0, 8, 3]).all()
    spot = torch.full((300, 1, 16, 16), -1.0)
    spot[:, :, 8, 8] = 1.0
    places = {divmod(int(image.argmax()), 16) for image in augment.classical(spot, False)}
    assert places == {(i, j) for i in range(6, 11) for j in range(6, 11)}  # shifted by up to 2


# ---------------------------------------------------------------------------------------------------- the verdict


def outcomes(base, gain, noise=0.01):
    """{(50, arm): scores of 5 seeds}: `gain` where generated images are added."""
    wobble = [noise * v for v in (0.0, 1.0, -1.0, 0.5, -0.5)]
    gains = {"real": 0, "real+classical": 0, "real+generated": gain, "real+both": gain}
    other = [0.3 * w for w in (wobble[1:] + wobble[:1])]
    return {
        (50, arm): [
            {name: base + w + (gains[arm] + o if gains[arm] or "gen" in arm or "both" in arm else 0)
             for name in augment.SCORES}
            for w, o in zip(wobble, other, strict=True)
        ]
        for arm in augment.ARMS
    }  # fmt: skip


@pytest.mark.parametrize(
    "gain, words", [(0.05, "helps by 5.0"), (-0.05, "hurts by 5.0"), (0.0, "makes no difference beyond noise")]
)
def test_the_verdict(gain, words):
    args = augment.parse_args(["--data", "x"])
    text = augment.verdict(outcomes(0.7, gain), args, "x", 2100)
    assert text.count(words) == 2
    helps, hurts = {0.05: (2, 0), -0.05: (0, 2)}.get(gain, (0, 0))
    assert f"Of 2 comparisons {helps} show that it helps, {hurts} that it hurts" in text and "5 trainings" in text
    share = np.mean([s["accuracy"] for found in outcomes(0.7, gain).values() for s in found])
    assert f"uncertain by {100 * math.sqrt(share * (1 - share) / 2100):.1f} points" in text and "2,100 real" in text


def test_the_comparison_is_the_paired_t_test():
    a, b = [0.71, 0.75, 0.69, 0.80, 0.73], [0.70, 0.72, 0.70, 0.75, 0.71]
    d = [100 * (x - y) for x, y in zip(a, b, strict=True)]
    mean = sum(d) / 5
    error = math.sqrt(sum((v - mean) ** 2 for v in d) / 4 / 5)
    found = augment.compared(a, b)
    assert found[:2] == pytest.approx((mean, error))
    # Student's t with 4 degrees of freedom has P(|T| > t) = 1 - (sqrt(u) * (3 - u)) / 2, u = t^2 / (t^2 + 4)
    u = (mean / error) ** 2 / ((mean / error) ** 2 + 4)
    assert found[2] == pytest.approx(1 - math.sqrt(u) * (3 - u) / 2, rel=1e-6)
    assert augment.compared(a, a) == (0.0, 0.0, 1.0)
    mean, error, p = augment.compared([0.4, 0.7, 0.9], [0.3, 0.6, 0.8])  # alike, up to rounding
    assert mean == pytest.approx(10) and error < 1e-9 and p == 0.25  # heads three times, or tails


def test_many_comparisons():
    """Holm's example of four: multiplied by 4, 3, 2, 1 in order of size, and never less than one before."""
    assert augment.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert augment.holm([0.6, 0.7]) == [1.0, 1.0] and augment.holm([0.2]) == [0.2]


# ------------------------------------------------------------------------------------------------------ whole runs


def test_what_each_arm_is_trained_on(data, monkeypatch):
    seen = []

    def record(real, generated, test, args, augment, seed, *rest):
        assert len(real.images) == 12 and len(test.images) == 30 and torch.equal(test.images, held_out)
        seen.append((seed, generated is not None and len(generated.images), augment))
        return dict.fromkeys(("accuracy", "precision", "recall"), 0.5 + seed / 100)

    held_out = datasets.load_parts("x.npz", 16)[1].images
    monkeypatch.setattr(augment, "train_classifier", record)
    run("--data", "x.npz", "--per-class", "4", *TINY.split(), "--generator-flags", QUICK, "--out", "r")
    arms = [(False, False), (False, True), (15, False), (15, True)]
    assert seen == [(seed, *arm) for seed in (0, 1, 2) for arm in arms]


def test_half_of_a_batch_is_generated(data, monkeypatch):
    train = load("x.npz", 16)
    real, made = (train._replace(images=torch.full((n, 3, 16, 16), v), labels=torch.arange(n) % 3)
                  for n, v in ((6, 10), (90, 200)))  # fmt: skip
    real, made = (part._replace(images=part.images.to(torch.uint8)) for part in (real, made))
    seen, original = [], datasets.from_uint8
    monkeypatch.setattr(datasets, "from_uint8", lambda images: (seen.append(images), original(images))[1])
    args = augment.parse_args(["--data", "x.npz", *TINY.split()])
    augment.train_classifier(real, made, train, args, False, 0, torch.device("cpu"))
    assert [(batch[:, 0, 0, 0] == 200).sum().item() for batch in seen[:2]] == [2, 2] and len(seen[0]) == 4


def test_a_whole_run(data, capsys, monkeypatch):
    steps, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), step(self, *a, **k))[1])
    run("--data", "x.npz", "--per-class", "6", "4", *TINY.split(), "--generator-flags", QUICK)
    assert len(steps) == 2 * 4 * 3 * 2  # as many in each arm (the generator is trained by Adam)
    folder = data / "runs/augment-x-1"
    out = capsys.readouterr().out
    rows = results(folder)
    assert [(r["per_class"], r["arm"], r["seed"]) for r in rows] == [
        (n, arm, seed) for n in "46" for seed in "012" for arm in augment.ARMS
    ]
    assert all(0 <= float(r[score]) <= 1 for r in rows for score in augment.SCORES)
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text in out and text.count("\n| ") == 9 - 1 and "tested on 30 real images" in text
    for name in ("curve.png", "generated-4.png", "generated-6.png"):
        Image.open(folder / name).verify()
    made = load(folder / "generated-4.npz", 16)
    assert torch.bincount(made.labels).tolist() == [5, 5, 5] and made.classes == ["blue", "green", "red"][::-1]
    trained = datasets.read_checkpoint(folder / "ddpm-4")
    assert trained["data"]["fingerprint"] == load(folder / "subset-4.npz", 16).fingerprint
    assert trained["data"]["count"] == 12


def test_an_interrupted_run_goes_on(data, capsys, monkeypatch):
    given = ["--data", "x.npz", "--per-class", "4", *TINY.split(), "--generator-flags", QUICK]
    run(*given, "--out", "whole")
    original, left = augment.train_classifier, [3]

    def until(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(*arguments)

    monkeypatch.setattr(augment, "train_classifier", until)
    with pytest.raises(SystemExit) as stop:
        run(*given, "--out", "broken")
    assert stop.value.code == 130 and "go on with: python augment.py --resume broken" in capsys.readouterr().err
    assert len(results(data / "broken")) == 3 and not (data / "broken/table.md").exists()
    with open(data / "broken/results.csv", "a", encoding="utf-8") as file:
        file.write("4,real,1,0.")  # a line that was cut off
    left[0] = 99
    run("--resume", "broken")
    assert results(data / "whole") == results(data / "broken")
    assert left[0] == 99 - 9


def test_an_interrupted_generator_goes_on(data, monkeypatch):
    given = ["--data", "x.npz", "--per-class", "4", *TINY.split(), "--generator-flags", QUICK.replace("2", "4", 1)]
    run(*given, "--out", "whole")
    ddpm, steps = importlib.import_module("ddpm"), []
    original = ddpm.train_step

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(ddpm, "train_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(*given, "--out", "broken")
    assert stop.value.code == 130 and datasets.read_checkpoint("broken/ddpm-4")["step"] == 2
    run("--resume", "broken")
    assert len(steps) == 4 and results(data / "whole") == results(data / "broken")


def test_data_that_changed_are_refused(data, capsys):
    """Without a split of its own another fifth would be held out, part of which may be in the subset."""
    arrays = dict(np.load("x.npz"))
    del arrays["split"]
    np.savez("x.npz", **arrays)
    run("--data", "x.npz", "--per-class", "4", *TINY.split(), "--generator-flags", QUICK, "--out", "r")
    np.savez("x.npz", **{name: values[:-6] if len(values) == 120 else values for name, values in arrays.items()})
    with pytest.raises(SystemExit) as stop:
        run("--resume", "r")
    assert stop.value.code == 2 and "has changed since" in capsys.readouterr().err


def test_a_subset_smaller_than_the_generators_batch(data):
    quick = QUICK.replace("--batch 4 ", "")
    run("--data", "x.npz", "--per-class", "4", *TINY.split(), "--generator-flags", quick, "--out", "r")
    assert datasets.read_checkpoint("r/ddpm-4")["flags"]["batch"] == 12


def test_the_generator_may_be_given_but_must_not_know_more(data, capsys):
    given = ["--data", "x.npz", "--per-class", "4", *TINY.split()]
    run(*given, "--generator-flags", QUICK, "--out", "a")
    ddpm = importlib.import_module("ddpm")
    run(*given, "--generator", "a/ddpm-4", "--out", "b")
    assert results(data / "a") == results(data / "b")  # the same generator, so the same images
    ddpm.main(
        ddpm.parse_args(["--data", "x.npz", "--size", "16", *QUICK.split(), "--eval-images", "0", "--out", "full"])
    )
    dcgan = importlib.import_module("dcgan")
    dcgan.main(dcgan.parse_args("--data x.npz --size 16 --width 4 --batch 4 --steps 1 --device cpu --out gan".split()))
    capsys.readouterr()
    for source, words in (("full", "fingerprints differ"), ("gan", "knows no classes"), ("x.npz", "damaged or no")):
        with pytest.raises(SystemExit) as stop:
            run(*given, "--generator", source, "--out", f"c-{source}")
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and words in error


@pytest.mark.parametrize("name", ["cgan", "cvae"])
def test_other_generators(data, name):
    quick = "--steps 2 --width 4 --batch 4 --device cpu --precision fp32"
    run("--data", "x.npz", "--per-class", "4", *TINY.split(), "--generator", name, "--generator-flags", quick)
    assert datasets.read_checkpoint(data / f"runs/augment-x-1/{name}-4")["script"] == name
    assert len(results(data / "runs/augment-x-1")) == 12


def test_data_without_a_split(data):
    """A fifth is held out, and no subset holds any of it."""
    images = np.random.default_rng(1).integers(0, 256, (60, 16, 16, 1), np.uint8)
    np.savez("y.npz", images=images, labels=np.arange(60) % 2)
    run("--data", "y.npz", "--per-class", "20", *TINY.split(), "--generator-flags", QUICK, "--out", "r")
    assert "tested on 12 real images" in (data / "r/table.md").read_text(encoding="utf-8")
    _, held_out = datasets.load_parts("y.npz", 16, 12)
    few = {image.numpy().tobytes() for image in load(data / "r/subset-20.npz", 16).images}
    assert len(few) == 40 and not few & {image.numpy().tobytes() for image in held_out.images}


@pytest.mark.parametrize(
    "given, words",
    [
        ("", "give --data"),
        ("--data absent.zip", "no data set or path"),
        ("--data x.npz --per-class 31", "has 30 training images"),
        ("--data x.npz --per-class 1", "at least 2"),
        ("--data x.npz --seeds one", "at least 3"),
        ("--data x.npz --width 4", "at least 8"),
        ("--data x.npz --batch 5", "is odd"),
        ("--data x.npz --per-class 4 --generator-flags=--stpes", "--stpes"),
        ("--data x.npz --per-class 4 --generator-flags='", "No closing quotation"),
        ("--data few.npz --per-class 2", "too few"),
        ("--data x.npz --per-class 4 --generator absent", "no checkpoint"),
        ("--data x.npz --per-class 4 5 --generator runs/a", "one number"),
        ("--data plain.npz", "no labels"),
        ("--resume absent", "no run of augment.py"),
        ("--resume a --add 3", "leave out --add"),
        ("--data x.npz --per-class 4 --out x.npz", "not empty"),
        ("--data x.npz --device cuda:7", "no device"),
    ],
)
def test_bad_input(data, given, words, capsys):
    np.savez("plain.npz", images=np.zeros((40, 16, 16, 3), np.uint8))
    np.savez("few.npz", images=np.zeros((4, 16, 16, 3), np.uint8), labels=np.arange(4) % 2)
    with pytest.raises(SystemExit) as stop:
        run(*given.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and words in error, error
    assert not (data / "runs").exists()


def test_settings_are_kept(data):
    run("--data", "x.npz", "--per-class", "4", *TINY.split(), "--generator-flags", QUICK, "--out", "r")
    kept = json.loads((data / "r/settings.json").read_text(encoding="utf-8"))
    assert kept["per_class"] == [4] and kept["add"] == 5 and kept["generator_flags"] == QUICK
    shutil.rmtree(data / "r/ddpm-4")  # what is there is not made again
    before = results(data / "r")
    run("--resume", "r")
    assert results(data / "r") == before and not (data / "r/ddpm-4").exists()
