"""datasets.py: a set comes out as one tensor, prepared once, and in batches of a seeded order."""

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from conftest import ROOT, make_folder, picture, program
from PIL import Image

import datasets
import downloads
from datasets import Batches, Images, load, load_parts
from sources import InputError, array_source

every_way = pytest.mark.parametrize("stream", [False, True])


def numbered(n, classes=7):
    """n images of 1x8x8; the first two pixels hold their number, which is also their label."""
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(n) % 256
    images[:, 0, 0, 1] = torch.arange(n) // 256
    names = [str(c) for c in range(classes)]
    return Images(images, torch.arange(n) % classes, names, "n", "f", False, "")


def numbers(images):
    if images.dtype != torch.uint8:
        images = datasets.to_uint8(images)
    pixels = images[:, 0, 0].int()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


# ------------------------------------------------------------------------------------ shapes


def test_shapes_are_the_same_at_every_call_and_labeled():
    a, b, test = load("shapes", 32), load("shapes", 32), load("shapes", 32, "test")
    assert a.images.shape == (10_000, 3, 32, 32) and a.images.dtype == torch.uint8
    assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert test.held_out and a.fingerprint == test.fingerprint and a.labels.dtype == torch.int64
    both = load("shapes", 32, "all")
    assert torch.equal(both.images, torch.cat([a.images, test.images]))
    assert torch.equal(both.labels, torch.cat([a.labels, test.labels]))
    assert a.classes == ["circle", "square", "triangle", "star", "ring"]
    assert torch.bincount(a.labels, minlength=5).min() > 1800
    border = test.images.int()
    border[:, :, 1:-1, 1:-1] = border[:, :, :1, :1]
    assert (border - border[:, :, :1, :1]).abs().max() <= 1  # all shapes stay inside


@pytest.mark.parametrize("size, tolerance", [(16, 0.06), (64, 0.02)])
def test_shapes_have_the_areas_of_geometry(size, tolerance):
    """The covered area of each shape against its formula: antialiasing must keep areas."""
    data = load("shapes", size, "test")
    generator = torch.Generator().manual_seed(2)  # the draws that `draw_shapes` makes first
    assert torch.equal(torch.randint(5, (2000,), generator=generator), data.labels)
    radius = (0.24 + 0.18 * torch.rand(2000, generator=generator)) * size
    values = data.images.float().flatten(2)
    ground = values[:, :, 0]  # a corner
    channel = (values.amax(2) - ground).argmax(1)  # in which the shape stands out most
    ground = ground[torch.arange(2000), channel]
    values = values[torch.arange(2000), channel]
    area = ((values - ground[:, None]) / (values.amax(1) - ground)[:, None]).sum(1)
    # a star: ten triangles between the center, a tip and a notch of a pentagram of inradius 0.3
    tip = 0.3 / np.cos(2 * np.pi / 5)
    notch = 0.3 / np.cos(np.pi / 5)
    expected = {  # in units of the squared radius
        "circle": np.pi * 0.9**2,
        "square": (2 * 0.7) ** 2,
        "triangle": 3 * 3**0.5 * 0.49**2,
        "star": 5 * tip * notch * np.sin(np.pi / 5),
        "ring": np.pi * ((0.72 + 0.2) ** 2 - (0.72 - 0.2) ** 2),
    }
    for label, name in enumerate(data.classes):
        rows = data.labels == label
        ratio = (area[rows] / radius[rows] ** 2).mean().item() / expected[name]
        assert ratio == pytest.approx(1, abs=tolerance), name


# ----------------------------------------------------------------------------------- batches


@every_way
def test_an_epoch_holds_every_image_at_most_once(stream):
    batches = Batches(numbered(303), 10, seed=3, stream=stream)
    assert batches.per_epoch == 30
    epochs = []
    for _ in range(3):
        drawn = []
        for _ in range(30):
            images, labels = next(batches)
            assert images.shape == (10, 1, 8, 8) and images.dtype == torch.float32
            assert [n % 7 for n in numbers(images)] == labels.tolist()
            drawn += numbers(images)
        assert len(set(drawn)) == 300
        epochs.append(drawn)
    assert batches.drawn == 90
    for epoch, drawn in enumerate(epochs):  # the order is part of what a seed promises
        generator = torch.Generator().manual_seed(3 * 1_000_003 + epoch)
        assert drawn == torch.randperm(303, generator=generator)[:300].tolist()


@every_way
def test_the_number_of_batches_is_the_whole_state(stream):
    """Whether a thread draws ahead or not. Here it gathers the next batch as early as it may."""

    class AtOnce:
        def submit(self, function, *given):
            future = Future()
            future.set_result(function(*given))
            return future

    batches = Batches(numbered(50), 8, seed=1)
    whole = [next(batches) for _ in range(20)]
    resumed = Batches(numbered(50), 8, seed=1, stream=stream)
    if stream:
        resumed.thread = AtOnce()
    for first in (9, 0, 3):
        resumed.drawn = first
        for images, labels in whole[first : first + 11]:
            same_images, same_labels = next(resumed)
            assert torch.equal(same_images, images) and torch.equal(same_labels, labels)


def test_scaling_and_its_inverse_are_exact(monkeypatch):
    every = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8).expand(4, 3, 8, 8)
    images, labels = next(Batches(Images(every, None, [], "", "", False, ""), 4))
    assert labels is None and images.min() == -1 and images.max() == 1
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(datasets.to_uint8(images).flatten().sort().values, every.flatten().sort()[0])
    exact = (every.double() / 255 * 2 - 1).float()
    assert torch.allclose(datasets.from_uint8(every), exact, rtol=0, atol=1e-7)
    rounded = datasets.to_uint8(torch.tensor([-9.0, 9.0, 0.9999, 0.0]))
    assert rounded.tolist() == [0, 255, 255, 128]  # clamped, and not truncated
    assert datasets.layout("mps") == torch.contiguous_format
    for capability, expected in ((7, 5), torch.contiguous_format), ((8, 0), torch.channels_last):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert datasets.layout("cuda:1") == expected


def test_several_processes_draw_what_one_draws(monkeypatch):
    one = Batches(numbered(100), 12, seed=5)
    expected = [numbers(next(one)[0]) for _ in range(20)]
    monkeypatch.setattr(datasets, "WORLD", 3)
    parts = [Batches(numbered(100), 4, seed=5) for _ in range(3)]
    assert [part.per_epoch for part in parts] == [8, 8, 8]
    for batch in expected:
        together = []
        for rank, part in enumerate(parts):
            monkeypatch.setattr(datasets, "RANK", rank)
            together += numbers(next(part)[0])
        assert together == batch
    with pytest.raises(
        InputError, match="100 images of 'n': --batch times 3 processes must not be more"
    ):
        Batches(numbered(100), 34)
    monkeypatch.setattr(datasets, "WORLD", 1)
    with pytest.raises(InputError, match="7 images of 'n': --batch must not be more"):
        Batches(numbered(7), 8)
    few = datasets.limited(numbered(70), 1)._replace(name="classes")
    with pytest.raises(
        InputError, match="^training uses 7 images of 'classes': --batch must not be more"
    ):
        Batches(few, 8)


def test_balance_draws_classes_equally():
    labels = torch.tensor([0] * 300 + [1] * 40 + [2] * 2)
    data = numbered(342, classes=3)._replace(labels=labels)
    batches = Batches(data, 16, seed=4, balance=True)
    assert batches.per_epoch == 342 // 16
    for _ in range(3):
        drawn, counts = [], torch.zeros(3)
        for _ in range(batches.per_epoch):
            images, labels = next(batches)
            drawn += numbers(images)
            counts += torch.bincount(labels, minlength=3)
        assert (counts - 16 * batches.per_epoch / 3).abs().max() <= 8  # a short batch is missing
        times = np.bincount(drawn, minlength=342)
        assert times[:300].max() == 1 and times[300:340].max() <= 3 and times[340:].min() > 40
    resumed = Batches(data, 16, seed=4, balance=True)
    resumed.drawn = batches.drawn
    assert torch.equal(next(resumed)[0], next(batches)[0])
    _, labels = next(Batches(numbered(50), 50, balance=True))  # an epoch does not divide by 7
    assert set(torch.bincount(labels).tolist()) == {7, 8}
    with pytest.raises(InputError, match="no labels, so there is nothing to balance"):
        Batches(data._replace(labels=None), 16, balance=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_way
def test_batches_on_a_gpu(stream):
    data = numbered(5000)
    cpu = Batches(data, 64, seed=1)
    gpu = Batches(data, 64, "cuda", seed=1, stream=stream)
    for _ in range(200):
        (expected, expected_labels), (images, labels) = next(cpu), next(gpu)
        assert torch.equal(images.cpu(), expected) and torch.equal(labels.cpu(), expected_labels)


# ------------------------------------------------------------------------- splits and labels


def test_splits_of_the_set(here):
    folder = make_folder(here / "s", ["train/a/0.png", "train/b/1.png", "test/b/2.png"])
    train, test, both = (load(folder, 16, split) for split in ("train", "test", "all"))
    assert [data.labels.tolist() for data in (train, test, both)] == [[0, 1], [1], [1, 0, 1]]
    assert torch.equal(both.images, torch.cat([test.images, train.images]))
    assert train.held_out and train.fingerprint == test.fingerprint and train.name == "s"
    with pytest.raises(InputError, match="unknown split 'val'"):
        load(folder, 16, "val")
    np.savez("x.npz", images=np.zeros((3, 8, 8), np.uint8), split=[0, 0, 0])
    with pytest.raises(InputError, match="'x.npz' has no image in its split 'test'"):
        load("x.npz", 8, "test")


def test_test_without_a_split_is_a_fixed_part(here):
    for count, part in ((300, 300), (2500, 2000), (30_000, 3000)):
        np.savez("x.npz", images=numbered(count).images.numpy()[:, 0])
        test = load("x.npz", 8, "test")
        assert len(set(numbers(test.images))) == part and not test.held_out
        assert numbers(test.images) == sorted(numbers(test.images))
        assert torch.equal(load("x.npz", 8, "test").images, test.images)
        assert len(load("x.npz", 8).images) == count


def test_held_out_images_are_no_training_images(here):
    data = numbered(200, classes=4)
    np.savez("x.npz", images=data.images.numpy()[:, 0], labels=data.labels.numpy())
    train, held_out = load_parts("x.npz", 8, 30)
    assert len(held_out.images) == 30
    left = sorted(set(range(200)) - set(numbers(held_out.images)))
    assert numbers(train.images) == left and len(left) == 170
    for part in (train, held_out):
        assert [n % 4 for n in numbers(part.images)] == part.labels.tolist()
    assert "30 held-out" in train.note and train.fingerprint == held_out.fingerprint
    assert torch.equal(load_parts("x.npz", 8, 30)[1].images, held_out.images)
    assert datasets.measured_on(train, held_out) == (held_out, "held-out")
    whole, nothing = load_parts("x.npz", 8)
    assert nothing is None and len(whole.images) == 200
    assert datasets.measured_on(whole, None)[0] is whole
    for count in (1, 200):
        with pytest.raises(InputError, match="--hold-out must be from 2 to less"):
            load_parts("x.npz", 8, count)
    np.savez("x.npz", images=data.images.numpy()[:, 0], split=np.arange(200) % 2)
    train, test = load_parts("x.npz", 8)
    assert set(numbers(train.images)) == set(range(0, 200, 2))
    assert sorted(numbers(test.images)) == list(range(1, 200, 2)) != numbers(test.images)
    with pytest.raises(InputError, match="a test split of its own"):
        load_parts("x.npz", 8, 30)


def test_reference_images(here):
    """Half of the held-out images choose; all judge; other real images are the floor."""
    train = numbered(50)._replace(images=numbered(100).images[50:], name="x")
    held_out = numbered(41)._replace(name="x")
    reference = datasets.reference_images(train, held_out, 50)
    choose, judge, floor = map(numbers, reference[:3])
    assert len(choose) == len(set(choose)) == 21 and set(choose) < set(judge)
    assert sorted(judge) == list(range(41)) != judge
    assert len(floor) == len(set(floor)) == 41 and min(floor) >= 50
    assert reference.words == "held-out images of x"
    few = datasets.reference_images(train, held_out, 5)
    assert numbers(few.choose) == choose[:5]
    assert numbers(few.judge) == judge[:5] and numbers(few.floor) == floor[:5]
    for data, count in ((numbered(2), 10), (numbered(50), 1)):
        with pytest.raises(InputError, match="needs 2 images on each side"):
            datasets.reference_images(train, data, count)


def test_reference_images_without_held_out_ones(here, monkeypatch):
    monkeypatch.setattr(datasets, "test_rows", lambda count: torch.arange(0, count, 2)[:20])
    reference = datasets.reference_images(numbered(50)._replace(name="x"), None, 100)
    choose, judge, floor = map(numbers, reference[:3])
    assert len(choose) == 10 and set(choose) < set(judge) == set(range(0, 40, 2))
    assert len(floor) == 20 and not set(floor) & set(range(0, 40, 2))
    assert reference.words == "training images (the data have no held-out split) of x"
    # too few others: two halves, and those that choose are the floor of the others
    reference = datasets.reference_images(numbered(39), None, 100)
    assert numbers(reference.floor) == numbers(reference.choose)
    both = numbers(reference.choose) + numbers(reference.judge)
    assert sorted(both) == list(range(0, 39, 2))


def test_the_fixed_part_that_stands_for_split_test(here):
    np.savez("x.npz", images=numbered(50).images.numpy()[:, 0])
    data = datasets.load("x.npz", 8)
    test = datasets.load("x.npz", 8, "test")
    assert torch.equal(test.images, data.images[datasets.test_rows(50)])
    for count, size in ((1000, 1000), (3000, 2000), (30_000, 3000)):
        rows = datasets.test_rows(count)
        assert len(rows) == len(set(rows.tolist())) == size and rows.tolist() == sorted(rows)


def test_hashes_are_of_the_content(here):
    """Of each image by itself: whatever its place, its split, its copies, grey or equal colours."""
    images = torch.arange(12 * 4 * 4).reshape(12, 1, 4, 4).byte()
    images[5] = images[2]
    hashes = datasets.image_hashes(images)
    assert hashes.dtype == torch.int64 and hashes.shape == (12,)
    same = hashes[:, None] == hashes
    assert torch.equal(same, (images.flatten(1)[:, None] == images.flatten(1)).all(2))
    order = torch.tensor([3, 0, 11, 5])
    assert torch.equal(datasets.image_hashes(images[order]), hashes[order])
    assert torch.equal(datasets.image_hashes(images.repeat(1, 3, 1, 1)), hashes)
    color = images.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(datasets.image_hashes(color), hashes)
    color[0, 2, 3, 3] += 1
    assert (datasets.image_hashes(color) != hashes).tolist() == [True] + 11 * [False]
    assert datasets.image_hashes(images[:0]).shape == (0,)


def test_labels_that_a_conditional_model_needs():
    data = numbered(8, classes=3)
    datasets.require_labels(data, "x")
    assert datasets.class_counts(data) == [3, 3, 2]
    assert datasets.class_counts(data._replace(classes=["a", "b", "c", "d"])) == [3, 3, 2, 0]
    assert datasets.class_counts(data._replace(labels=None)) == []
    for bad in (data._replace(labels=None, classes=[]), data._replace(classes=["a"])):
        with pytest.raises(InputError, match="'photos' has no labels"):
            datasets.require_labels(bad, "photos")


def test_the_error_for_missing_labels_names_the_first_odd_path(here):
    folder = make_folder(here / "photos", ["cat/0.png", "dog/1.png", "x.png", "y.png"])
    data = load("photos", 16)
    with pytest.raises(
        InputError, match="'photos' has no labels.* .the first without one: 'x.png'"
    ):
        datasets.require_labels(data, "photos")
    (folder / "y.png").unlink()
    datasets.require_labels(load("photos", 16), "photos")  # the odd one is left out


def test_classes_in_words():
    assert datasets.class_words(["cat", "dog"], [1200, 8]) == "2 classes: cat 1200, dog 8"
    names = [f"c{k}" for k in range(13)]
    words = datasets.class_words(names, list(range(13)))
    assert words.startswith("13 classes: c0 0, c1 1,") and words.endswith(", c9 9 and 3 more")
    assert datasets.class_words([], []) == "no classes"
    assert datasets.class_words(["all"], [5]) == "all images count as one class"
    assert len(datasets.class_words(["x" * 999, "y"], [1, 2])) < 99


def test_how_many_images_are_held_out_is_said(here):
    make_folder(here / "s", ["train/0.png", "train/1.png", "train/2.png", "test/3.png"])
    make_folder(here / "t", ["0.png", "1.png", "2.png", "3.png"])
    assert load_parts("s", 16)[0].note.endswith(", without 1 held-out ones")
    assert load_parts("t", 16, 2)[0].note.endswith(", without 2 held-out ones")
    assert load_parts("t", 16)[0].note.endswith(", none of them held out")


def test_two_fits_lie_side_by_side(here, capsys):
    """Each has files of its own. Damage to one is said, and the other is left alone."""
    make_folder(here / "photos", ["cat/0.png", "dog/1.png"], size=(40, 20))
    cropped = load("photos", 16)
    [array] = here.glob("data/*.npy")
    assert re.fullmatch(r"photos-[0-9a-f]{8}-16\.npy", array.name)  # as before there was --fit
    before = array.stat()
    squashed = load("photos", 16, fit="squash")
    squashed = squashed._replace(images=squashed.images.clone())  # not mapped from the file
    padded = load("photos", 16, "test", "pad")
    names = {path.name for path in here.glob("data/*.npy")}
    assert names == {f"{array.stem}{end}.npy" for end in ("", "-squash", "-pad")}
    assert len({data.fingerprint for data in (cropped, squashed, padded)}) == 3
    assert not torch.equal(squashed.images, cropped.images) and padded.images[:, :, :4].max() == 0
    (here / f"data/{array.stem}-squash.npy").write_bytes(array.read_bytes()[:300])
    capsys.readouterr()
    again = load("photos", 16, fit="squash")
    assert torch.equal(again.images, squashed.images) and again.fingerprint == squashed.fingerprint
    said = capsys.readouterr().err
    assert f"{array.stem}-squash.npy is damaged" in said.replace(os.sep, "/")
    assert array.stat() == before and torch.equal(load("photos", 16).images, cropped.images)
    datasets.main([])
    assert f"{array.stem}-pad.npy, 2 images, 16x16x3" in capsys.readouterr().out
    with pytest.raises(InputError, match="unknown fit 'Squash': use crop, squash, pad"):
        load("photos", 16, fit="Squash")


def test_fit_on_the_command_line(here, capsys):
    make_folder(here / "photos", ["train/0.png", "train/1.png", "test/2.png"], size=(40, 20))
    datasets.main("photos --size 16 --fit pad --split all --show p.png".split())
    words = "3 of 3 images, resized and padded with black to 16x16 (bicubic, antialiased)"
    out, err = capsys.readouterr()
    assert out == "wrote p.png\n" and f"photos: {words}\n" in err
    drawn = Image.open("p.png").convert("RGB")
    assert np.asarray(drawn)[:4, :16].max() == 0 < np.asarray(drawn)[4:12, :16].min(2).max()
    datasets.main("photos --size 16 --fit squash".split())
    out = capsys.readouterr().out
    assert "squashed to 16x16" in out and "2 images to train on, 1 held out" in out
    assert not list(here.glob("data/*-16.npy"))  # nothing was cropped


def test_shapes_are_drawn_whatever_the_fit():
    cropped = load("shapes", 16, "test")
    padded = load("shapes", 16, "test", "pad")
    assert torch.equal(cropped.images, padded.images) and padded.note == "drawn at 16x16"
    assert cropped.fingerprint == padded.fingerprint


def test_a_folder_with_the_name_of_a_set(here, capsys):
    make_folder(here / "shapes", ["cat/0.png", "dog/1.png"])
    for _ in range(2):
        assert load("shapes", 16, "test").classes == datasets.SHAPES
    line = "note: 'shapes' is the known set; for the path here, write ./shapes\n"
    assert capsys.readouterr().err == line
    own = load("./shapes", 16)
    assert own.name == "shapes" and own.classes == ["cat", "dog"]
    assert datasets.default_size("./shapes") == 32 and capsys.readouterr().err == ""


def test_default_sizes(here):
    (here / "empty.png").write_bytes(b"")
    sizes = {"shapes": 32, "cifar10": 32, "cats64": 64, "animals": 64, "absent": 64, "": 64}
    for side, size in ((28, 32), (32, 32), (33, 64)):
        np.savez(f"{side}.npz", images=np.zeros((1, side, 50), np.uint8))
        sizes[f"{side}.npz"] = size
    sizes["."] = 64  # its only image is damaged
    assert {name: datasets.default_size(name) for name in sizes} == sizes


# -------------------------------------------------------------------------------- named sets


def test_named_sets_come_from_downloads_once(here, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    source = array_source(images, [0, 1] * 3, ["a", "b"], [0, 0, 0, 0, 1, 1])
    asked = []
    fake = types.SimpleNamespace(named_source=lambda *given: asked.append(given) or source)
    monkeypatch.setitem(sys.modules, "downloads", fake)
    (here / "mnist").mkdir()  # the name wins over a folder
    data = load("mnist", 32)
    assert data.name == "mnist" and data.images.shape == (4, 1, 32, 32)
    monkeypatch.setitem(sys.modules, "downloads", None)  # as where the file was not copied along
    assert torch.equal(load("mnist", 32).images, data.images) and asked == [("mnist", 32)]
    with pytest.raises(InputError, match="downloads.py cannot be imported"):
        load("mnist", 16)


def test_a_set_to_be_put_by_hand(here):
    assert set(datasets.BY_HAND) == set(downloads.BY_HAND)
    with pytest.raises(InputError, match="Kaggle .* its folder at data/downloads/animals$"):
        load("animals", 16)
    folder = make_folder(here / "data/downloads/animals", ["cat/0.png", "dog/1.png"])
    data = load("animals", 16)
    assert data.name == "animals" and data.classes == ["cat", "dog"]
    assert (here / "data/animals-16.npy").exists()
    make_folder(folder, ["dog/2.png"])
    assert len(load("animals", 16).images) == 3
    folder.rename(here / "animals")  # here a path of that name wins
    make_folder(here / "animals", ["elephant/3.png"])
    assert len(load("animals", 16).classes) == 3
    (here / "animals").rename(here / "elsewhere")  # what was prepared is still of use
    assert len(load("animals", 16).images) == 3


# ------------------------------------------------------------------------- prepared, and once


def test_the_cache_is_used_and_follows_the_data(here, monkeypatch):
    folder = make_folder(here / "c", ["0.png", "1.png"])
    first = load(folder, 16)
    calls = []
    original = datasets.prepare

    def prepare(*given):
        calls.append(1)
        assert not list((here / "data").glob("*.json"))  # it would be believed after kill -9
        return original(*given)

    monkeypatch.setattr(datasets, "prepare", prepare)
    assert torch.equal(load(folder, 16).images, first.images) and not calls
    picture(7).save(folder / "2.png")
    assert len(load(folder, 16).images) == 3 and len(calls) == 1
    next((here / "data").glob("c-*-16.npy")).write_bytes(b"broken")
    assert len(load(folder, 16).images) == 3 and len(calls) == 2
    about = next((here / "data").glob("c-*-16.json"))
    about.unlink()  # as after kill -9 between the two files
    assert len(load(folder, 16).images) == 3 and len(calls) == 3
    about.write_text(about.read_text()[:50])
    assert len(load(folder, 16).images) == 3 and len(calls) == 4
    load(folder, 16).images.zero_()  # the file does not change with the tensor
    assert load(folder, 16).images.any() and len(calls) == 4


def test_two_at_once_prepare_once(here, monkeypatch):
    folder = make_folder(here / "c", [f"{i}.png" for i in range(40)])
    calls, results = [], []
    prepare = datasets.prepare
    monkeypatch.setattr(datasets, "prepare", lambda *given: calls.append(1) or prepare(*given))
    threads = []
    for _ in range(2):
        threads.append(threading.Thread(target=lambda: results.append(load(folder, 16))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and torch.equal(results[0].images, results[1].images)


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_leaves_nothing_that_is_believed(here):
    import resource

    folder = make_folder(here / "c", [f"{i}.png" for i in range(40)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError):
            load(folder, 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.suffix for path in (here / "data").iterdir()] == [".lock"]
    assert len(load(folder, 16).images) == 40


def test_two_processes_and_a_kill(here):
    """kill -9 during preparation leaves nothing that is believed, and no lock. Two processes
    prepare once, and the one that waits says so once."""
    rng = np.random.default_rng(0)
    np.savez("x.npz", images=rng.integers(0, 256, (40_000, 16, 16, 3), np.uint8))
    command = [sys.executable, ROOT / "datasets.py", "x.npz", "--size", "16", "--stats"]

    def start():
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)

    first = start()
    while not list((here / "data").glob("*.tmp")):
        assert first.poll() is None
        time.sleep(0.002)
    first.kill()
    first.communicate()
    assert not list((here / "data").glob("*.npy")) and not list((here / "data").glob("*.json"))
    said = [process.communicate(timeout=120) for process in (start(), start())]
    assert said[0][0] == said[1][0] and "40000 images" in said[0][0]
    assert (said[0][1] + said[1][1]).count("waiting for it") <= 1
    suffixes = sorted(path.suffix for path in (here / "data").iterdir())
    assert suffixes == [".json", ".lock", ".npy"]


@pytest.mark.parametrize(
    "name, count, classes", [("cats64.zip", 23373, 0), ("food27.zip", 12299, 27)]
)
def test_real_data(real, name, count, classes):
    data = load(real(name), 64)
    assert data.images.shape == (count, 3, 64, 64) and len(data.classes) == classes
    assert 80 < data.images[::50].float().mean() < 160 and data.held_out == (classes > 0)


# ----------------------------------------------------------------------------- picture files


@pytest.mark.parametrize(
    "n, channels, columns", [(7, 3, None), (7, 1, 3), (2, 3, 8), (64, 1, None)]
)
def test_a_grid(n, channels, columns):
    images = torch.randint(0, 255, (n, channels, 4, 5), dtype=torch.uint8)
    canvas = np.asarray(datasets.grid(images, columns)).copy()
    across = min(columns or math.ceil(n**0.5), n)
    assert canvas.shape == (math.ceil(n / across) * 6 - 2, across * 7 - 2, 3)
    for i, image in enumerate(images):
        top, left = i // across * 6, i % across * 7
        tile = canvas[top : top + 4, left : left + 5]
        assert np.array_equal(tile, image.expand(3, 4, 5).permute(1, 2, 0))
        tile[:] = 255
    assert (canvas == 255).all()  # and white between


def test_a_grid_of_pairs():
    originals = torch.arange(11, dtype=torch.uint8)[:, None, None, None].expand(11, 1, 4, 4)
    canvas = np.asarray(datasets.pairs_grid(originals, 100 + originals))[::6, ::6, 0]
    assert canvas.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [100, 101, 102, 103, 104, 105, 106, 107],
        [8, 9, 10, 255, 255, 255, 255, 255],
        [108, 109, 110, 255, 255, 255, 255, 255],
    ]
    assert datasets.pairs_grid(originals[:3], originals[:3]).size == (3 * 6 - 2, 2 * 6 - 2)


def test_an_enlarged_picture(here):
    small = picture(0, (30, 20))
    large = np.asarray(datasets.enlarged(small, 41))
    assert np.array_equal(large, np.asarray(small).repeat(3, 0).repeat(3, 1))
    assert datasets.enlarged(small, 40).size == (60, 40)
    assert datasets.enlarged(small, 20).size == datasets.enlarged(small, 5).size == (30, 20)
    datasets.save_picture(small, here / "a/b/c.png")
    assert np.array_equal(np.asarray(Image.open(here / "a/b/c.png")), np.asarray(small))
    assert os.listdir(here / "a/b") == ["c.png"]


# ------------------------------------------------------------------------------ command line


def test_show_and_count(here, capsys):
    datasets.main(["shapes", "--size", "16", "--show", "g.png"])
    assert capsys.readouterr().out == "wrote g.png\n"
    rows = datasets.shuffled(10_000, 0)[:9]
    first = np.asarray(Image.open("g.png"))
    assert first.shape == (8 * 18 - 2, 8 * 18 - 2, 3)
    images = load("shapes", 16).images
    assert np.array_equal(first[:16, :16], images[rows[0]].permute(1, 2, 0))
    assert np.array_equal(first[18:34, :16], images[rows[8]].permute(1, 2, 0))
    classes = ["cat", "dog"]
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 8, 8, 3), dtype=np.uint8)
    np.savez("x.npz", images=pixels, labels=np.arange(3000) % 4 // 3, classes=classes)
    datasets.main(["x.npz", "--size", "8"])
    out = capsys.readouterr().out
    assert " ".join(f"{mean:.4f}" for mean in pixels.mean((0, 1, 2)) / 255) in out
    assert " ".join(f"{std:.4f}" for std in pixels.std((0, 1, 2)) / 255) in out
    assert "2250   75.0 %" in out and "750   25.0 %" in out and "3.00 times" in out


@pytest.mark.parametrize("side, size", [(32, 32), (40, 64)])
def test_the_command_line_takes_the_size_of_training(here, capsys, side, size):
    pixels = np.random.default_rng(0).integers(0, 256, (10, side, side, 3), dtype=np.uint8)
    np.savez("x.npz", images=pixels)
    datasets.main(["x.npz"])
    fingerprint = load("x.npz", size).fingerprint
    out = capsys.readouterr().out
    assert f"{size}x{size}" in out and fingerprint in out


def test_the_list(here, capsys):
    np.savez("x.npz", images=np.zeros((3000, 8, 8, 3), np.uint8))
    load("x.npz", 8)
    (here / "data/downloads").mkdir()
    (here / "data/downloads/a.zip").write_bytes(bytes(2_500_000))
    (here / "data/other.json").write_text("[1]")
    datasets.main([])
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in datasets.KNOWN)
    assert "downloads: data/downloads, 2.5 MB\n" in out and "other" not in out
    assert re.search(r"prepared: data/x-\w+-8.npy, 3,000 images, 8x8x3, 0.6 MB\n", out)


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--size x", "'x' is not a whole number of at least 8"),
        ("--size 7", "'7' is not a whole number of at least 8"),
        ("--sizes 8", "unrecognized arguments"),
        ("a b", "unrecognized arguments"),
        ("shapes --show g.jpg", "must end in .png"),
    ],
)
def test_typing_errors(here, flags, words, capsys):
    with pytest.raises(SystemExit) as caught:
        datasets.main(flags.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and words in error
    assert error.startswith("datasets.py: error: ")


def test_bad_input_is_one_line(here):
    done = program(here, ROOT / "datasets.py", "nowhere")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("datasets.py: error: no data set or path 'nowhere'")
    with pytest.raises(InputError, match="the name of the data is empty"):
        load("", 16)
    assert os.listdir(here) == []


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_during_the_imports_is_silent(here):
    (here / "torch.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    done = program(here, ROOT / "datasets.py", "--help", PYTHONPATH=str(here))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
