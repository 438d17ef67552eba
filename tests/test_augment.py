"""augment.py: subsets, scores, the classifier, leaks that are refused, the verdict, small runs."""

import csv
import functools
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import make_folder
from PIL import Image

import augment
import datasets
import training
from datasets import load
from sources import InputError, run_program

pytestmark = pytest.mark.usefixtures("no_plots")
TINY = "--size 16 --add 5 --steps 2 --batch 4 --width 8 --seeds 3 --device cpu"
QUICK = "--steps 2 --width 4 --batch 4 --save-every 1 --device cpu --precision fp32"
DDPM = f"{QUICK} --timesteps 10 --sample-steps 2"
GIVEN = ["--data", "x.npz", "--per-class", "4", *TINY.split()]  # besides the generator
TRAIN = [*GIVEN, "--generator-flags", DDPM]


@pytest.fixture
def data(here):
    """x.npz: 120 labelled images of 16x16 in three colors, of which 30 are held out."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = rng.integers(0, 80, (120, 16, 16, 3), np.uint8)
    images[np.arange(120), :, :, labels] += 120
    classes = ["red", "green", "blue"]
    np.savez("x.npz", images=images, labels=labels, classes=classes, split=np.arange(120) // 90)
    return here


def run(*given):
    run_program(functools.partial(augment.main, [*given]))


def error_of(capsys, *given):
    """The one line of an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*given)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


def results(folder):
    with open(f"{folder}/results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def as_bytes(images):
    return {image.numpy().tobytes() for image in images}


# --------------------------------------------------------------------------------------- the pieces


def test_subsets_are_nested_and_even(data):
    train = load("x.npz", 16)
    few = augment.subset(train, 4)
    more = augment.subset(train, 9)
    assert torch.bincount(few.labels).tolist() == [4, 4, 4]
    assert torch.bincount(more.labels).tolist() == [9, 9, 9]
    assert as_bytes(few.images) <= as_bytes(more.images)
    assert not as_bytes(more.images) & as_bytes(load("x.npz", 16, "test").images)
    with pytest.raises(InputError, match="'red' of x has 30 training images, and 31"):
        augment.subset(train, 31)


def test_a_subset_is_chosen_class_by_class(data):
    train = load("x.npz", 16)
    for seed in (0, 3):
        rows = []
        for label in range(3):
            members = (train.labels == label).nonzero()[:, 0]
            order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
            rows += members[order[:4]].tolist()
        few = augment.subset(train, 4, seed)
        assert torch.equal(few.images, train.images[rows])
        assert few.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_data_that_are_not_square(here):
    """Both ways of holding images out take the fit."""
    make_folder(here / "photos", [f"{c}/{i}.png" for c in "ab" for i in range(10)], size=(30, 20))
    flags = ["--data", "photos", "--fit", "squash"]
    args = augment.parse_args(flags)
    args.size = 16
    train, test = augment.labelled_data(args)
    whole = load("photos", 16, fit="squash")
    assert as_bytes(train.images) | as_bytes(test.images) == as_bytes(whole.images)
    make_folder(here / "photos/test", ["a/x.png", "b/y.png"], size=(30, 20))
    (here / "photos/train").mkdir()
    for name in "ab":
        (here / "photos" / name).rename(here / "photos/train" / name)
    train, test = augment.labelled_data(args)
    assert as_bytes(test.images) == as_bytes(load("photos", 16, "test", "squash").images)
    assert len(train.images) == 20 and len(test.images) == 2


def test_scores_against_counting():
    labels, predicted = torch.randint(0, 5, (2, 300), generator=torch.Generator().manual_seed(0))
    predicted[predicted == 4] = 3  # class 4 is never predicted
    precision = []
    recall = []
    for c in range(5):
        pairs = zip(labels.tolist(), predicted.tolist(), strict=True)
        right = sum(a == b == c for a, b in pairs)
        precision.append(right / max(1, int((predicted == c).sum())))
        recall.append(right / int((labels == c).sum()))
    values = augment.scores(labels, predicted, 5)
    assert values["accuracy"] == pytest.approx((labels == predicted).double().mean().item())
    assert values["precision"] == pytest.approx(sum(precision) / 5)
    assert values["recall"] == pytest.approx(sum(recall) / 5)


def test_the_classifier_is_resnet18():
    """torchvision's with its weights, but a first layer of 3x3 and no pooling after it."""
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=7)
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool = torch.nn.Identity()
    ours = augment.resnet18(3, 7, 32)
    state = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(state))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)
    assert augment.resnet18(1, 3, 64, width=8)[0](torch.zeros(1, 1, 64, 64)).shape[-1] == 32


def test_classical_augmentation():
    torch.manual_seed(0)
    x = torch.rand(200, 3, 16, 16) * 2 - 1
    changed = augment.classical(x, flip=True)
    assert changed.shape == x.shape and changed.abs().max() <= 1
    assert not torch.allclose(changed[0] - x[0], changed[1] - x[1])
    ramp = torch.linspace(-0.5, 0.5, 16).expand(200, 1, 16, 16)  # grows to the right

    def grows(images):
        return images[:, 0, 8, 12] > images[:, 0, 8, 3]

    assert 0.35 < grows(augment.classical(ramp, flip=True)).float().mean() < 0.65
    assert grows(augment.classical(ramp, flip=False)).all()
    spot = torch.full((300, 1, 16, 16), -1.0)
    spot[:, :, 8, 8] = 1.0
    places = {divmod(int(image.argmax()), 16) for image in augment.classical(spot, False)}
    assert places == {(i, j) for i in range(6, 11) for j in range(6, 11)}  # shifted by up to 2


def test_half_of_a_batch_is_generated(data, monkeypatch):
    train = load("x.npz", 16)

    def of_value(n, value):
        images = torch.full((n, 3, 16, 16), value, dtype=torch.uint8)
        return train._replace(images=images, labels=torch.arange(n) % 3)

    batches = []
    from_uint8 = datasets.from_uint8
    monkeypatch.setattr(datasets, "from_uint8", lambda x: batches.append(x) or from_uint8(x))
    args = augment.parse_args(GIVEN)
    arguments = (train, args, False, 0, torch.device("cpu"))
    augment.train_classifier(of_value(6, 10), of_value(90, 200), *arguments)
    for batch in batches[:2]:
        assert batch[:, 0, 0, 0].sort().values.tolist() == [10, 10, 200, 200]


# -------------------------------------------------------------------------------------- the verdict


def outcomes(gain):
    """{(50, arm): scores of 5 seeds}: 0.7, noise, and `gain` where there are generated images."""
    noise = (0.0, 0.01, -0.01, 0.005, -0.005)
    more_noise = (0.003, -0.003, 0.0015, -0.0015, 0.0)
    values = {}
    for arm in augment.ARMS:
        accuracies = [0.7 + x for x in noise]
        if arm in ("real+generated", "real+both"):
            accuracies = [a + gain + x for a, x in zip(accuracies, more_noise, strict=True)]
        values[50, arm] = [dict.fromkeys(augment.SCORES, accuracy) for accuracy in accuracies]
    return values


@pytest.mark.parametrize(
    "gain, helps, hurts, words",
    [(0.05, 2, 0, "helps by 5.0"), (-0.05, 0, 2, "hurts by 5.0"),
     (0.0, 0, 0, "makes no difference beyond noise")],
)  # fmt: skip
def test_the_verdict(gain, helps, hurts, words):
    text = augment.verdict(outcomes(gain), augment.parse_args(["--data", "x"]), "x", 2100)
    assert text.count(words) == 2 and "5 trainings" in text and "2,100 real" in text
    assert f"Of 2 comparisons {helps} show that it helps, {hurts} that it hurts" in text
    share = 0.7 + gain / 2
    assert f"uncertain by {100 * math.sqrt(share * (1 - share) / 2100):.1f} points" in text


def test_the_comparison_is_the_paired_t_test():
    a = [0.71, 0.75, 0.69, 0.80, 0.73]
    b = [0.70, 0.72, 0.70, 0.75, 0.71]
    differences = [100 * (x - y) for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / 5
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / 4 / 5)
    # P(|T| > t) of Student's t with 4 degrees of freedom: 1 - sqrt(u) (3 - u) / 2, where
    # u = t^2 / (t^2 + 4)
    u = (mean / error) ** 2 / ((mean / error) ** 2 + 4)
    expected = (mean, error, 1 - math.sqrt(u) * (3 - u) / 2)
    assert augment.compared(a, b) == pytest.approx(expected, rel=1e-6)
    assert augment.compared(a, a) == (0.0, 0.0, 1.0)
    mean, error, p = augment.compared([0.4, 0.7, 0.9], [0.3, 0.6, 0.8])  # equal, up to rounding
    assert mean == pytest.approx(10) and error < 1e-9
    assert p == 0.25  # three heads or three tails


def test_many_comparisons():
    """Holm: times 4, 3, 2, 1 in the order of size, and never less than one before."""
    assert augment.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert augment.holm([0.6, 0.7]) == [1.0, 1.0] and augment.holm([0.2]) == [0.2]


# --------------------------------------------------------------------------------------- whole runs


def test_what_each_arm_is_trained_on(data, monkeypatch):
    calls = []
    held_out = datasets.load_parts("x.npz", 16)[1].images

    def record(real, generated, test, args, augment, seed, *_):
        assert len(real.images) == 12 and torch.equal(test.images, held_out)
        calls.append((seed, 0 if generated is None else len(generated.images), augment))
        return dict.fromkeys(("accuracy", "precision", "recall"), 0.5 + seed / 100)

    monkeypatch.setattr(augment, "train_classifier", record)
    run(*TRAIN, "--out", "r")
    arms = [(0, False), (0, True), (15, False), (15, True)]
    assert calls == [(seed, *arm) for seed in (0, 1, 2) for arm in arms]


def test_a_whole_run(data, capsys, monkeypatch):
    steps = []
    step = torch.optim.AdamW.step  # of classifiers: the generator is trained by Adam
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: steps.append(1) or step(*a, **k))
    run(*TRAIN, "--per-class", "6", "4")
    assert len(steps) == 2 * 4 * 3 * 2  # as many in each arm
    folder = data / "runs/augment-x-1"
    rows = results(folder)
    keys = [(row["per_class"], row["arm"], row["seed"]) for row in rows]
    assert keys == [(n, arm, seed) for n in "46" for seed in "012" for arm in augment.ARMS]
    assert all(0 <= float(row[score]) <= 1 for row in rows for score in augment.SCORES)
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text.count("\n| ") == 8 and "tested on 30 real images" in text
    for name in ("curve.png", "generated-4.png", "generated-6.png"):
        Image.open(folder / name).verify()
    generated = load(folder / "generated-4.npz", 16)
    assert torch.bincount(generated.labels).tolist() == [5, 5, 5]
    assert generated.classes == ["red", "green", "blue"]
    about = training.read_checkpoint(folder / "ddpm-4")["data"]
    subset = load(folder / "subset-4.npz", 16)
    assert about["fingerprint"] == subset.fingerprint and about["count"] == 12


def test_an_interrupted_run_goes_on(data, capsys, monkeypatch):
    run(*TRAIN, "--out", "whole")
    train_classifier = augment.train_classifier
    calls = []

    def until_3(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return train_classifier(*arguments)

    monkeypatch.setattr(augment, "train_classifier", until_3)
    with pytest.raises(SystemExit) as stop:
        run(*TRAIN, "--out", "broken")
    assert stop.value.code == 130
    assert "go on with: python augment.py --resume broken" in capsys.readouterr().err
    assert len(results("broken")) == 3 and not (data / "broken/table.md").exists()
    with open("broken/results.csv", "a", encoding="utf-8") as file:
        file.write("4,real,1,0.")  # a line that was cut off
    calls = ["not 3"] * 4
    run("--resume", "broken")
    assert results("whole") == results("broken") and len(calls) == 4 + 9


def test_an_interrupted_generator_goes_on(data, monkeypatch):
    given = [*GIVEN, "--generator-flags", DDPM.replace("2", "4", 1)]
    run(*given, "--out", "whole")
    ddpm = training.load_script("ddpm")
    unet_step = ddpm.unet_step
    steps = []

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return unet_step(*arguments)

    monkeypatch.setattr(ddpm, "unet_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(*given, "--out", "broken")
    assert stop.value.code == 130 and training.read_checkpoint("broken/ddpm-4")["step"] == 2
    run("--resume", "broken")
    assert len(steps) == 4 and results("whole") == results("broken")


def test_settings_and_files_are_kept(data):
    run(*TRAIN, "--out", "r")
    settings = json.loads((data / "r/settings.json").read_text(encoding="utf-8"))
    assert settings["per_class"] == [4] and settings["add"] == 5
    assert settings["generator_flags"] == DDPM
    shutil.rmtree("r/ddpm-4")  # its images are there, so it is not trained again
    before = results("r")
    run("--resume", "r")
    assert results("r") == before and not (data / "r/ddpm-4").exists()


def test_data_that_changed_are_refused(data, capsys):
    """Without a split, another fifth would be held out, and the subset may hold some of it."""
    arrays = dict(np.load("x.npz"))
    del arrays["split"]
    np.savez("x.npz", **arrays)
    run(*TRAIN, "--out", "r")
    for name in ("images", "labels"):
        arrays[name] = arrays[name][:-6]
    np.savez("x.npz", **arrays)
    load("x.npz", 16)  # a line says that the images are prepared again
    assert "has changed since" in error_of(capsys, "--resume", "r")


def test_an_interrupted_sampling_goes_on(data, monkeypatch, capsys):
    """Ctrl-C costs the images of one class."""
    run(*TRAIN, "--out", "whole")
    ddpm = training.load_script("ddpm")
    generate = ddpm.generate
    made = []

    def counted(*given, **more):
        made.append(more["label"])
        return generate(*given, **more)

    def until_class_2(*given, **more):
        if more["label"] == 2:
            raise KeyboardInterrupt
        return counted(*given, **more)

    monkeypatch.setattr(ddpm, "generate", until_class_2)
    with pytest.raises(SystemExit):
        run(*TRAIN, "--out", "a b")
    assert "python augment.py --resume 'a b'" in capsys.readouterr().err
    monkeypatch.setattr(ddpm, "generate", counted)
    run("--resume", "a b")
    assert made == [0, 1, 2] and results("whole") == results("a b")
    assert [path.name for path in (data / "a b").glob("generated-*.npz")] == ["generated-4.npz"]


def test_names_of_data_in_the_table(data):
    (data / "<b>*x*|.npz").write_bytes((data / "x.npz").read_bytes())
    run(*TRAIN, "--data", "<b>*x*|.npz", "--out", "r")
    text = (data / "r/table.md").read_text(encoding="utf-8")
    assert r"&lt;b>\*x\*\|, 5 images" in text and "<b>" not in text


def test_a_subset_smaller_than_the_generators_batch(data):
    run(*GIVEN, "--generator-flags", DDPM.replace("--batch 4 ", ""), "--out", "r")
    assert training.read_checkpoint("r/ddpm-4")["flags"]["batch"] == 12


def test_a_given_generator_must_not_know_more(data, capsys):
    run(*TRAIN, "--out", "a")
    run(*GIVEN, "--generator", "a/ddpm-4", "--out", "b")
    assert results("a") == results("b")  # the same generator, so the same images
    flags = ["--data", "x.npz", "--size", "16"]
    training.load_script("ddpm").main([*flags, *DDPM.split(), "--out", "full"])
    training.load_script("dcgan").main([*flags, *QUICK.split(), "--out", "gan"])
    arrays = dict(np.load("a/subset-4.npz"))
    np.savez("plain.npz", images=arrays["images"])
    training.load_script("ddpm").main(
        [*flags, "--data", "plain.npz", *DDPM.split(), "--out", "one"]
    )
    for source, words in (
        ("full", "fingerprints differ"),
        ("gan", "knows no classes"),
        ("one", "knows no classes"),
        ("x.npz", "damaged or no"),
    ):
        assert words in error_of(capsys, *GIVEN, "--generator", source, "--out", f"c-{source}")


@pytest.mark.parametrize("name", ["cgan", "cvae"])
def test_other_generators(data, name):
    run(*GIVEN, "--generator", name, "--generator-flags", QUICK, "--out", "r")
    assert training.read_checkpoint(f"r/{name}-4")["script"] == name and len(results("r")) == 12


def test_data_without_a_split(data):
    """A fifth is held out, and no subset holds any of it."""
    images = np.random.default_rng(1).integers(0, 256, (60, 16, 16, 1), np.uint8)
    np.savez("y.npz", images=images, labels=np.arange(60) % 2)
    run(*TRAIN, "--data", "y.npz", "--per-class", "20", "--out", "r")
    assert "tested on 12 real images" in (data / "r/table.md").read_text(encoding="utf-8")
    _, held_out = datasets.load_parts("y.npz", 16, 12)
    subset = as_bytes(load("r/subset-20.npz", 16).images)
    assert len(subset) == 40 and not subset & as_bytes(held_out.images)


@pytest.mark.parametrize(
    "given, words",
    [("", "give --data"), ("--data absent.zip", "no data set or path"),
     ("--data x.npz --per-class 31", "has 30 training images"),
     ("--data x.npz --per-class 1", "at least 2"), ("--data x.npz --seeds one", "at least 3"),
     ("--data x.npz --width 4", "at least 8"), ("--data x.npz --batch 5", "is odd"),
     ("--data x.npz --per-class 4 --generator-flags=--stpes", "--stpes"),
     ("--data x.npz --per-class 4 --generator-flags='", "No closing quotation"),
     ("--data x.npz --per-class 4 --generator-flags=--guidance=2\t--drop-label=0", "drop-label"),
     ("--data few.npz --per-class 2", "too few"), ("--data plain.npz", "no labels"),
     ("--data x.npz --per-class 4 --generator absent", "no checkpoint"),
     ("--data x.npz --per-class 4 5 --generator runs/a", "one number"),
     ("--resume absent", "no run of augment.py"), ("--resume a --add 3", "leave out --add"),
     ("--data x.npz --per-class 4 --out x.npz", "not empty"),
     ("--data absent --out x.npz", "not empty"), ("--data absent --out x.npz/r", "is a file"),
     ("--data x.npz --width 99999", "below 1025"), ("--data=", "--data: is empty"),
     ("--resume=", "--resume: is empty"), ("--data x.npz --out=", "--out: is empty"),
     ("--resume pipe", "no run of augment.py"),
     ("--data x.npz --device cuda:7", "no device")],
)  # fmt: skip
def test_bad_input(data, given, words, capsys):
    images = np.load("x.npz")["images"]
    np.savez("plain.npz", images=images[:40])
    np.savez("few.npz", images=images[:4], labels=np.arange(4) % 2)
    if hasattr(os, "mkfifo"):
        (data / "pipe").mkdir()
        os.mkfifo("pipe/settings.json")
    arguments = given.split(" ") if given else []  # a tab stays within an argument
    assert words in error_of(capsys, *arguments)
    assert not (data / "runs").exists()
