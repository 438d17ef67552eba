"""sources.py: errors are one line, files are whole, and every kind of source comes out alike."""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_folder, make_zip, picture, program
from PIL import Image, ImageOps

import folders
import sources
from datasets import path_source
from sources import InputError, locked, prepare, run_program, write_atomic

RED = (200, 30, 40)


def prepared(path, size=16, fit="crop"):
    """(pixels uint8 (N, C, size, size), what the .json says) of a folder, zip or .npz."""
    _, _, open_source = path_source(Path(path))
    info = prepare(open_source(), size, "out.npy", "set", fit)
    pixels = np.load("out.npy")
    assert pixels.dtype == np.uint8 and pixels.shape == info["shape"]
    return pixels, info


def alone(here, name, image, fit="crop", **options):
    """The pixels of an image alone in its folder, so that its channels are its own."""
    folder = here / name.replace(".", "-")
    folder.mkdir()
    image.save(folder / name, **options)
    return prepared(folder, fit=fit)[0].astype(int)


# ---------------------------------------------------------------------------------- programs

SMALLER = "take a smaller --batch, --size or --width, or a lower --latent-dim"


@pytest.mark.parametrize(
    "error, message",
    [
        (InputError("no such set"), "no such set"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (OSError(), "OSError"),
        (MemoryError(), f"not enough memory (MemoryError): {SMALLER}"),
        (
            RuntimeError("CUDA out of memory. Tried\nto allocate 2 GiB"),
            f"not enough memory (CUDA out of memory. Tried): {SMALLER}",
        ),
        (
            RuntimeError("Storage size calculation overflowed with sizes=[4000000000, 4000000000]"),
            "not enough memory (Storage size calculation overflowed with sizes=[4000000000, "
            f"4000000000]): {SMALLER}",
        ),
        (OverflowError("int too big"), f"not enough memory (int too big): {SMALLER}"),
        (InputError("no such set '\x1b[31m\n\udcff'"), r"no such set '\x1b[31m\n\udcff'"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (
            NotImplementedError("The operator 'x' is not implemented for the MPS device."),
            "The operator 'x' is not implemented for the MPS device. "
            "Set PYTORCH_ENABLE_MPS_FALLBACK=1, or use --device cpu",
        ),
        (NotImplementedError("not yet"), None),
        (KeyError("x"), None),
    ],
)
def test_errors_of_a_program(error, message, capsys, monkeypatch):
    """What a user can mend is one line and exit code 2; our mistakes keep their traceback."""
    monkeypatch.setattr(sys, "argv", ["/some/where/x.py", "--flag"])

    def main():
        raise error

    with pytest.raises(SystemExit if message else type(error)) as caught:
        run_program(main)
    if message:
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"x.py: error: {message}\n"


def test_exit_codes(capsys):
    assert run_program(lambda: None) is None
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: 143)
    assert caught.value.code == 143
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the first line of a runnable file
    try:
        with pytest.raises(SystemExit) as caught:
            run_program(lambda: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == 130 and capsys.readouterr().err.endswith(": interrupted\n")


def test_only_the_first_of_several_processes_speaks(here):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sources\n"
        "def main():\n    print('hello')\n    raise sources.InputError('bad')\n"
        "print(sources.START); sources.run_program(main)"
    )
    start = "torchrun --nproc-per-node 2\n"
    for rank, out, err in (("0", start + "hello\n", "-c: error: bad\n"), ("1", start, "")):
        done = program(here, "-c", code, LOCAL_RANK=rank, RANK=rank, WORLD_SIZE="2")
        assert (done.returncode, done.stdout, done.stderr) == (2, out, err)


def test_a_reader_that_leaves_early(here):
    """As in `python datasets.py | head -1`; this one is gone before the first line comes."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sources\n"
    (here / "x.py").write_text(code + "sources.run_program(lambda: print('hello'))")
    command = (
        f"env -u PYTHONUNBUFFERED '{sys.executable}' x.py 2>err.txt | true; exit ${{PIPESTATUS[0]}}"
    )
    assert subprocess.run(["bash", "-c", command]).returncode == 141
    assert (here / "err.txt").read_text() == ""


@pytest.mark.parametrize(
    "text, words",
    [("größe 2, 猫", "größe 2, 猫"), ("a\x1b[31m\nb", r"a\x1b[31m\nb"), ("\u202egnp", r"\u202egnp"),
     ("caf\udce9", r"caf\udce9"), ("e\u0301", "e\u0301"), (300 * "x", 197 * "x" + "...")],
)  # fmt: skip
def test_printable(text, words):
    assert sources.printable(text) == words and words.isprintable()
    assert sources.printable(Path(text)) == words


@pytest.mark.parametrize(
    "text, words",
    [("wgan_gp", "wgan_gp"), ("<b>a|b", r"&lt;b>a\|b"), ("_x_ *y*", r"\_x\_ \*y\*"),
     ("[x](y)", r"\[x\](y)"), ("`$a$`", r"\`\$a\$\`"), ("&lt;", "&amp;lt;"), ("a\nb", r"a\\nb")],
)  # fmt: skip
def test_markdown(text, words):
    assert sources.markdown(text) == words


def test_an_output_is_checked(here):
    """It leaves nothing behind."""
    (here / "file").write_text("mine")
    (here / "folder").mkdir()
    for path in ("x.png", "new/deep/x.png", "folder/x.png", "file", here / "x.png"):
        sources.check_output(path)
    for path, words in (
        ("folder", "is a folder: name a file"),
        ("file/x.png", "'file/x.png' cannot be written: 'file' is a file"),
        ("file/new/x.png", "'file' is a file"),
        (260 * "x", "too long"),
    ):
        with pytest.raises((InputError, OSError), match=words):
            sources.check_output(path)
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder"]


def test_number_is_a_type_for_argparse():
    whole, rate = sources.number(int, 2, 10), sources.number(float, 0)
    assert [whole("2"), whole("9"), rate("0"), rate("1e3")] == [2, 9, 0.0, 1000.0]
    for convert, text, words in (
        (whole, "1", "'1' is not a whole number of at least 2 and below 10"),
        (whole, "10", "whole number"),
        (whole, "2.5", "whole number"),
        (rate, "nan", "'nan' is not a number of at least 0 and below 2147483648$"),
        (rate, "1e24", "below 2147483648"),
        (rate, "1e-400", "at least 0"),
        (rate, "\u0663", "at least 0"),
        (rate, " 5", "at least 0"),
        (rate, "1_0", "at least 0"),
        (rate, "", "at least 0"),
        (rate, "\x1b[31m", r"'\\x1b\[31m' is not"),
        (whole, "9" * 5000, r"'9{47}\.\.\.' is not"),
        (rate, "-1e-9", "at least 0"),
        (rate, "inf", "at least 0"),
        (rate, "x", "at least 0"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            convert(text)


def test_a_parser_says_errors_in_one_line(capsys):
    parser = sources.new_parser("x.py", "What it is.\n\n    python x.py   # indented\n")
    parser.add_argument("--flag")
    for flags, code in ((["--fl", "3"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(flags)
        assert caught.value.code == code
    out, err = capsys.readouterr()
    assert err == "x.py: error: unrecognized arguments: --fl 3 (see --help)\n"
    order = ("usage: x.py [flags]", "What it is.", "--flag FLAG", "  # indented\n  python x.py\n")
    assert [out.count(words) for words in order] == [1, 1, 1, 1]
    assert list(order) == sorted(order, key=out.index)


def test_help_fits_and_shows_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    title = "x.py: " + 30 * "words " + "end."
    parser = sources.new_parser("x.py", f"{title}\n\n    python x.py --much {60 * 'x'}  # remark\n")
    add = parser.groups["model"].add_argument
    add("--zero", type=sources.number(float, 0), default=0.0, help="0: none")
    add("--whole", type=int, default=0, help="a number")
    add("--name", default="", help="free text")
    add("--kind", default="a", choices=["a", "b"], help=20 * "long --lr-g-d " + "[of data]")
    add("--on", action="store_true", help="a switch")
    add("--none", type=int, help="none by default")
    parser.groups["data"].add_argument("--data", metavar="PATH", default="shapes", help="yours")
    text = parser.format_help()
    assert max(map(len, text.splitlines())) == 80
    words = " ".join(text.split())
    for line in (
        "--zero N 0: none [0.0]", "--whole N a number [0]", "--name NAME free text []",
        "--lr-g-d [of data] --on a switch --none N none by default", "--data PATH yours [shapes]",
    ):  # fmt: skip
        assert line in words
    assert text.index("\ndata:") < text.index("\nmodel:") and "training:" not in text
    assert "lr-\n" not in text and "SUPPRESS" not in text


# ------------------------------------------------------------------------------------- files


def test_a_file_is_whole_or_as_before(here):
    def half(temporary):
        Path(temporary).write_text("new, bu")
        assert Path("f").read_text() == "old"
        raise OSError("disk full")

    sources.write_text("f", "old")
    with pytest.raises(OSError, match="disk full"):
        write_atomic("f", half)
    assert os.listdir() == ["f"] and Path("f").read_text() == "old"
    sources.write_text("f", "n\u00e9w")
    assert os.listdir() == ["f"] and Path("f").read_bytes() == "n\u00e9w".encode()


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_names_the_file(here, capsys):
    """However long its name is. What cannot be written stays as it was."""
    import resource

    path = here / ("deep/" * 40) / "last.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(SystemExit):
            run_program(lambda: sources.write_bytes(path, bytes(10_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"'{path}' cannot be written (File too large)" in capsys.readouterr().err
    assert os.listdir(path.parent) == ["last.pt"] and path.read_bytes() == b"old"


def test_a_lock_refuses_or_waits_and_says_so_once(here, monkeypatch, capsys):
    holder = locked("x.lock")
    holder.__enter__()
    with pytest.raises(InputError, match="in use"), locked("x.lock", busy="in use"):
        pass
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 4:
            holder.__exit__(None, None, None)

    monkeypatch.setattr(sources.time, "sleep", sleep)
    with locked("x.lock", wait="waiting for it"):
        assert len(pauses) == 4 and capsys.readouterr().err == "waiting for it\n"
        with pytest.raises(InputError), locked("x.lock"):
            pass
    with locked("x.lock", wait="waiting for it"):  # free again
        assert capsys.readouterr().err == ""


def test_run_directories(here):
    made = [sources.new_directory(None, Path("runs/dcgan")) for _ in range(3)]
    assert made == [Path("runs/dcgan-1"), Path("runs/dcgan-2"), Path("runs/dcgan-3")]
    assert all(path.is_dir() for path in made)
    early = ("args.json", ".lock")
    assert sources.new_directory("a/b", "", early).is_dir()
    for name in ("args.json", "last.pt.123.tmp"):  # what a run leaves that was killed at once
        Path("a/b", name).write_text("half")
    assert sources.new_directory("a/b", "", early) == Path("a/b")
    Path("a/b/mine").write_text("")
    with pytest.raises(InputError, match="^'a/b' exists and is not empty: give another --out$"):
        sources.new_directory("a/b", "", early)
    Path("a/b/last.pt").write_text("")
    with pytest.raises(InputError, match="use --resume a/b, or give another --out"):
        sources.new_directory("a/b", "", early)
    with pytest.raises(InputError, match="'a/b/mine' exists"):
        sources.new_directory("a/b/mine", "", early)


def test_a_log_grows_and_goes_back(here, capsys):
    path = Path("log.csv")
    log = sources.Log(path, 0)
    log.write([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    log.write([])
    log.write([{"step": 3, "loss": 0.125, "fid": 9.0}])  # a new column
    assert path.read_text() == "step,loss,fid\n1,0.5,\n2,0.25,\n3,0.125,9.0\n"
    sources.Log(path, 2).write([{"step": 3, "loss": 7, "fid": 8}])  # as on resume at step 2
    assert path.read_text() == "step,loss,fid\n1,0.5,\n2,0.25,\n3,7,8\n"
    assert capsys.readouterr().err == ""
    # after a power cut, and edited by hand
    damaged = b"2\n\xff,3\n\0\0,\n4,1,1\n-3,1\nabc,1\n\xc2\xb2,1\n"
    path.write_bytes(b"step,loss\n1,0.5\n" + damaged + b"5,0.1\n")
    rows = sources.read_log(path)
    assert rows == [{"step": "1", "loss": "0.5"}, {"step": "5", "loss": "0.1"}]
    assert capsys.readouterr().err == "log.csv: 7 damaged rows are left out\n"
    assert sources.read_log(Path("absent.csv")) == []


# ----------------------------------------------------------------------------------- sources


def test_folder_zip_and_npz_agree(here):
    classes = ["ant", "bee", "cow"]
    names = [f"{name}/{i}.png" for name in classes for i in range(5)]
    folder = make_folder(here / "set", names)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"x")
    arrays = np.stack([np.asarray(Image.open(folder / name)) for name in names])
    labels = np.arange(15) // 5
    np.savez("set.npz", images=arrays, labels=labels, classes=classes)
    np.savez("channels_first.npz", images=arrays.transpose(0, 3, 1, 2), labels=labels)
    pixels, info = prepared(folder)
    assert info["classes"] == classes and info["labels"] == labels.tolist()
    assert "central square" in info["note"]
    for path in (make_zip(folder, here / "set.zip"), "set.npz", "channels_first.npz"):
        same_pixels, same_info = prepared(path)
        assert np.array_equal(same_pixels, pixels)
        if path == "channels_first.npz":
            assert same_info.pop("classes") == ["0", "1", "2"]
            same_info["classes"] = classes
        assert same_info == info
    crop = np.asarray(Image.open(folder / "ant/0.png"))[:, 2:18]  # 20x16 -> its central 16x16
    assert np.array_equal(pixels[0], crop.transpose(2, 0, 1))


def test_a_damaged_header_of_a_log(here):
    path = here / "log.csv"
    path.write_text('step,"sec:""\x18\ufffd"\n1,2\n', encoding="utf-8")
    for step in (2, 3):
        sources.Log(path, step).write([{"step": step, "loss": 7}])
    assert [row["step"] for row in sources.read_log(path)] == ["1", "2", "3"]
    assert {row["loss"] for row in sources.read_log(path)} == {"", "7"}


def test_splits_and_classes(here):
    def about(folder, *names):
        info = prepared(make_folder(here / folder, names))[1]
        return info["labels"], info["classes"], info["split"]

    names = ("train/a/0.png", "train/b/1.png", "train/b/2.png")
    assert about("s", *names, "test/a/3.png") == ([0, 0, 1, 1], ["a", "b"], [1, 0, 0, 0])
    assert about("v", *names, "val/b/3.png") == ([0, 1, 1, 1], ["a", "b"], [0, 0, 0, 1])
    assert about("v", "test/a/3.png") == ([0, 0, 1, 1], ["a", "b"], [1, 0, 0, 0])  # test/ wins
    assert about("outer", *(f"x/y/{name}" for name in names)) == about("flat", *names)
    assert about("one", "cats/0.png", "cats/1.png") == (None, [], None)  # one class says nothing
    assert about("mixed", "0.png", "a/1.png", "b/1.png") == ([0, 1], ["a", "b"], None)
    assert about("no-test", "train/0.png", "more/1.png") == ([0, 1], ["more", "train"], None)


def test_images_outside_the_split_are_counted(here):
    names = ["train/0.png", "test/1.png", "val/2.png", "loose.png"]
    (remark,) = prepared(make_folder(here / "s", names))[1]["remarks"]
    assert "2 images outside train/ and test/ are not used" in remark


def test_labels_and_splits_stay_with_their_images(here):
    folder = here / "d"
    for i in range(150):
        path = folder / ("train" if i % 3 else "test") / f"class{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), i).save(path)
    make_folder(folder, ["inf/0.png"])  # not used
    (folder / "test/class0/000.png").write_bytes(b"")  # damaged
    pixels, info = prepared(folder)
    value = pixels[:, 0, 0, 0].astype(int)
    assert sorted(value.tolist()) == list(range(1, 150))
    assert np.array_equal(info["labels"], value % 2)
    assert np.array_equal(info["split"], value % 3 == 0)


def test_names_in_any_script(here):
    names = [
        "\u732b",
        "\u043a\u043e\u0448\u043a\u0430",
        "gat\u00e9",
        "\u0642\u0637\u0629",
        "$x^2$ & <b>",
    ]
    folder = make_folder(
        here / "\u56fe", [f"{name}/{name} {k}.png" for name in names for k in "ab"]
    )
    pixels, info = prepared(folder)
    packed_pixels, packed_info = prepared(make_zip(folder, here / "\u7bb1.zip"))
    assert info["classes"] == sorted(names) and info == packed_info
    assert np.array_equal(pixels, packed_pixels)
    assert sources.title(folder) == "\u56fe" and sources.title(here / "\u7bb1.zip") == "\u7bb1"


@pytest.mark.parametrize("name", ["folder", "x.zip", "x.npz"])
def test_the_stamp_sees_a_change_in_place(here, name):
    """One that keeps the size of the file, and one that keeps its time."""

    def stamp(images, time):
        file = path = here / name
        if name == "folder":
            file = path / "a.png"
            path.mkdir(exist_ok=True)
        file.write_bytes(b"PK" + bytes(images))
        os.utime(file, ns=(time, time))
        key, stamp, _ = path_source(path)
        assert key.startswith(path.stem)
        return stamp

    assert stamp(7, time=1) == stamp(7, time=1)
    assert len({stamp(7, time=1), stamp(7, time=2), stamp(9, time=1)}) == 3


# ------------------------------------------------------------------------------- preparation


def test_28_pixels_are_padded_and_gray_stays_gray(here):
    images = np.random.default_rng(0).integers(1, 256, (1100, 28, 28, 1), dtype=np.uint8)
    np.savez("digits.npz", images=images, split=[0] * 1000 + [1] * 100)
    pixels, info = prepared("digits.npz", 32)
    assert pixels.shape == (1100, 1, 32, 32) and "padded" in info["note"]
    assert np.array_equal(pixels[:, 0, 2:30, 2:30], images[..., 0])
    assert pixels.sum() == images.sum()  # the border is black
    folder = make_folder(here / "mixed", ["a.png"])  # in color: then all have three channels
    Image.new("L", (16, 16), 9).save(folder / "b.png")
    pixels, _ = prepared(folder)
    assert pixels.shape == (2, 3, 16, 16) and (pixels[1] == 9).all()


def test_kinds_of_images(here):
    red = Image.new("RGB", (16, 16), RED)
    blue = Image.new("RGB", (16, 16), (10, 20, 220))
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    see_through = palette.copy()
    see_through.info["transparency"] = see_through.getpixel((0, 0))
    invisible = red.convert("RGBA")
    invisible.putalpha(0)
    ramp = np.arange(16, dtype=np.uint8)[None].repeat(16, 0) * 16
    gray = Image.fromarray(ramp)
    frames = {"save_all": True, "append_images": [blue]}  # only the first frame counts
    on_white = ramp.astype(int) ** 2 / 255 + 255 - ramp  # alpha equal to the value, upon white
    kinds = [  # name, image, expected values (C, H, W) or of any shape that broadcasts to it
        ("rgb.png", red, {}, RED),
        ("palette.png", palette, {}, RED),
        ("palette.gif", red, {}, RED),
        ("cmyk.jpg", red.convert("CMYK"), {"quality": 100}, RED),
        ("cmyk.tif", red.convert("CMYK"), {}, RED),
        ("ycbcr.tif", red.convert("YCbCr"), {}, RED),
        ("rgb.bmp", red, {}, RED),
        ("rgb.webp", red, {"lossless": True}, RED),
        ("moving.gif", red, frames, RED),
        ("moving.webp", red, frames | {"lossless": True}, RED),
        ("pages.tif", red, frames, RED),
        ("invisible.png", invisible, {}, (255, 255, 255)),
        ("see-through.png", see_through, {}, (255, 255, 255)),
        ("gray.jpg", gray, {}, ramp),
        ("gray-alpha.png", Image.merge("LA", [gray, gray]), {}, on_white),
        ("bilevel.png", Image.fromarray(ramp >= 128), {}, ramp // 128 * 255),
        ("sixteen.png", Image.fromarray(ramp.astype(np.uint16) * 256 + 7), {}, ramp),
        ("sixteen.tif", Image.fromarray(ramp.astype(np.uint16) * 256 + 255), {}, ramp),
    ]
    for name, image, options, expected in kinds:
        expected = np.array(expected, float)
        if expected.ndim == 1:
            expected = expected[:, None, None]
        limit = 0.5 if name.endswith((".png", ".bmp", ".webp")) else 4
        assert np.abs(alone(here, name, image, **options)[0] - expected).max() <= limit, name


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_orientation(here, turn):
    """What a viewer shows: the tag says how the upright picture was turned before it was stored."""
    upright = np.zeros((16, 16, 3), np.uint8)  # four colors, no symmetry
    upright[:8, :8, 0] = 255
    upright[:8, 8:, 1] = 255
    upright[8:, :8, 2] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    image = Image.fromarray(np.ascontiguousarray(stored[turn]))
    exif = image.getexif()
    exif[274] = turn
    assert np.array_equal(alone(here, "a.png", image, exif=exif)[0].transpose(1, 2, 0), upright)


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_001), (10_001, 3), (33, 7), (5_000, 5_000)])
def test_any_shape_comes_out_square(here, shape):
    """The central square of a picture has another color than the rest. At its edge the filter sees
    what lies beyond, as if one resized first and cropped then."""
    side = min(shape)
    left = (shape[0] - side) // 2
    top = (shape[1] - side) // 2
    image = Image.new("L", shape, 50)
    image.paste(200, (left, top, left + side, top + side))
    pixels = alone(here, "a.png", image, compress_level=1)
    assert pixels.shape == (1, 1, 16, 16)
    assert np.abs(pixels[0, 0, 5:11, 5:11] - 200).max() <= 11


BICUBIC = Image.Resampling.BICUBIC
# size of an image -> where all of it lies in 16x16 pixels: left, top, right, bottom
PADDED = {
    (60, 40): (0, 2, 16, 13),
    (40, 60): (2, 0, 13, 16),
    (32, 16): (0, 4, 16, 12),
    (5, 4): (0, 2, 16, 15),
    (1, 300): (8, 0, 9, 16),
    (300, 1): (0, 8, 16, 9),
}


def squashed(image):
    return np.asarray(image.resize((16, 16), BICUBIC))


def padded(image):
    """RGB -> uint8 (16, 16, 3), by hand."""
    left, top, right, bottom = PADDED[image.size]
    result = np.zeros((16, 16, 3), np.uint8)
    small = image.resize((right - left, bottom - top), BICUBIC)
    result[top:bottom, left:right] = np.asarray(small)
    return result


def cropped(image):
    """What --fit crop is, and what every set was before there was the flag."""
    return np.asarray(ImageOps.fit(image, (16, 16), BICUBIC))


BY_HAND = {"crop": cropped, "squash": squashed, "pad": padded}
every_fit = pytest.mark.parametrize("fit", BY_HAND)


@every_fit
def test_how_images_become_square(here, fit):
    """Each pixel, the note, and the fingerprint, which is a hash of pixels, labels and split."""
    expected = []
    for i, size in enumerate(PADDED):
        make_folder(here / "d", [f"{i}.png"], size=size)
        expected.append(BY_HAND[fit](picture(0, size)).transpose(2, 0, 1))
    pixels, info = prepared("d", fit=fit)
    assert np.array_equal(pixels, expected)
    notes = {
        "crop": "cropped to the central square and resized to 16x16 (bicubic, antialiased)",
        "squash": "squashed to 16x16 (bicubic, antialiased)",
        "pad": "resized and padded with black to 16x16 (bicubic, antialiased)",
    }
    assert info["note"] == notes[fit]
    text = json.dumps([None, list(pixels.shape), None])
    digest = hashlib.sha256(np.stack(expected).tobytes() + text.encode())
    assert info["fingerprint"] == digest.hexdigest()[:16]


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_other_modes_become_square_alike(here, fit):
    """Upright first and shown on white first; what is padded is black all the same."""
    by_hand = BY_HAND[fit]
    color = picture(0, (60, 40))
    grey = picture(1, (60, 40), "L")
    pixels = alone(here, "grey.png", grey, fit)
    assert np.array_equal(pixels[0], by_hand(grey.convert("RGB"))[None, ..., 0])

    rgba = color.convert("RGBA")
    rgba.putalpha(picture(2, (60, 40), "L"))
    white = Image.new("RGBA", rgba.size, "white")
    on_white = Image.alpha_composite(white, rgba).convert("RGB")
    pixels = alone(here, "rgba.png", rgba, fit)[0].transpose(1, 2, 0)
    assert np.array_equal(pixels, by_hand(on_white))

    palette = color.quantize(16)
    on_white = np.asarray(palette.convert("RGB")).copy()
    on_white[np.asarray(palette) == 3] = 255
    pixels = alone(here, "palette.png", palette, fit, transparency=3)[0].transpose(1, 2, 0)
    assert np.array_equal(pixels, by_hand(Image.fromarray(on_white)))

    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    pixels = alone(here, "exif.png", color, fit, exif=exif)[0].transpose(1, 2, 0)
    assert np.array_equal(pixels, by_hand(color.transpose(Image.Transpose.ROTATE_270)))

    deep = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    pixels = alone(here, "deep.png", Image.fromarray(deep), fit)
    in_8_bits = Image.fromarray((deep // 256).astype(np.uint8)).convert("RGB")
    assert np.array_equal(pixels[0], by_hand(in_8_bits)[None, ..., 0])


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_arrays_become_square_alike(here, fit):
    images = [picture(i, (60, 40)) for i in range(3)]
    np.savez("x.npz", images=np.stack(images))
    expected = [BY_HAND[fit](image).transpose(2, 0, 1) for image in images]
    assert np.array_equal(prepared("x.npz", fit=fit)[0], expected)


@every_fit
def test_square_images_do_not_depend_on_the_fit(here, fit):
    make_folder(here / "d", ["0.png", "1.png"], size=(16, 16))
    make_folder(here / "e", ["0.png"], size=(48, 48))
    np.savez("digits.npz", images=np.arange(784, dtype=np.uint8).reshape(1, 28, 28))
    pixels, info = prepared("d", fit=fit)
    assert np.array_equal(pixels[1], np.asarray(picture(1, (16, 16))).transpose(2, 0, 1))
    assert info["note"] == "16x16 as they are"
    pixels, info = prepared("e", fit=fit)
    assert np.array_equal(pixels[0], squashed(picture(0, (48, 48))).transpose(2, 0, 1))
    assert fit == "crop" or info["note"] == "resized to 16x16 (bicubic, antialiased)"
    pixels, info = prepared("digits.npz", 32, fit)
    assert np.array_equal(pixels[0, 0, 2:30, 2:30].ravel(), np.arange(784) % 256)
    assert pixels[0, 0].sum(dtype=int) == (np.arange(784) % 256).sum()
    assert info["note"] == "28x28 padded to 32x32 with black"


def test_a_few_damaged_images_are_skipped_and_named(here):
    folder = make_folder(here / "d", [f"{i:03d}.png" for i in range(150)], size=(16, 16))
    damaged = folder / "070.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    pixels, info = prepared(folder)
    assert len(pixels) == 149 and info["skipped"][0].startswith("070.png: ")
    assert "skipped 1 of 150 unreadable images; the first: 070.png" in info["remarks"][0]
    for row, seed in ((69, 69), (70, 71)):
        expected = np.asarray(picture(seed, (16, 16))).transpose(2, 0, 1)
        assert np.array_equal(pixels[row], expected)
    Path("out.npy").unlink()
    for i in range(6):
        (folder / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(InputError, match="^7 of 150 images cannot be read, .*: 000.png: .*; ...$"):
        prepared(folder)
    assert not list(here.glob("out*"))


def test_a_packed_bomb_is_skipped(here, monkeypatch):
    folder = make_folder(here / "d", [f"{i:03d}.png" for i in range(150)], size=(8, 8))
    (folder / "bomb.png").write_bytes(bytes(10_000_000))
    path = make_zip(folder, here / "d.zip")
    monkeypatch.setattr(folders, "MAX_FILE", 1_000_000)
    _, info = prepared(path, 8)
    assert info["skipped"] == ["bomb.png: 10000000 bytes unpacked"]


def test_the_fingerprint_is_of_pixels_labels_and_split(here):
    def fingerprint(change=0, **arrays):
        images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        images[3, 4, 5] ^= change
        np.savez("x.npz", images=images, **arrays)
        return prepared("x.npz", 8)[1]["fingerprint"]

    others = [
        fingerprint(change=1),
        fingerprint(labels=[0, 1] * 10),
        fingerprint(split=[0, 1] * 10),
        fingerprint(split=[0] * 19 + [1]),
    ]
    assert len({fingerprint(), *others}) == 5
    np.savez("x.npz", images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 0, 1])
    pixels, info = prepared("x.npz", 8)
    other = json.dumps([[0, 1, 0, 1], [4, 1, 8, 8], None])  # it never changes between versions
    assert info["fingerprint"] == hashlib.sha256(pixels.tobytes() + other.encode()).hexdigest()[:16]


# --------------------------------------------------------------------------------- bad input

GOOD = np.zeros((4, 8, 8), np.uint8)


@pytest.mark.parametrize(
    "name, content, words",
    [
        (".", None, "no images in '.'"),
        ("x.zip", b"PK nonsense", "not a readable zip"),
        ("x.zip", b"", "not a readable zip"),
        ("x.npz", b"", "not a readable .npz"),
        ("x.txt", b"hello", "no folder, zip or .npz"),
        ("x.npz", {"pictures": GOOD}, "no array 'images' (it has: pictures)"),
        ("x.npz", {"images": GOOD / 255}, "must be uint8"),
        ("x.npz", {"images": GOOD[:0]}, "must be uint8"),
        ("x.npz", {"images": np.zeros((4, 8, 8, 5), np.uint8)}, "1 or 3 channels"),
        ("x.npz", {"images": GOOD, "labels": [0, 1]}, "'labels' in 'x.npz' must be 4"),
        ("x.npz", {"images": GOOD, "split": [0.0, 1, 1, 1]}, "'split' in 'x.npz' must be 4"),
        ("x.npz", {"images": GOOD, "labels": [0, 1, 2, 9], "classes": ["a", "b"]}, "2 classes"),
        ("x.npz", {"images": GOOD, "labels": [0, -1, 2, 9]}, "'labels'"),
        ("x.npz", {"images": np.array([object()] * 3)}, "not a readable .npz"),
    ],
)
def test_bad_data_is_one_line(here, name, content, words):
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content:
        np.savez(name, **content)
    with pytest.raises(InputError) as caught:
        prepared(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not list(here.glob("out*"))


def test_a_tilde_that_the_shell_left():
    """bash does not expand --data=~/photos."""
    parser = sources.new_parser("x.py", "title")
    parser.add_argument("--data")
    home = os.path.expanduser("~")
    assert parser.parse_args(["--data=~/photos"]).data == os.path.join(home, "photos")
    assert parser.parse_args(["--data=~photos"]).data == "~photos"
