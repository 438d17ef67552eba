"""augment.py: subsets, scores, the classifier, leaks that are refused, the verdict, small runs."""

import argparse
import csv
import functools
import itertools
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
from scipy import stats

import augment
import datasets
import inception
import metrics
import training
from datasets import load
from sources import InputError, run_program

pytestmark = pytest.mark.usefixtures("no_plots", "no_weights")
TINY = "--size 16 --add 5 --steps 2 --batch 4 --width 8 --seeds 3 --device cpu"
QUICK = "--steps 2 --width 4 --batch 4 --save-every 1 --device cpu --precision fp32"
DDPM = f"{QUICK} --timesteps 10 --sample-steps 2"
GIVEN = ["--data", "x.npz", "--per-class", "4", *TINY.split()]  # besides the generator
TRAIN = [*GIVEN, "--generator-flags", DDPM]


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """An empty torch hub folder and no network: a test names the weights that it needs."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(inception, "download", lambda: "no network in tests")


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


def as_list(images):
    return [image.numpy().tobytes() for image in images]


def as_bytes(images):
    return set(as_list(images))


def table_of(folder):
    with open(f"{folder}/table.md", encoding="utf-8") as file:
        return file.read().splitlines()


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


def of_value(values, count):
    """Images of one value each, `count` of each value, in two classes."""
    images = torch.tensor(values, dtype=torch.uint8).repeat_interleave(count)
    images = images[:, None, None, None].expand(-1, 3, 16, 16)
    labels = torch.arange(len(images)) % 2
    return datasets.Images(images, labels, ["a", "b"], "x", "", True, "")


def batches_of(monkeypatch, generated, *flags):
    """The values in each batch of a classifier that is trained on 3 images and on `generated`."""
    batches = []
    from_uint8 = datasets.from_uint8
    monkeypatch.setattr(datasets, "from_uint8", lambda x: batches.append(x) or from_uint8(x))
    linear = [torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2)]
    monkeypatch.setattr(augment, "resnet18", lambda *_: torch.nn.Sequential(*linear))
    args = augment.parse_args([*GIVEN, "--steps", "100", "--batch", "24", *flags])
    real = of_value([0, 1, 2], 1)
    arguments = (of_value([99], 2), args, False, 0, torch.device("cpu"))
    augment.train_classifier(real, generated, *arguments)
    return torch.stack([batch[:, 0, 0, 0] for batch in batches[:100]])


def test_a_batch_is_drawn_from_the_union(monkeypatch):
    """Each of 3 real and 9 generated images is equally likely."""
    counts = torch.bincount(batches_of(monkeypatch, of_value(range(3, 12), 1)).flatten())
    assert len(counts) == 12 and counts.sum() == 100 * 24
    assert stats.chisquare(counts.numpy()).pvalue > 0.001  # the seed is fixed


def test_half_of_a_batch_is_generated(monkeypatch):
    values = batches_of(monkeypatch, of_value(range(3, 12), 1), "--mix", "half")
    assert ((values < 3).sum(1) == 12).all()
    counts = torch.bincount(values.flatten()).numpy()
    assert stats.chisquare(counts[:3]).pvalue > 0.001
    assert stats.chisquare(counts[3:]).pvalue > 0.001


@pytest.mark.parametrize("mix", ["union", "half"])
def test_without_generated_images_nothing_is_mixed(monkeypatch, mix):
    values = batches_of(monkeypatch, None, "--mix", mix)
    assert values.shape == (100, 24) and values.unique().tolist() == [0, 1, 2]


def test_images_of_each_class():
    train = of_value(range(12), 1)
    data = train._replace(labels=torch.arange(12) // 6)
    chosen = augment.of_each_class(data, 1, 4)
    assert chosen.images[:, 0, 0, 0].tolist() == [1, 2, 3, 7, 8, 9]
    assert chosen.labels.tolist() == [0, 0, 0, 1, 1, 1]


# -------------------------------------------------------------------------------------- the verdict


def outcomes(gain):
    """Results of 5 seeds: 0.7, noise, and `gain` where there are generated images."""
    noise = (0.0, 0.01, -0.01, 0.005, -0.005)
    more_noise = (0.003, -0.003, 0.0015, -0.0015, 0.0)
    values = {}
    for arm in augment.ARMS:
        added = 0
        accuracies = [0.7 + x for x in noise]
        if arm in ("real+generated", "real+both"):
            added = 200
            accuracies = [a + gain + x for a, x in zip(accuracies, more_noise, strict=True)]
        values[50, added, arm] = dict.fromkeys(augment.SCORES, accuracies)
    return values


@pytest.mark.parametrize(
    "gain, helps, hurts, words",
    [(0.05, 2, 0, "helps by 5.0"), (-0.05, 0, 2, "hurts by 5.0"),
     (0.0, 0, 0, "makes no difference beyond noise")],
)  # fmt: skip
def test_the_verdict(gain, helps, hurts, words):
    args = augment.parse_args(["--data", "x"])
    text = "\n".join(augment.verdict(outcomes(gain), args, "x", 2100))
    assert text.count(words) == 2 and "2,100 real" in text
    assert "- 50 real and 200 generated images of each class: " in text
    assert f"Of 2 comparisons {helps} show that it helps, {hurts} that it hurts" in text
    share = 0.7 + gain / 2
    assert f"uncertain by {100 * math.sqrt(share * (1 - share) / 2100):.1f} points" in text


def study(rng, subsets, seeds, spread):
    """(args, what classifiers of a study scored). spread: of the effect of generated images over
    the subsets; over the seeds of one it is 0.01."""
    given = {"per_class": [50], "add": [200], "subsets": subsets, "seeds": seeds}
    done = {}
    for k in range(subsets):
        effect = rng.normal(0, spread)
        for j, arm in itertools.product(range(seeds), augment.ARMS):
            added = 200 if arm in ("real+generated", "real+both") else 0
            value = rng.normal(0.6 + (effect if added else 0), 0.01)
            values = dict.fromkeys(augment.SCORES, value)
            done[50, k, added, arm, k * seeds + j] = values
    return argparse.Namespace(**given), done


def accuracies(done, arm, subsets):
    """float64 (subsets, seeds)."""
    values = [scores["accuracy"] for key, scores in done.items() if arm in key]
    return np.array(values).reshape(subsets, -1)


def test_several_subsets_are_compared_by_their_means():
    """As in the analysis of variance of the whole table of 3 subsets, 4 seeds and 2 arms, where the
    interaction of arms and subsets is the error: F = t squared."""
    args, done = study(np.random.default_rng(0), 3, 4, 0.02)
    results = augment.collected(done, args)
    both = results[50, 200, "real+generated"], results[50, 0, "real"]
    mean, error, p = augment.compared(*[values["accuracy"] for values in both])
    cells = np.stack([accuracies(done, arm, 3) for arm in ("real+generated", "real")])
    means = cells.mean(2)  # (arms, subsets)
    of_arms = means.mean(1, keepdims=True)
    of_arm_squares = 3 * 4 * ((of_arms - means.mean()) ** 2).sum()  # 1 degree of freedom
    rest = means - of_arms - means.mean(0) + means.mean()
    f = of_arm_squares / (4 * (rest**2).sum() / 2)
    assert p == pytest.approx(stats.f.sf(f, 1, 2))
    assert mean == pytest.approx(100 * (of_arms[0] - of_arms[1]).item())
    assert error == pytest.approx(abs(mean) / math.sqrt(f))
    line = augment.table(results).splitlines()[2]
    of_real = 100 * cells[1].mean(1)
    spread = of_real.std(ddof=1) / math.sqrt(3)
    assert line.startswith(f"| 50 | 0 | real | {of_real.mean():.1f} ± {spread:.1f} |")


def test_one_subset_is_compared_by_its_seeds():
    args, done = study(np.random.default_rng(1), 1, 5, 0.02)
    results = augment.collected(done, args)
    both = results[50, 200, "real+both"], results[50, 0, "real+classical"]
    _, _, p = augment.compared(*[values["accuracy"] for values in both])
    pair = [accuracies(done, arm, 1)[0] for arm in ("real+both", "real+classical")]
    assert p == pytest.approx(stats.ttest_rel(*pair).pvalue)


def test_the_error_covers_the_choice_of_the_subset():
    """Where only the choice of the subset makes a difference, 5 % of studies find one."""
    rng = np.random.default_rng(2)
    wrong = 0
    pooled = 0
    for _ in range(100):
        args, done = study(rng, 3, 4, 0.05)
        results = augment.collected(done, args)
        both = results[50, 200, "real+generated"], results[50, 0, "real"]
        wrong += augment.compared(*[values["accuracy"] for values in both])[2] < 0.05
        pair = [accuracies(done, arm, 3).ravel() for arm in ("real+generated", "real")]
        pooled += stats.ttest_rel(*pair).pvalue < 0.05
    assert wrong <= 12  # 5, and three standard deviations of 2.2
    assert pooled > 30  # what all trainings as independent pairs would find


def test_what_the_error_covers(data):
    train = load("x.npz", 16)  # 30 of each class
    words = augment.what_the_error_covers(augment.parse_args(GIVEN), train)
    assert "3 trainings of the classifier" in words and "does not cover the choice" in words
    args = augment.parse_args([*GIVEN, "--subsets", "4", "--per-class", "6", "3"])
    words = augment.what_the_error_covers(args, train)
    assert "over 4 subsets, each" in words
    pairs = itertools.combinations(range(40), 2)
    images = [as_bytes(augment.subset(train, 6, k).images) for k in range(40)]
    common = np.mean([len(images[i] & images[j]) / 18 for i, j in pairs])
    assert common == pytest.approx(0.2, abs=0.02) and "share about 20 % of them" in words


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


@pytest.fixture
def quick(data, monkeypatch):
    """x.npz, and runs of the cheapest generator. Scores tell what a classifier was trained on."""

    def score(real, generated, test, args, augment, seed, *_):
        images = real.images if generated is None else torch.cat([real.images, generated.images])
        accuracy = (float(images.double().mean()) + seed + 20 * augment) / 300
        return dict.fromkeys(augment_scores, accuracy)

    augment_scores = augment.SCORES
    monkeypatch.setattr(augment, "train_classifier", score)
    monkeypatch.setattr(augment, "draw_curve", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return [*GIVEN, "--generator", "cvae", "--generator-flags", QUICK]


def recorded(monkeypatch, calls):
    """The calls of train_classifier() go to the list."""
    score = augment.train_classifier
    record = lambda *given: calls.append(given) or score(*given)  # noqa: E731
    monkeypatch.setattr(augment, "train_classifier", record)


def test_several_numbers_and_subsets(quick, monkeypatch):
    calls = []
    recorded(monkeypatch, calls)
    run(*quick, "--add", "5", "2", "2", "--subsets", "2", "--out", "r")
    ways = [(0, False), (0, True), (6, False), (6, True), (15, False), (15, True)]
    trained = []
    for real, generated, _, _, more, seed, *_ in calls:
        added = 0 if generated is None else len(generated.images)
        trained.append((len(real.images), added, more, seed))
    assert trained == [(12, added, more, seed) for seed in range(6) for added, more in ways]
    row = results("r")[-1]
    assert list(row)[:5] == ["per_class", "subset", "add", "arm", "seed"]
    assert list(row.values())[:5] == ["4", "1", "5", "real+both", "5"]

    train = load("x.npz", 16)
    subsets = [load(f"r/subset-{name}.npz", 16) for name in ("4", "4-1")]
    assert as_bytes(subsets[0].images) != as_bytes(subsets[1].images)
    for k, name in enumerate(("4", "4-1")):
        assert torch.equal(subsets[k].images, augment.subset(train, 4, k).images)
        assert torch.equal(calls[18 * k][0].images, subsets[k].images)
        checkpoint = training.read_checkpoint(f"r/cvae-{name}")
        assert checkpoint["data"]["fingerprint"] == subsets[k].fingerprint
        assert checkpoint["flags"]["seed"] == k
    made = [load(f"r/generated-{name}.npz", 16) for name in ("4", "4-1")]
    assert not as_bytes(made[0].images) & as_bytes(made[1].images)
    few, many = calls[2][1], calls[4][1]
    for label in range(3):  # the first two of each class are all that --add 2 takes
        assert torch.equal(few.images[few.labels == label], many.images[many.labels == label][:2])
    assert torch.equal(many.images, made[0].images) and torch.equal(many.labels, made[0].labels)

    lines = table_of("r")
    assert sum(line.startswith("| ") for line in lines) == 1 + 6
    assert sum(line.startswith("- ") for line in lines) == 2
    text = "\n".join(lines)
    assert "Of 4 comparisons" in text and "(degrees of freedom: 1)" in text


KILLS = [  # function, call
    ("save_arrays", 1), ("generator", 2), ("generate", 2), ("measured_fids", 1),
    ("train_classifier", 4), ("generator", 1), ("train_classifier", 12), ("write_results", 3),
    ("verdict", 1),
]  # fmt: skip


def test_a_run_killed_at_every_stage(quick, monkeypatch, capsys):
    """Of two subsets. The table is the same as that of a run that nobody stops."""
    quick += ["--add", "5", "2", "--subsets", "2"]
    run(*quick, "--out", "whole")
    calls = []
    recorded(monkeypatch, calls)
    cvae = training.load_script("cvae")
    places = {"generator": (cvae, "train_step"), "generate": (cvae, "generate")}
    given = [*quick, "--out", "killed"]
    for name, call in KILLS:
        module, function = places.get(name, (augment, name))
        left = [None] * (call - 1)
        original = getattr(module, function)

        def killed(*given, left=left, original=original, **more):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return original(*given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(module, function, killed)
            with pytest.raises(SystemExit) as stop:
                run(*given)
        assert stop.value.code == 130, name
        given = ["--resume", "killed"]
    run(*given)
    assert len(calls) == 2 * 3 * 6 + 1  # only the one whose result was not written, again
    for name in ("table.md", "results.csv", "subset-4-1.npz", "generated-4-1.png"):
        whole, killed = [open(f"{run}/{name}", "rb").read() for run in ("whole", "killed")]
        assert whole == killed, name
    calls.clear()
    run("--resume", "killed")
    assert calls == []


def frechet_distance(x, y):
    """FID by the eigenvalues of the product of the covariances."""
    covariances = np.cov(x.T) @ np.cov(y.T)
    roots = np.sqrt(np.linalg.eigvals(covariances).real.clip(0)).sum()
    traces = np.trace(np.cov(x.T)) + np.trace(np.cov(y.T))
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + traces - 2 * roots


def test_fid_of_the_generated_images(quick, monkeypatch):
    """Features here: the mean colors. 5 of 10 held-out images a class, and 4 of the subset."""
    sets = []

    def colors(images, dims, *_):
        sets.append(images)
        return {dims[0]: images.double().mean((2, 3)).numpy()}

    monkeypatch.setattr(metrics, "real_features", colors)
    weights = inception.Weights({}, "w")
    monkeypatch.setattr(metrics, "reachable", lambda dims, _: (weights, dims, {}))
    run(*quick, "--out", "r")
    assert [len(images) for images in sets] == [15, 12, 12, 12]
    reference, generated, subset, others = sets
    held_out = load("x.npz", 16, "test")
    label_of = dict(zip(as_list(held_out.images), held_out.labels.tolist(), strict=True))
    real = as_list(reference) + as_list(others)
    assert len(set(real)) == 27 and {*real} <= {*label_of}
    assert [label_of[x] for x in as_list(reference)] == [0] * 5 + [1] * 5 + [2] * 5
    assert [label_of[x] for x in as_list(others)] == [0] * 4 + [1] * 4 + [2] * 4
    made = load("r/generated-4.npz", 16)
    assert torch.equal(generated, torch.cat([made.images[i : i + 4] for i in (0, 5, 10)]))
    assert torch.equal(subset, load("r/subset-4.npz", 16).images)
    x, *rest = [images.double().mean((2, 3)).numpy() for images in sets]
    cells = [line for line in table_of("r") if "FID-768, 12 images" in line][0].split(" | ")
    expected = [frechet_distance(x, y) for y in rest]
    assert [float(cell) for cell in cells[3:6]] == pytest.approx(expected, abs=0.006)
    assert cells[6:] == ["-", "- |"]  # 15 held-out images are too few


@pytest.mark.parametrize("copies", [0, 4])
def test_a_generator_that_copies_its_subset(monkeypatch, copies):
    """So many of 20 generated images a class are in the subset. FID takes 20 of its 30 images a
    class; the copies are of the others."""
    random = torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, 200, 3, 4, 4), generator=random).byte()

    def pick(*rows):
        parts = [images[label, list(rows)] for label in (0, 1)]
        labels = torch.arange(2).repeat_interleave(len(rows))
        return datasets.Images(torch.cat(parts), labels, ["a", "b"], "x", "", True, "")

    def pixels(images, dims, *_):
        return {dims[0]: images.flatten(1).float().numpy()}

    monkeypatch.setattr(metrics, "real_features", pixels)
    weights = inception.Weights({}, "w")
    monkeypatch.setattr(metrics, "reachable", lambda dims, _: (weights, dims, {}))
    args = augment.parse_args([*GIVEN, "--eval-images", "100", "--add", "20"])
    few = pick(*range(30))
    generated = pick(*range(30 - copies, 30), *range(30, 50 - copies))
    measured = augment.measured_fids(args, few, generated, pick(*range(50, 200)), "cpu")
    share, real = measured[0].split(" | ")[-2:]
    # a new image is near with a probability of 5 / 101
    assert float(share.split()[0]) == pytest.approx(copies / 20 + 0.05, abs=0.1)
    assert float(real.split()[0]) == pytest.approx(0.05, abs=0.1)
    assert "near training" in augment.fid_table({(30, 0): measured}).splitlines()[0]


def test_fid_with_weights(quick, small_weights, monkeypatch):
    """They end before 768 features, and the table says so. A second time costs no features."""
    run(*quick, "--eval-images", "6", "--out", "r")
    assert "not measured here: FID (could not download" in "\n".join(table_of("r"))
    given = ["--resume", "r", "--weights", str(small_weights)]
    run(*given)
    text = "\n".join(table_of("r"))
    assert "| 4 | 0 | FID-192, 6 images | " in text and "lacks Mixed" in text
    assert "FID-192: 192-d FID Inception features" in text
    assert "against 6 held-out images of x, each class equally often" in text
    monkeypatch.setattr(inception, "features", None)
    run(*given)
    assert "\n".join(table_of("r")) == text


@pytest.mark.parametrize("images", [0, 2])
def test_without_fid(data, images, monkeypatch):
    """Of three classes, 2 images are too few. Nobody looks for weights then."""
    monkeypatch.setattr(metrics, "reachable", None)
    args = augment.parse_args([*GIVEN, "--eval-images", str(images)])
    test = load("x.npz", 16, "test")
    measured = augment.measured_fids(args, test, test, test, "cpu")
    text = augment.fid_table({(4, 0): measured})
    assert text.startswith("not measured here: FID (too few held-out images")


def test_a_run_of_the_previous_layout(quick, capsys):
    run(*quick, "--out", "r")
    settings = json.loads(open("r/settings.json", encoding="utf-8").read())
    for name in ("mix", "subsets", "eval_images", "dims", "weights"):
        del settings[name]
    with open("r/settings.json", "w", encoding="utf-8") as file:
        json.dump({**settings, "add": 5}, file)
    assert "older augment.py: start a new run" in error_of(capsys, "--resume", "r")


def test_the_curves(here, monkeypatch):
    """Over --add for each --per-class, and over --per-class for each --add."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: figures.append(figure) or save(figure, *a, **k)
    )
    for adds, counts, titles in (
        ([7], [20], ["7 generated"]), ([7, 9], [20], ["20 real"]), ([7], [20, 50], ["7 generated"]),
        ([7, 9], [20, 50], ["20 real", "50 real", "7 generated", "9 generated"]),
    ):  # fmt: skip
        words = ["--add", *adds, "--per-class", *counts]
        args = augment.parse_args(["--data", "x", *map(str, words)])
        results = {}
        for count, (added, arm) in itertools.product(counts, augment.ways(args)):
            values = [(count + added) / 1000, (count + added) / 1000 + 0.1]
            results[count, added, arm] = dict.fromkeys(augment.SCORES, values)
        augment.draw_curve(results, args, here / "curve.png", "$x_")
        axes = figures[-1].axes
        expected = [f"$x_, {title} images of each class" for title in titles]
        assert [axis.get_title() for axis in axes] == expected
        for axis, title in zip(axes, titles, strict=True):
            fixed = int(title.split()[0])
            for arm, lines in zip(augment.ARMS, axis.containers, strict=True):
                xs = adds if "real" in title else counts
                drawn, ys = lines[0].get_data()
                assert list(drawn) == pytest.approx(xs, rel=0.04)
                added = "generated" in arm or "both" in arm
                expected = [fixed + x if added else (fixed if "real" in title else x) for x in xs]
                assert list(ys) == pytest.approx([e / 10 + 5 for e in expected])


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
    out = capsys.readouterr().out
    assert all(line in out for line in text.splitlines())
    assert text.count("\n| ") == 8 and "tested on 30 real images" in text
    assert "\nnot measured here: FID (could not download the Inception weights" in text
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
        file.write("4,0,0,real,1,0.")  # a line that was cut off
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
    assert settings["per_class"] == [4] and settings["add"] == [5]
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
     ("--data x.npz --width 4", "at least 8"), ("--data x.npz --mix half --batch 5", "is odd"),
     ("--data x.npz --mix all", "invalid choice"), ("--data x.npz --add 5 0", "at least 1"),
     ("--data x.npz --subsets 0", "at least 1"), ("--data x.npz --dims 100", "invalid choice"),
     ("--data x.npz --per-class 30 --subsets 2", "every training image"),
     ("--data x.npz --per-class 4 --weights absent.pth", "no Inception weights 'absent.pth'"),
     ("--data x.npz --per-class 4 --subsets 2 --generator runs/a", "no --subsets"),
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
     ("--resume=", "--resume: is empty"), ("--resume a --dims 64", "leave out --dims"),
     ("--data x.npz --out=", "--out: is empty"),
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
