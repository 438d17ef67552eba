"""datasets.py: every kind of source comes out as the same tensor, once, whole, and in a seeded order."""

import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import datasets
from datasets import Batches, Images, InputError, load


def picture(seed, size=(20, 16), mode="RGB"):
    rng = np.random.default_rng(seed)
    low = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return low.resize(size, Image.Resampling.BICUBIC).convert(mode)


def make_folder(root, names, **options):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, **options).save(path)
    return root


def make_zip(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


# ------------------------------------------------------------------------------------------------------ shapes


def test_shapes_are_the_same_at_every_call_and_labelled():
    a, b, other = load("shapes", 32), load("shapes", 32), load("shapes", 32, "test")
    assert a.images.shape == (10_000, 3, 32, 32) and a.images.dtype == torch.uint8 and a.labels.dtype == torch.int64
    assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert len(other.images) == 2000 and other.held_out and a.fingerprint == other.fingerprint
    assert a.classes == ["circle", "square", "triangle", "star", "ring"]
    assert torch.bincount(a.labels, minlength=5).min() > 1800
    assert len(load("shapes", 32, "all").images) == 12_000


@pytest.mark.parametrize("size", [16, 64])
def test_shapes_have_the_areas_of_geometry(size):
    """The covered area of each shape against its formula, in units of the radius: antialiasing must keep areas."""
    data = load("shapes", size, "test")
    generator = torch.Generator().manual_seed(2)  # the draws that `shapes` makes first
    assert torch.equal(torch.randint(5, (2000,), generator=generator), data.labels)
    radius = (0.24 + 0.18 * torch.rand(2000, generator=generator)) * size
    values = data.images.float().flatten(2)
    ground = values[:, :, 0]  # a corner
    channel = (values.amax(2) - ground).argmax(1)  # the channel in which the shape stands out most
    one = values[torch.arange(2000), channel]
    ground = ground[torch.arange(2000), channel]
    area = ((one - ground[:, None]) / (one.amax(1) - ground)[:, None]).sum(1)
    inner = 0.3  # star: ten triangles between the centre, a tip and a notch of a pentagram of inradius r
    tip, notch = inner / np.cos(2 * np.pi / 5), inner / np.cos(np.pi / 5)
    expected = {
        "circle": np.pi * 0.9**2,
        "square": (2 * 0.7) ** 2,
        "triangle": 3 * 3**0.5 * 0.49**2,
        "star": 5 * tip * notch * np.sin(np.pi / 5),
        "ring": np.pi * ((0.72 + 0.2) ** 2 - (0.72 - 0.2) ** 2),
    }
    for c, name in enumerate(data.classes):
        rows = data.labels == c
        ratio = (area[rows] / radius[rows] ** 2).mean().item() / expected[name]
        assert ratio == pytest.approx(1, abs=0.06 if size == 16 else 0.02), (name, ratio)


def test_shapes_stay_inside():
    border = load("shapes", 32, "test").images.clone()
    ground = border[:, :, :1, :1].int()
    border[:, :, 1:-1, 1:-1] = border[:, :, :1, :1]
    assert (border.int() - ground).abs().max() <= 1


# ----------------------------------------------------------------------------------------------------- batches


def numbered(n, labels=True):
    """n images of 1x8x8 whose first two pixels are their number."""
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(n) % 256, torch.arange(n) // 256
    return Images(images, torch.arange(n) % 7 if labels else None, [str(i) for i in range(7)], "n", "f", False, "")


def numbers(x):
    pixels = datasets.to_uint8(x)[:, 0, 0]
    return (pixels[:, 0].int() + 256 * pixels[:, 1].int()).tolist()


@pytest.mark.parametrize("stream", [False, True])
def test_an_epoch_holds_every_image_at_most_once(stream):
    batches = Batches(numbered(303), 10, seed=3, stream=stream)
    assert batches.per_epoch == 30
    epochs = []
    for _ in range(3):
        drawn = []
        for _ in range(30):
            x, y = next(batches)
            assert x.shape == (10, 1, 8, 8) and x.dtype == torch.float32
            assert [n % 7 for n in numbers(x)] == y.tolist()
            drawn += numbers(x)
        assert len(set(drawn)) == 300
        epochs.append(drawn)
    assert epochs[0] != epochs[1] != epochs[2]


def test_streaming_gives_the_same_batches():
    a, b = Batches(numbered(50), 8, seed=1, stream=False), Batches(numbered(50), 8, seed=1, stream=True)
    for _ in range(20):
        (x, _), (y, _) = next(a), next(b)
        assert torch.equal(x, y)


@pytest.mark.parametrize("stream", [False, True])
def test_the_number_of_batches_is_the_whole_state(stream):
    a = Batches(numbered(50), 8, seed=1, stream=stream)
    for _ in range(9):
        next(a)
    b = Batches(numbered(50), 8, seed=1, stream=stream)
    b.drawn = a.drawn
    for _ in range(9):
        assert torch.equal(next(a)[0], next(b)[0])


def test_scaling_and_its_inverse_are_exact():
    every = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    x, _ = next(Batches(Images(every, None, [], "", "", False, ""), 4))
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(datasets.to_uint8(x).flatten().sort().values, every.flatten())
    assert datasets.to_uint8(torch.tensor([-9.0, 9.0, 0.9999])).tolist() == [0, 255, 255]  # clamped, rounded


def test_other_seeds_give_other_orders_and_small_sets_are_refused():
    assert numbers(next(Batches(numbered(50), 8, seed=1))[0]) != numbers(next(Batches(numbered(50), 8, seed=2))[0])
    with pytest.raises(InputError, match="7 images"):
        Batches(numbered(7), 8)


# ----------------------------------------------------------------------------------------------------- sources


def test_folder_zip_and_npz_agree(here):
    names = [f"{c}/{i}.png" for c in ("ant", "bee", "cow") for i in range(5)] + ["notes.txt"]
    folder = make_folder(here / "set", names[:-1])
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"x")
    a = load(folder, 16)
    b = load(make_zip(folder, here / "set.zip"), 16)
    arrays = np.stack([np.asarray(Image.open(folder / name)) for name in names[:-1]])
    np.savez(here / "set.npz", images=arrays, labels=np.arange(15) // 5, classes=["ant", "bee", "cow"])
    c = load(here / "set.npz", 16)
    np.savez(here / "first.npz", images=arrays.transpose(0, 3, 1, 2), labels=np.arange(15) // 5)
    d = load(here / "first.npz", 16)
    for other in (b, c, d):
        assert torch.equal(a.images, other.images) and torch.equal(a.labels, other.labels)
    assert a.classes == b.classes == c.classes == ["ant", "bee", "cow"] and d.classes == ["0", "1", "2"]
    assert a.fingerprint == b.fingerprint == c.fingerprint and "central square" in a.note
    crop = Image.open(folder / "ant/0.png").crop((2, 0, 18, 16))  # 20x16 -> its central 16x16
    assert torch.equal(a.images[0], torch.from_numpy(np.array(crop)).permute(2, 0, 1))


def test_splits_and_classes(here, capsys):
    folder = make_folder(here / "s", ["train/a/0.png", "train/b/1.png", "train/b/2.png", "test/a/3.png"])
    train, test = load(folder, 16), load(folder, 16, "test")
    assert train.labels.tolist() == [0, 1, 1] and test.labels.tolist() == [0] and train.held_out
    assert train.fingerprint == test.fingerprint
    plain = load(make_folder(here / "one" / "cats", ["0.png", "1.png"]).parent, 16)
    assert plain.labels is None and plain.classes == [] and not plain.held_out  # one class says nothing
    assert torch.equal(load(here / "one", 16, "test").images, plain.images)
    other = make_folder(here / "v", ["train/a/0.png", "train/b/1.png", "val/a/2.png"])
    data = load(other, 16, "all")
    assert data.held_out and data.labels.tolist() == [0, 1, 0]  # val/ is the held-out part where there is no test/
    make_folder(other, ["test/a/3.png", "loose.png"])
    assert len(load(other, 16, "all").images) == 3 and len(load(other, 16, "test").images) == 1
    assert "2 images outside train/ and test/ are not used" in capsys.readouterr().err
    mixed = load(make_folder(here / "mixed", ["0.png", "a/1.png", "b/1.png"]), 16)
    assert mixed.labels is None


def test_test_without_a_split_is_a_fixed_part(here):
    images = np.random.default_rng(0).integers(0, 256, (2500, 8, 8), dtype=np.uint8)
    np.savez(here / "x.npz", images=images)
    a, b = load("x.npz", 8, "test"), load("x.npz", 8, "test")
    assert len(a.images) == 2000 and torch.equal(a.images, b.images) and len(load("x.npz", 8).images) == 2500


def test_the_fingerprint_is_of_pixels_labels_and_split(here):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    prints = set()
    for i, more in enumerate([{}, dict(labels=[0, 1] * 10), dict(split=[0, 1] * 10), dict(split=[0] * 19 + [1])]):
        np.savez(here / f"{i}.npz", images=images, **more)
        prints.add(load(f"{i}.npz", 8).fingerprint)
    np.savez(here / "again.npz", images=images)
    assert len(prints) == 4 and load("again.npz", 8).fingerprint in prints


def test_28_pixels_are_padded_and_grey_stays_grey(here):
    images = np.random.default_rng(0).integers(1, 256, (9, 28, 28, 1), dtype=np.uint8)
    np.savez(here / "digits.npz", images=images, split=[0] * 6 + [1] * 3)
    data = load("digits.npz", 32)
    assert data.images.shape == (6, 1, 32, 32) and "padded" in data.note
    assert torch.equal(data.images[:, 0, 2:30, 2:30], torch.from_numpy(images[:6, ..., 0]))
    assert data.images.sum() == images[:6].sum()  # the border is black
    assert datasets.default_size("digits.npz") == 32 and datasets.default_size("cats64") == 64


def test_kinds_of_images(here):
    folder = here / "kinds"
    folder.mkdir()
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    red.save(folder / "a.png")
    red.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "b.png")
    rgba = red.convert("RGBA")
    rgba.putalpha(0)
    rgba.save(folder / "c.png")  # see-through everywhere: white
    Image.fromarray(np.full((16, 16), 51 * 256 + 7, np.uint16)).save(folder / "d.png")  # 16 bit
    half = Image.new("RGB", (16, 16), "white")
    half.paste("black", (0, 0, 16, 8))
    exif = half.getexif()
    exif[274] = 6  # "rotate by 90 degrees clockwise to view": the black upper half is then on the right
    half.save(folder / "e.jpg", exif=exif, quality=100)
    red.convert("CMYK").save(folder / "f.jpg", quality=100)
    red.save(folder / "g.webp", lossless=True)
    a, b, c, d, e, f, g = load(folder, 16).images.int()
    colour = torch.tensor([200, 30, 40])[:, None, None]
    for same in (a, b, f, g):
        assert (same - colour).abs().max() <= 4
    assert (c == 255).all() and (d == 51).all()
    assert e[:, :, :7].min() > 200 and e[:, :, 9:].max() < 50


def saved(folder, name, image, **options):
    folder.mkdir(exist_ok=True)
    image.save(folder / name, **options)
    return folder


def test_more_kinds_of_images(here):
    """Each alone, so that its channels are its own."""
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ((200, 30, 40), (10, 20, 220)))
    ramp = np.arange(16, dtype=np.uint8)[None].repeat(16, 0) * 16
    see_through = red.convert("P", palette=Image.Palette.ADAPTIVE)
    see_through.info["transparency"] = see_through.getpixel((0, 0))
    kinds = {
        "bilevel.png": (Image.fromarray(ramp >= 128), ramp // 128 * 255),
        "grey.jpg": (Image.fromarray(ramp), ramp),
        "grey-alpha.png": (Image.merge("LA", [Image.fromarray(ramp), Image.fromarray(ramp)]), None),
        "sixteen.tif": (Image.fromarray(ramp.astype(np.uint16) * 256 + 255), ramp),
        "see-through.png": (see_through, np.full((16, 16), 255)),
        "cmyk.tif": (red.convert("CMYK"), (200, 30, 40)),
        "ycbcr.tif": (red.convert("YCbCr"), (200, 30, 40)),
        "palette.gif": (red, (200, 30, 40)),
        "plain.bmp": (red, (200, 30, 40)),
    }
    for name, (image, wanted) in kinds.items():
        found = load(saved(here / name.replace(".", "-"), name, image), 16).images[0].int()
        if wanted is None:  # alpha equal to the value, upon white: v * v / 255 + 255 - v
            wanted = ramp.astype(int) ** 2 / 255 + 255 - ramp
        wanted = torch.as_tensor(np.array(wanted), dtype=torch.float64)
        wanted = wanted[:, None, None] if wanted.ndim == 1 else wanted
        assert (found - wanted).abs().max() <= 3, name
    save = {"save_all": True, "append_images": [blue]}
    for name in ("moving.gif", "moving.webp", "pages.tif"):
        more = save | ({"lossless": True} if name.endswith("webp") else {})
        found = load(saved(here / name.replace(".", "-"), name, red, **more), 16).images[0].int()
        assert (found - torch.tensor([200, 30, 40])[:, None, None]).abs().max() <= 3, name  # the first frame


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_orientation(here, turn):
    """What a viewer shows: the tag says how the upright picture was turned before it was stored."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8, 0], upright[:8, 8:, 1], upright[8:, :8, 2] = 255, 255, 255  # four colours, no symmetry
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[turn]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[274] = turn
    found = load(saved(here / "d", "a.png", image, exif=exif), 16).images[0]
    assert np.array_equal(found.permute(1, 2, 0), upright)


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_001), (10_001, 3), (33, 7), (10_000, 10_000)])
def test_any_shape_comes_out_square(here, shape):
    """The central square, resized: of a picture with one colour in it and another outside, the one. At the edge the
    filter sees what lies beyond, as where one resizes first and crops then."""
    side, (width, height) = min(shape), shape
    image = Image.new("L", shape, 50)
    image.paste(200, ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
    found = load(saved(here / "d", "a.png", image, compress_level=1), 16).images
    assert found.shape == (1, 1, 16, 16) and (found[0, 0, 5:11, 5:11].int() - 200).abs().max() <= 11


def test_names_in_any_script(here):
    kinds = ["\u732b", "\u043a\u043e\u0448\u043a\u0430", "gat\u00e9 de no\u00ebl", "\u0642\u0637\u0629", "$x^2$ & <b>"]
    folder = make_folder(here / "\u56fe", [f"{kind}/{kind} {k}.png" for kind in kinds for k in "ab"])
    data, packed = load(folder, 16), load(make_zip(folder, here / "\u7bb1.zip"), 16)
    assert data.classes == sorted(kinds) == packed.classes and torch.equal(data.images, packed.images)
    assert data.name == "\u56fe" and packed.name == "\u7bb1"


def test_a_few_damaged_images_are_skipped_and_named(here, capsys):
    folder = make_folder(here / "d", [f"{i:03d}.png" for i in range(150)], size=(8, 8))
    (folder / "070.png").write_bytes((folder / "070.png").read_bytes()[:60])
    data = load(folder, 8)
    assert len(data.images) == 149
    assert "070.png" in capsys.readouterr().err
    assert "070.png" in json.loads(next((here / "data").glob("d-*-8.json")).read_text())["skipped"][0]
    assert torch.equal(data.images[70], torch.from_numpy(np.array(Image.open(folder / "071.png"))).permute(2, 0, 1))
    for i in range(5):
        (folder / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(InputError, match="6 of 150 images cannot be read"):
        load(folder, 8)
    assert not [p for p in (here / "data").iterdir() if p.name.endswith(".tmp")]


def test_a_packed_bomb_is_skipped(here, monkeypatch):
    folder = make_folder(here / "d", [f"{i:03d}.png" for i in range(150)], size=(8, 8))
    (folder / "999.png").write_bytes(bytes(10_000_000))
    path = make_zip(folder, here / "d.zip")
    monkeypatch.setattr(datasets, "MAX_FILE", 1_000_000)
    assert len(load(path, 8).images) == 150


def test_the_cache_is_used_and_follows_the_data(here, monkeypatch):
    folder = make_folder(here / "c", ["0.png", "1.png"])
    first = load(folder, 16)
    calls = []
    original = datasets.prepare
    monkeypatch.setattr(datasets, "prepare", lambda *a: calls.append(1) or original(*a))
    assert torch.equal(load(folder, 16).images, first.images) and not calls
    picture(7).save(folder / "2.png")
    assert len(load(folder, 16).images) == 3 and len(calls) == 1
    next((here / "data").glob("c-*-16.npy")).write_bytes(b"broken")
    assert len(load(folder, 16).images) == 3 and len(calls) == 2
    next((here / "data").glob("c-*-16.json")).unlink()  # as after kill -9 between the two files
    assert len(load(folder, 16).images) == 3 and len(calls) == 3


def test_two_at_once_prepare_once(here, monkeypatch):
    folder = make_folder(here / "c", [f"{i}.png" for i in range(40)])
    calls, results = [], []
    original = datasets.prepare
    monkeypatch.setattr(datasets, "prepare", lambda *a: calls.append(1) or original(*a))
    threads = [threading.Thread(target=lambda: results.append(load(folder, 16))) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(calls) == 1 and torch.equal(results[0].images, results[1].images)


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_leaves_nothing_that_is_believed(here):
    import resource

    folder = make_folder(here / "c", [f"{i}.png" for i in range(40)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError):
            load(folder, 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((here / "data").glob("*.npy")) and not list((here / "data").glob("*.json"))
    assert len(load(folder, 16).images) == 40


def test_two_processes_and_a_kill(here):
    """kill -9 in the middle of preparing leaves nothing that is believed, and no lock; two processes prepare once."""
    rng = np.random.default_rng(0)
    np.savez("x.npz", images=rng.integers(0, 256, (40_000, 16, 16, 3), np.uint8))
    command = [sys.executable, ROOT / "datasets.py", "x.npz", "--size", "16", "--stats"]

    def start():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = start()
    while not list((here / "data").glob("*.tmp")):
        assert first.poll() is None
        time.sleep(0.002)
    first.kill()
    first.communicate()
    assert not list((here / "data").glob("*.npy")) and not list((here / "data").glob("*.json"))
    said = [process.communicate(timeout=120)[0] for process in (start(), start())]
    assert said[0] == said[1] and "40000 images" in said[0]
    assert sorted(path.suffix for path in (here / "data").iterdir()) == [".json", ".lock", ".npy"]


# -------------------------------------------------------------------------------------------------- named sets


def test_git_blob_is_what_git_says(here):
    (here / "f").write_bytes(b"some\0bytes\n")
    said = subprocess.run(["git", "hash-object", "f"], capture_output=True, text=True, check=True).stdout.strip()
    assert datasets.git_blob("f") == said


def cats_archives(folder, monkeypatch):
    blobs = {}
    folder.mkdir(parents=True)
    for part in range(3):
        with tarfile.open(folder / f"dataset-part{part + 1}.tar.gz", "w:gz") as archive:
            for i in range(4):
                buffer = io.BytesIO()
                picture(10 * part + i, (64, 64)).save(buffer, "PNG")
                member = tarfile.TarInfo(f"dataset-part{part + 1}/../../cat_{part}{i}.png")
                member.size = len(buffer.getvalue())
                archive.addfile(member, io.BytesIO(buffer.getvalue()))
        blobs[f"dataset-part{part + 1}.tar.gz"] = datasets.git_blob(folder / f"dataset-part{part + 1}.tar.gz")
    monkeypatch.setattr(datasets, "CATS64_BLOBS", blobs)


def test_cats64_from_archives_put_by_hand(here, monkeypatch):
    cats_archives(here / "data/downloads/cats64", monkeypatch)
    data = load("cats64", 64)
    assert data.images.shape == (12, 3, 64, 64) and data.name == "cats64" and data.labels is None
    assert torch.equal(data.images[5], torch.from_numpy(np.array(picture(11, (64, 64)))).permute(2, 0, 1))
    assert sorted(p.name for p in here.iterdir()) == ["data"]  # nothing was unpacked anywhere


def test_cats64_with_a_wrong_checksum(here, monkeypatch):
    cats_archives(here / "data/downloads/cats64", monkeypatch)
    with open(here / "data/downloads/cats64/dataset-part2.tar.gz", "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="dataset-part2.*wrong checksum"):
        load("cats64", 64)


def food_tree(folder, counts=(25, 24, 3)):
    """A small food-101 of the same layout: the later images of each class are in the published test part."""
    lists = {"train": {}, "test": {}}
    for c, (name, count) in enumerate(zip(("apple_pie", "baklava", "churros"), counts, strict=True)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * c + i, (64, 48)).save(folder / f"images/{name}/{1000 + i}.jpg")
            lists["test" if i > 0.7 * count else "train"].setdefault(name, []).append(f"{name}/{1000 + i}")
    (folder / "meta").mkdir()
    for part, of_class in lists.items():
        (folder / f"meta/{part}.json").write_text(json.dumps(of_class))
    return folder


def test_food64_from_a_folder_put_by_hand(here):
    folder = food_tree(here / "data/downloads/food-101")
    train, test, both = (load("food64", 64, split) for split in ("train", "test", "all"))
    assert both.images.shape == (52, 3, 64, 64) and both.classes == ["apple_pie", "baklava", "churros"]
    assert torch.bincount(test.labels).tolist() == [20, 20, 2]  # a small class keeps one image for training
    assert torch.bincount(train.labels).tolist() == [5, 4, 1] and train.held_out and train.name == "food64"
    rows = {image.numpy().tobytes() for image in train.images}
    assert len(rows) == 10 and not rows & {image.numpy().tobytes() for image in test.images}
    first = datasets.square(Image.open(folder / "images/baklava/1000.jpg"), 64)
    assert torch.equal(both.images[25], torch.from_numpy(first)) and both.labels[25] == 1
    # neither the order in the lists nor the published split matters
    lists = [json.loads((folder / f"meta/{part}.json").read_text()) for part in ("test", "train")]
    for part, of_class in zip(("train", "test"), lists, strict=True):
        mixed = {name: of_class[name][::-1] for name in reversed(of_class)}
        (folder / f"meta/{part}.json").write_text(json.dumps(mixed))
    for path in (here / "data").glob("food64-64.*"):
        path.unlink()
    assert load("food64", 64, "test").fingerprint == test.fingerprint


# --------------------------------------------------------------------------------------------------- bad input


def broken_npz(here, **arrays):
    np.savez(here / "x.npz", **arrays)
    return "x.npz"


GOOD = np.zeros((4, 8, 8), np.uint8)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda d: "no-such-set", "no data set or path"),
        (lambda d: "", "is empty"),
        (lambda d: str(d), "no images"),
        (lambda d: (d / "x.zip").write_bytes(b"PK nonsense") and "x.zip", "not a readable zip"),
        (lambda d: (d / "x.zip").write_bytes(b"") or "x.zip", "not a readable zip"),
        (lambda d: (d / "x.npz").write_bytes(b"") or "x.npz", "not a readable .npz"),
        (lambda d: (d / "x.txt").write_text("hello") and "x.txt", "no folder, zip or .npz"),
        (lambda d: broken_npz(d, pictures=GOOD), "no array 'images'"),
        (lambda d: broken_npz(d, images=GOOD / 255), "must be uint8"),
        (lambda d: broken_npz(d, images=GOOD[:0]), "must be uint8"),
        (lambda d: broken_npz(d, images=np.zeros((4, 8, 8, 5), np.uint8)), "1 or 3 channels"),
        (lambda d: broken_npz(d, images=GOOD, labels=[0, 1]), "'labels'"),
        (lambda d: broken_npz(d, images=GOOD, labels=[0, 1, 2, 9], classes=["a", "b"]), "2 classes"),
        (lambda d: broken_npz(d, images=GOOD, labels=[0, -1, 2, 9]), "'labels'"),
        (lambda d: broken_npz(d, images=np.array([object()] * 3)), "not a readable .npz"),
    ],
)
def test_bad_data_is_one_line(here, make, words):
    with pytest.raises(InputError, match=words) as caught:
        load(make(here), 16)
    assert "\n" not in str(caught.value)


def test_command_line(here, capsys):
    datasets.main(datasets.parse_args(["shapes", "--size", "16", "--show", "g.png", "--stats"]))
    out = capsys.readouterr().out
    assert Image.open("g.png").size == (8 * 18 - 2, 8 * 18 - 2) and "circle" in out and "balance" in out
    images = np.random.default_rng(0).integers(0, 256, (3000, 8, 8, 3), dtype=np.uint8)
    np.savez("x.npz", images=images)
    datasets.main(datasets.parse_args(["x.npz", "--size", "8"]))
    out = capsys.readouterr().out
    assert " ".join(f"{m:.4f}" for m in images.mean((0, 1, 2)) / 255) in out
    assert " ".join(f"{s:.4f}" for s in images.std((0, 1, 2)) / 255) in out
    (here / "data/downloads").mkdir()
    (here / "data/downloads/a.zip").write_bytes(bytes(2_500_000))
    (here / "data/other.json").write_text("[1]")
    datasets.main(datasets.parse_args([]))
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in datasets.KNOWN) and "data/downloads, 2.5 MB" in out
    assert re.search(r"prepared: data/x-\w+-8.npy, 3,000 images, 8x8x3, 0.6 MB", out) and "other" not in out
    for bad in (["--size", "x"], ["--sizes", "3"], ["a", "b"]):
        with pytest.raises(SystemExit) as stop:
            datasets.parse_args(bad)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_command_line_error_is_one_line(here):
    run = subprocess.run([sys.executable, ROOT / "datasets.py", "nowhere"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "datasets.py: error: no data set" in run.stderr


@pytest.mark.parametrize("name, count, classes", [("cats64.zip", 23373, 0), ("food27.zip", 12299, 27)])
def test_real_data(real, name, count, classes):
    data = load(real(name), 64)
    assert data.images.shape == (count, 3, 64, 64) and len(data.classes) == classes
    assert 80 < data.images[::50].float().mean() < 160 and data.held_out == (classes > 0)


# ---------------------------------------------------------------------------------------- balance and held-out images


def unbalanced():
    """300, 40 and 2 images of three classes; every image is its own number."""
    labels = torch.tensor([0] * 300 + [1] * 40 + [2] * 2)
    images = torch.arange(342)[:, None, None, None] % 256
    return Images(images.to(torch.uint8).expand(342, 3, 8, 8), labels, ["a", "b", "c"], "", "", False, "")


def test_balance_draws_classes_equally():
    batches = Batches(unbalanced(), 16, seed=4, balance=True)
    assert batches.per_epoch == 342 // 16
    for epoch in range(3):
        rows = torch.cat([batches.rows(epoch * batches.per_epoch + k)[0] for k in range(batches.per_epoch)])
        counts = torch.bincount(batches.labels[rows], minlength=3)
        assert (counts - 16 * batches.per_epoch / 3).abs().max() <= 8  # the last short batch is missing
        large = rows[rows < 300]
        assert len(large.unique()) == len(large)  # of a class with enough images none comes twice
        assert torch.bincount(rows)[300:340].max() <= 3
    again = Batches(unbalanced(), 16, seed=4, balance=True)
    again.drawn = 17
    for _ in range(17):
        next(batches)
    assert torch.equal(next(again)[1], next(batches)[1])  # the number of batches drawn is the whole state
    with pytest.raises(InputError, match="no labels"):
        Batches(unbalanced()._replace(labels=None), 16, balance=True)


def test_held_out_images_are_no_training_images(here):
    images = np.arange(200, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    np.savez("own.npz", images=images, labels=np.arange(200) % 4)
    train, held_out = datasets.load_parts("own.npz", 8, 30)
    a, b = (part.images[:, 0, 0, 0] for part in (train, held_out))
    assert len(a) == 170 and len(b) == 30 and sorted([*a.tolist(), *b.tolist()]) == list(range(200))
    assert torch.equal(held_out.labels, b.long() % 4) and "30 held-out" in train.note
    assert torch.equal(datasets.load_parts("own.npz", 8, 30)[1].images, held_out.images)
    assert datasets.load_parts("own.npz", 8)[1] is None
    np.savez("split.npz", images=images, labels=np.arange(200) // 50, split=np.arange(200) % 2)
    test = datasets.load_parts("split.npz", 8)[1]
    assert (test.images[:, 0, 0, 0] % 2 == 1).all() and len(test.images) == 100
    assert len(set(test.labels[:20].tolist())) == 4  # in random order, not class by class


def test_latents_do_not_depend_on_how_many_are_drawn():
    few, many = datasets.latents(3, 5, seed=1), datasets.latents(100, 5, seed=1)
    assert torch.equal(few, many[:3]) and few.shape == (3, 5)
    large = datasets.latents(20_000, 5, seed=2)
    assert large.mean().abs() < 0.02 and large.std() == pytest.approx(1, abs=0.02)


def test_entropy_floor_is_the_cross_entropy_of_the_images_with_themselves():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[0, 0] = 0
    images[1, 0] = 255
    p = images.double() / 255
    loss = torch.nn.functional.binary_cross_entropy(p, p, reduction="sum") / 5
    assert datasets.entropy_floor(images) == pytest.approx(loss.item(), rel=1e-12)


# ------------------------------------------------------------------------------- class distributions and dimensions


def test_jensen_shannon_is_scipys_distance_and_its_square():
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(0)
    for zeros in (0, 3):
        p, q = rng.integers(1, 900, 27), rng.integers(1, 90, 27)
        p[:zeros] = 0
        distance, divergence = datasets.jensen_shannon(p.tolist(), q.tolist())
        a, b = p / p.sum(), q / q.sum()
        m = (a + b) / 2
        direct = sum(0.5 * x * np.log(x / y) for r in (a, b) for x, y in zip(r, m, strict=True) if x > 0)
        assert divergence == pytest.approx(direct, rel=1e-9) and distance == pytest.approx(direct**0.5, rel=1e-9)
        assert distance == pytest.approx(jensenshannon(p, q), rel=1e-9)
    assert datasets.jensen_shannon([3, 0, 6], [1, 0, 2]) == (0, 0)
    assert datasets.jensen_shannon([5, 0], [0, 7]) == pytest.approx((np.log(2) ** 0.5, np.log(2)), rel=1e-12)
    # nearly equal: the divergence is half a millionth, and still has its digits
    near = datasets.jensen_shannon([1000, 1001, 1002], [1002, 1000, 999])
    assert near[0] == pytest.approx(jensenshannon([1000, 1001, 1002], [1002, 1000, 999]), rel=1e-5)


@pytest.mark.parametrize("n, side", [(40, 8), (300, 8)])  # fewer images than values, and more
def test_spectrum_agrees_with_a_decomposition_of_the_matrix(n, side):
    low = np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    low[:, :, ::2] //= 4
    values, energies = datasets.spectrum(torch.from_numpy(low))
    flat = low.reshape(n, -1) / 255
    assert len(values) == len(energies) == min(flat.shape)
    np.testing.assert_allclose(values, np.linalg.svd(flat, compute_uv=False), rtol=1e-9)
    centred = np.linalg.svd(flat - flat.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(energies, centred, rtol=1e-9, atol=1e-9)


def equal_axes(k, n):
    """n images whose scatter has k equal variances and no others: pixel j is 128 +- 100 in one pair of images each."""
    images = torch.full((n, 1, 8, 8), 128, dtype=torch.uint8)
    for j in range(k):
        images[2 * j].view(-1)[j], images[2 * j + 1].view(-1)[j] = 228, 28
    return images


@pytest.mark.parametrize("n", [50, 200])
def test_data_of_k_dimensions_have_k_components(n):
    values, energies = datasets.spectrum(equal_axes(20, n))
    assert energies[:20].tolist() == pytest.approx([2 * (100 / 255) ** 2] * 20)
    assert energies[20:].eq(0).all() and values[21:].eq(0).all()
    assert [datasets.components(energies, share) for share in (0.9, 0.95, 0.99, 1)] == [18, 19, 20, 20]
    assert datasets.elbow(energies.sqrt()) == 20


def test_elbow_of_a_hyperbola():
    """1/k from 1 to n has the slope of its chord, -1/n, at the square root of n."""
    for n in (100, 10_000):
        assert datasets.elbow(1 / torch.arange(1, n + 1, dtype=torch.float64)) == n**0.5 - 1  # so many come before it
    assert datasets.elbow(torch.ones(5)) == 1


def test_svd_and_stats_on_the_command_line(here, capsys, monkeypatch):
    images = equal_axes(20, 200).numpy()[:, 0]
    labels, split = np.arange(200) // 50, np.arange(200) % 50 < 10
    split[:10] = False  # of the first class nothing is in the test split
    np.savez("x.npz", images=images, labels=labels, split=split.astype(int))
    datasets.main(datasets.parse_args(["x.npz", "--size", "8", "--split", "all", "--stats", "--svd", "plots/p.png"]))
    out = capsys.readouterr().out
    distance, divergence = datasets.jensen_shannon([50, 40, 40, 40], [0, 10, 10, 10])
    assert f"train and test: {distance:.4g} (nats, base e), divergence {divergence:.4g}\n" in out
    assert "200 images, up to 100 of each class, of 64 values: 18 components for 90 %, 19 components for 95 %" in out
    assert "20 components for 99 %" in out and "after 20" in out and out.isascii()
    assert Image.open("plots/p.png").width > 500

    np.savez("same.npz", images=np.full((9, 8, 8), 7, np.uint8))
    with pytest.raises(InputError, match="no two different images"):
        datasets.main(datasets.parse_args(["same.npz", "--size", "8", "--svd", "q.png"]))
    np.savez("one.npz", images=images, labels=labels, split=[0] * 200)  # an empty test split: nothing to compare
    datasets.main(datasets.parse_args(["one.npz", "--size", "8"]))
    assert "Jensen" not in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        datasets.main(datasets.parse_args(["x.npz", "--size", "8", "--svd", "q.png"]))
    assert not (here / "q.png").exists() and not list(here.rglob("*.tmp"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_keep_memory():
    """Blocks that are freed and asked for again: with it the system gives no new pages, without it all of them."""
    program = """
import resource, torch, datasets

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(40 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for set_up in lambda: None, lambda: datasets.keep_memory(False), lambda: datasets.pick_device("cpu"):
    set_up()
    print(*(new_pages() for _ in range(20)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    before, usual, kept = (list(map(int, line.split())) for line in done.stdout.splitlines())
    assert min(before) >= 80 and min(usual) > max(before) / 2  # pages of 2 MB, or 512 times as many
    # In the end, not at once: a small object in a freed block makes it too small, and some processes need a few blocks
    assert max(kept[-5:]) < min(before) / 10, done.stdout
