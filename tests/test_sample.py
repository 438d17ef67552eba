"""sample.py: grids, folders and walks of a trained model."""

import functools
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import make_folder
from PIL import Image

import datasets
import sample
import training
from sources import run_program

pytestmark = pytest.mark.usefixtures("no_plots")
FLAGS = "--data tiny.npz --size 16 --width 4 --batch 8 --steps 2 --device cpu --precision fp32"
OWN = {
    "dcgan": "--ema 0.5 --lr 0.1",
    "cgan": "--latent-dim 6",
    "vae_mlp": "--latent-dim 6",
    "cvae": "--latent-dim 6",
    "gan_resnet": "--latent-dim 6",
    "ddpm": "--blocks 1 --timesteps 12 --sample-steps 3 --guidance 2",
}


def train(name, out="r", *more):
    """Two steps of training: the script and its model."""
    script = training.load_script(name)
    script.main([*FLAGS.split(), *OWN[name].split(), "--out", out, *more])
    return training.open_model(training.read_checkpoint(out))


def run(given):
    run_program(functools.partial(sample.main, given.split()))


def error_of(capsys, given):
    """The one line of an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(given)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def assert_enlarged(path, images, columns=None):
    """The picture at `path` is the grid of these images, enlarged by a whole factor."""
    expected = np.asarray(datasets.grid(images, columns))
    factor = len(pixels(path)) // len(expected)
    assert np.array_equal(pixels(path), expected.repeat(factor, 0).repeat(factor, 1))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("**/*.png")}


@pytest.fixture
def rows(monkeypatch):
    """The last rows that got labels: [(label, array of the picture), ...]."""
    last = []

    def labelled_rows(given, caption=""):
        last[:] = [(label, np.asarray(picture)) for label, picture in given]
        return original(given, caption)

    original = sample.labelled_rows
    monkeypatch.setattr(sample, "labelled_rows", labelled_rows)
    return last


# -------------------------------------------------------------------------------------------- grids


def test_a_grid(tiny, capsys):
    script, model = train("dcgan")
    run("r --count 5 --seed 3")
    assert_enlarged("generated.png", script.generate(model, 5, seed=3))
    assert min(pixels("generated.png").shape[:2]) >= 512
    out = capsys.readouterr().out
    assert "dcgan, averaged weights (EMA 0.5) at step 2\nwrote generated.png\n" in out


def test_which_weights(tiny, capsys):
    script, _ = train("dcgan", "r", "--steps", "1")
    shutil.copy("r/last.pt", "r/best.pt")
    script.main("--resume r --steps 3".split())
    grids = []
    for flags, file, weights in (
        ("", "last.pt", "ema"),
        ("--weights plain", "last.pt", "plain"),
        ("--checkpoint best", "best.pt", "ema"),
    ):
        run(f"r --count 4 --to g.png {flags}")
        checkpoint = training.read_checkpoint(f"r/{file}")
        model = script.load_model(checkpoint, weights=weights)
        assert_enlarged("g.png", script.generate(model, 4))
        grids.append(pixels("g.png").tobytes())
    assert len(set(grids)) == 3
    out = capsys.readouterr().out
    assert "plain weights at step 3" in out and "averaged weights (EMA 0.5) at step 1" in out


def test_a_grid_of_classes(tiny, rows):
    """At least one row for each class, with its name; 34 images of a class need three rows."""
    script, model = train("cgan")
    run("r --count 101 --to g.png")
    assert [name for name, _ in rows] == ["a", "", "", "b", "", "", "c", "", ""]
    for label, count in enumerate((34, 34, 33)):
        images = script.generate(model, count, label=label)
        white = torch.full((48 - count, 3, 16, 16), 255, dtype=torch.uint8)
        of_class = torch.cat([images, white]).split(16)
        for (_, row), expected in zip(rows[3 * label :], of_class, strict=False):
            factor = len(row) // 16
            assert np.array_equal(row[::factor, ::factor], np.asarray(datasets.grid(expected, 16)))
    assert sum(len(row) for _, row in rows) >= 512
    page = pixels("g.png")
    assert page.shape[0] > 512 and page[:, :20].min() < 100  # the names at the left
    run("r --count 2 --to few.png")
    assert [name for name, _ in rows] == ["a", "b"]


def test_labelled_rows():
    """A gap between groups, labels at the left, the caption below."""
    picture = Image.new("RGB", (50, 40), "red")
    page = np.asarray(sample.labelled_rows([("one", picture), (None, None), ("two", picture)]))
    red = (page == (255, 0, 0)).all(2)
    assert red.sum() == 2 * 50 * 40 and not red[46 : 46 + 6 + 12].any() and red[46 + 6 + 12].any()
    left = np.flatnonzero(red.any(0))[0]
    assert page[:, :left].min() < 100 and page.shape[1] == left + 50 + 6
    with_caption = np.asarray(sample.labelled_rows([("one", picture)], "two\nlines"))
    assert len(with_caption) == 52 + 8 + 2 * 18 and with_caption[52:].min() < 150


def test_words_are_cut_and_may_be_of_other_alphabets():
    page = Image.new("RGB", (300, 30), "white")
    sample.write_words(page, (0, 15), "Zürich, Владивосток, Αθήνα", width=100)
    drawn = np.asarray(page).min(axis=(0, 2)) < 128
    assert drawn[:100].any() and not drawn[100:].any()
    shapes = {sample.font(16).getmask(letter).getbbox() for letter in "üжΩ"}
    assert len(shapes) == 3  # for letters that a font lacks, it has always the same box


# ------------------------------------------------------------------------------------------ folders


def test_a_folder(tiny, capsys):
    """Image k is the k-th of generate(), whatever the number of images. A conditional model has a
    sub-folder for each class."""
    script, model = train("cgan")
    run("r --count 107 --seed 3 --to made/images/")
    assert "wrote 107 images to made/images\n" in capsys.readouterr().out
    labels = script.asked_labels(model, 107, 3)
    images = script.generate(model, 107, 3)
    made = {}
    for k, label in enumerate(labels.tolist()):
        made["abc"[label] + f"/{k:05d}.png"] = images[k].permute(1, 2, 0).numpy()
    assert made.keys() == files(tiny / "made/images").keys()
    for name, expected in made.items():
        assert abs(pixels(f"made/images/{name}").astype(int) - expected).max() <= 1  # other batches
    assert datasets.load("made/images", 16).classes == ["a", "b", "c"]
    run("r --count 3 --class b --to bees")
    assert sorted(files(tiny / "bees")) == [f"b/{k:05d}.png" for k in range(3)]
    expected = script.generate(model, 3, label=1).permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(pixels(f"bees/b/{k:05d}.png"), expected[k]) for k in range(3))


@pytest.mark.parametrize("name", ["dcgan", "gan_resnet"])
def test_a_folder_of_a_model_without_classes(tiny, name, capsys):
    """Both know the classes of their data, but not of their images."""
    train(name)
    run("r --count 2 --to images")
    assert sorted(files(tiny / "images")) == ["00000.png", "00001.png"]
    assert "makes images without classes" in error_of(capsys, "r --class a")


@pytest.mark.parametrize(
    "classes, expected",
    [(["a/b", "..", "größe 2"], ["a_b", "__", "größe 2"]),
     (["a/b", "a:b", "A b"], ["000_a_b", "001_a_b", "002_A b"]),
     (["Cat", "cat", ""], ["000_Cat", "001_cat", "002__"]),
     (["x" * 300, "/", " y "], ["x" * 100, "_", "y"])],
)  # fmt: skip
def test_classes_that_are_no_file_names(tiny, classes, expected):
    arrays = dict(np.load("tiny.npz"))
    np.savez("tiny.npz", **{**arrays, "classes": classes})
    train("cgan")
    outside = sorted(tiny.iterdir())
    run("r --count 30 --to images")
    assert sorted(tiny.iterdir()) == sorted([*outside, tiny / "images"])
    inside = {path.name for path in (tiny / "images").iterdir()}
    assert inside == {*expected, "made_by.json"} and len(files(tiny / "images")) == 30


@pytest.mark.parametrize("name", ["cgan", "ddpm"])
def test_an_interrupted_folder_goes_on(tiny, name, monkeypatch):
    script, _ = train(name)
    monkeypatch.setattr(sample, "CHUNK", 4)
    flags = "--count 10 --seed 5" + (" --eta 1" if name == "ddpm" else "")
    run(f"r {flags} --to whole")
    save_picture = datasets.save_picture

    def until_6(picture, path):
        if path.name == "00006.png":
            raise KeyboardInterrupt
        save_picture(picture, path)

    monkeypatch.setattr(datasets, "save_picture", until_6)
    with pytest.raises(SystemExit) as stop:
        run(f"r {flags} --to images")
    assert stop.value.code == 130 and len(files(tiny / "images")) == 6
    monkeypatch.setattr(datasets, "save_picture", save_picture)
    (tiny / "images/a/00006.png.123.tmp").write_bytes(b"left by kill -9")
    made = []
    generate = script.generate
    monkeypatch.setattr(
        script, "generate", lambda *a, **k: made.append(a[1:4]) or generate(*a, **k)
    )
    run(f"r {flags} --to images")
    assert files(tiny / "images") == files(tiny / "whole") and not list(tiny.glob("images/*/*.tmp"))
    assert made == [(4, 5, 4), (2, 5, 8)]  # not again the first chunk
    run(f"r {flags.replace('10', '11')} --to images")  # one more
    assert len(files(tiny / "images")) == 11


@pytest.mark.parametrize(
    "target",
    ["samples_v1.0/", "samples_v1.0", "grid.png/", "deep/1.5/", "there_0.5", ".",
     "x.txt/", "run1.5x", ".hidden"],
)  # fmt: skip
def test_what_is_a_folder(tiny, target, monkeypatch):
    """A slash or an existing folder; a dot in its name means nothing."""
    train("dcgan", str(tiny / "r"))
    (tiny / "empty").mkdir()
    monkeypatch.chdir(tiny / "empty")
    (tiny / "empty/there_0.5").mkdir()
    if target == ".":
        (tiny / "empty/there_0.5").rmdir()
    run(f"{tiny}/r --count 2 --to {target}")
    assert sorted(files(tiny / "empty" / target)) == ["00000.png", "00001.png"]


def test_ctrl_c_says_how_far_it_came(tiny, monkeypatch, capsys):
    """What is made is written at once; a picture that was cut off is made again."""
    script, _ = train("dcgan")
    monkeypatch.setattr(sample, "CHUNK", 4)
    run("r --count 10 --to whole")
    generate = script.generate

    def until_8(model, n, seed, first, **_):
        if first == 8:
            raise KeyboardInterrupt
        return generate(model, n, seed, first)

    monkeypatch.setattr(script, "generate", until_8)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run("r --count 10 --to images/")
    assert stop.value.code == 130
    error = capsys.readouterr().err
    assert "stopped: 8 of 10 images are in images; the same command goes on" in error
    assert len(files(tiny / "images")) == 8
    monkeypatch.setattr(script, "generate", generate)
    cut_off = (tiny / "images/00002.png").read_bytes()[:-20]
    (tiny / "images/00002.png").write_bytes(cut_off)
    run("r --count 10 --to images")
    assert files(tiny / "images") == files(tiny / "whole")


@pytest.mark.parametrize(
    "other", ["r --seed 1", "r --class a", "r --weights plain", "r --guidance 1", "s", "r/best.pt"]
)
def test_another_command_on_a_folder_is_refused(tiny, other, capsys):
    train("ddpm", "r", "--ema", "0.5", "--steps", "1", "--lr", "0.1")
    shutil.copy("r/last.pt", "r/best.pt")
    training.load_script("ddpm").main("--resume r --steps 2".split())
    train("ddpm", "s", "--ema", "0.5", "--seed", "1", "--lr", "0.1")  # as many steps, other weights
    run("r --count 2 --to images")
    before = files(tiny / "images")
    assert "holds other files" in error_of(capsys, f"{other} --count 5 --to images")
    assert files(tiny / "images") == before


def test_a_folder_never_holds_more_than_was_asked_for(tiny, capsys):
    """metrics.py would measure all that is in it. What was there is not said to be written."""
    train("cgan")
    run("r --class b --count 5 --to s/bees/")
    assert "wrote 5 images to s/bees\n" in capsys.readouterr().out
    before = files(tiny / "s")
    error = error_of(capsys, "r --class b --count 3 --to s/bees/")
    assert "'s/bees' holds images up to 00004.png: give --count 5, or choose another" in error
    assert files(tiny / "s") == before
    for count, words in (5, "wrote 0 images to s/bees; 5 were"), (7, "wrote 2 images to s/bees; 5"):
        run(f"r --class b --count {count} --to s/bees/")
        assert words in capsys.readouterr().out and len(files(tiny / "s")) == count


def test_another_program_begins_the_folder_meanwhile(tiny, monkeypatch, capsys):
    """Between the check and the first image, which may take a minute."""
    script, _ = train("dcgan")
    generate = script.generate

    def slow(*given, **more):
        (tiny / "images").mkdir()
        (tiny / "images/made_by.json").write_text("another model")
        return generate(*given, **more)

    monkeypatch.setattr(script, "generate", slow)
    assert "holds other files" in error_of(capsys, "r --count 2 --to images")
    assert (tiny / "images/made_by.json").read_text() == "another model"
    assert len(list((tiny / "images").iterdir())) == 1


def test_a_picture_without_a_name(tiny):
    """--to means a picture if it ends in .png."""
    train("dcgan")
    run("r --count 2 --to .png")
    assert Image.open(".png").format == "PNG"


def test_a_folder_of_other_files_is_left_alone(tiny, capsys):
    train("dcgan")
    (tiny / "photos").mkdir()
    (tiny / "photos/mine.txt").write_text("mine")
    assert "holds other files" in error_of(capsys, "r --to photos")
    assert [path.name for path in (tiny / "photos").iterdir()] == ["mine.txt"]


# -------------------------------------------------------------------------------------------- walks


@pytest.mark.parametrize(
    "name, kind, labels",
    [("dcgan", None, None), ("dcgan", "linear", None), ("vae_mlp", None, None),
     ("cvae", "images", None), ("cgan", "spherical", "abcabcab"), ("ddpm", "linear", "abcabcab"),
     ("cgan", "classes", ["a to b", "b to c", "c to a"] * 2 + ["a to b", "b to c"])],
)  # fmt: skip
def test_walks(tiny, rows, name, kind, labels):
    """Eight walks, with the class of each where walk() chooses classes."""
    script, model = train(name)
    run(f"r --interpolate 4 --seed 2 --to walk.png {f'--walk {kind}' if kind else ''}")
    images = script.walk(model, kind or script.WALKS[0], 8, 4, 2)
    if labels is None:
        assert_enlarged("walk.png", images, 4)
        assert not rows
    else:
        assert [label for label, _ in rows] == list(labels)
        for (_, row), expected in zip(rows, images.split(4), strict=True):
            factor = len(row) // 16
            assert np.array_equal(row[::factor, ::factor], np.asarray(datasets.grid(expected, 4)))
    assert pixels("walk.png").shape[0] >= 512


def test_a_walk_in_one_class(tiny):
    script, model = train("cgan")
    run("r --interpolate 3 --class c")
    assert_enlarged("interpolation.png", script.walk(model, "spherical", 8, 3, label=2), 3)


@pytest.mark.parametrize("name", ["vae_mlp", "cvae"])
def test_walks_between_images_of_other_data(tiny, name, capsys):
    """Held-out ones, where there are any."""
    script, model = train(name)
    arrays = dict(np.load("tiny.npz"))
    images = 255 - arrays["images"]
    np.savez("own.npz", **{**arrays, "images": images, "split": np.arange(100) // 80})
    run("r --interpolate 3 --data own.npz --to walk.png")
    _, held_out = datasets.load_parts("own.npz", 16)
    assert_enlarged("walk.png", script.walk(model, "images", 8, 3, images=held_out), 3)
    make_folder(tiny / "photos", [f"{c}/{i}.png" for c in "abc" for i in range(9)], size=(24, 16))
    checkpoint = training.read_checkpoint("r")
    checkpoint["flags"]["fit"] = "pad"  # as the model knows images, so are those of --data
    torch.save(checkpoint, "r/last.pt")
    run("r --interpolate 3 --data photos --to padded.png")
    padded = datasets.load("photos", 16, fit="pad")
    assert_enlarged("padded.png", script.walk(model, "images", 8, 3, images=padded), 3)
    np.savez("gray.npz", images=images[..., 0], labels=arrays["labels"])
    error = error_of(capsys, "r --interpolate 3 --data gray.npz")
    assert "'gray.npz' has 1 channels, and the model needs 3" in error


# ------------------------------------------------------------------------------------ command line


def test_sampling_flags_of_a_model(tiny, capsys):
    script, model = train("ddpm")
    for flags, sampling in (
        ("", {}),
        ("--guidance 0 --sample-steps 5 --eta 0.5", dict(guidance=0.0, sample_steps=5, eta=0.5)),
        ("--sampler ancestral", dict(sampler="ancestral")),
    ):
        run(f"r --class b --count 4 --to g.png {flags}")
        assert_enlarged("g.png", script.generate(model, 4, label=1, **sampling))
    with pytest.raises(SystemExit) as stop:
        sample.main(["r", "--help"])
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "--sample-steps" in words and "not amplified [2.0]" in words  # the model's own, not 1
    for flags, words in (
        ("--sampler euler", "no sampler 'euler'"),
        ("--eta 2", "'2' is not a number"),
        ("--sample-steps 13", "more than the 12 steps"),
    ):
        assert words in error_of(capsys, f"r {flags} --to images")
        assert not (tiny / "images").exists()


def test_help_without_a_run(capsys):
    with pytest.raises(SystemExit) as stop:
        sample.main(["--help"])
    assert stop.value.code == 0 and "usage: sample.py RUN" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, words",
    [("", "RUN"), ("absent", "no checkpoint"), ("tiny.npz", "damaged or no checkpoint"),
     ("r --checkpoint best", "no checkpoint 'r/best.pt'"), ("r --device cuda:7", "no device"),
     ("r --count 0", "whole number"), ("r --seed -1", "whole number"),
     ("r --guidance 2", "--guidance"), ("r --class d", "this model knows a, b, c"),
     ("r --walk linear", "go with --interpolate"), ("r --data tiny.npz", "go with --interpolate"),
     ("r --interpolate 1", "at least 2"), ("r --interpolate 3 --to walks", "FILE.png"),
     ("r --interpolate 3 --walk images", "can walk spherical, linear, classes"),
     ("r --interpolate 3 --data tiny.npz", "goes with --walk images"),
     ("r --to grid.jpg", "FILE.png for one grid"), ("r --to tiny.npz", "FILE.png for one grid"),
     ("r --to x.txt", "FILE.png for one grid"), ("r --to x.tar.7z", "FILE.png for one grid"),
     ("r --to a.b/x.MP4", "FILE.png for one grid"), ("r --to x.png.bak", "a folder and a slash"),
     ("r --to taken.png", "is a folder"), ("r --to tiny.npz/g.png", "'tiny.npz' is a file"),
     ("r --to tiny.npz/", "'tiny.npz' is a file"), ("r --to pipe.png", "not a regular file"),
     ("r --to tiny.npz/a/b/", "'tiny.npz' is a file"), ("r --to pipe", "'pipe' is a file"),
     ("r --to LONG.png", "File name too long"), ("r --to LONG/", "File name too long"),
     ("r --to /proc/x.png", "/proc/x.png"), ("r --to /proc/x/", "/proc/x"),
     ("r --interpolate 3 --to walks/", "FILE.png"), ("pipe", "'pipe' is not a regular file"),
     ("r --count 900000 --to g.png", "too many for one picture"), ("r --to=", "--to: is empty"),
     ("r --interpolate 999999 --to g.png", "below 1000"), ("r --device=", "--device: is empty")],
)  # fmt: skip
def test_bad_input_does_no_work(tiny, given, words, monkeypatch, capsys):
    if sys.platform != "linux" and ("/proc" in given or "LONG" in given):
        pytest.skip("other systems say it otherwise")
    script, _ = train("cgan")
    (tiny / "taken.png").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
        os.mkfifo("pipe.png")
    monkeypatch.delattr(script, "generate")
    before = sorted(tiny.glob("**/*"))
    error = error_of(capsys, given.replace("LONG", 300 * "x"))
    assert words in error and "error: " in error
    assert sorted(tiny.glob("**/*")) == before


def test_a_script_that_is_not_here_or_has_changed(tiny, capsys):
    train("dcgan")
    checkpoint = training.read_checkpoint("r")
    torch.save(checkpoint | {"script": "mygan"}, "a.pt")
    assert "made by mygan.py: copy it" in error_of(capsys, "a.pt")
    torch.save(checkpoint | {"flags": checkpoint["flags"] | {"width": 5}}, "b.pt")
    assert "does not fit dcgan.py" in error_of(capsys, "b.pt")
