"""tests/fuzz.py: damage files at random, and see what the programs make of them.

    python tests/fuzz.py                                     # 500 damages of each kind
    python tests/fuzz.py --kinds zip json --count 50
    python tests/fuzz.py --kinds zip --seed 1234 --count 1   # one damage again

A damaged file may still work, or end a program with one line (exit code 2). Anything else is a
failure: another exception, a message of several lines, more than a handful of lines on stderr, a
half-written file, more than a gigabyte, or more than 20 seconds. A damaged set of prepared images
has to work, because the images themselves are still there. Each failure is printed with its seed.
The exit code is 1 if there are any.

    kind         what is damaged                                 the program that reads it
    zip, tar     archives of images                              datasets.load
    npz          images with labels; statistics                  datasets.load, metrics.py
    csv          labels; log.csv and weights.csv of a run        datasets.load, --resume, report.py
    json         labels; args.json and metrics.json of a run     datasets.load, --resume, report.py
    checkpoint   last.pt                                         --resume, sample.py, report.py
    cache        prepared images, and what is known of them      datasets.load, datasets.py
    image        a PNG, JPEG, GIF, TIFF or WebP                  datasets.load

All kinds get random bytes: flipped, cut, zeroed, repeated, inserted. Half of the damages are of
another sort, which keeps the format: other values in JSON, cells in CSV, arrays in .npz, names in
archives, tensors and flags in checkpoints.
"""

import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import datasets
import dcgan
import metrics
import report
import sample
import training
from sources import InputError, explanation, new_parser, number, run_program

SECONDS = 20  # of computing for one damage, or five times as many of waiting
LINES = 10  # on stderr
SIDE = 16  # of the images
GOOD = ("works", "one line")  # outcomes


class Hang(BaseException):
    """A damage took more than SECONDS."""


# ------------------------------------------------------------------------------------ originals


def make_originals(folder):
    """What is damaged: images in every container, label files, a run, and a prepared set."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    labels = np.arange(8) % 2
    suffixes = ["png", "jpg", "gif", "tif", "webp", "png", "jpg", "bmp"]
    names = []
    for i, suffix in enumerate(suffixes):
        names.append(f"{'ab'[i % 2]}/{i}.{suffix}")
        for root in ("photos", "labeled"):
            path = folder / root / (names[i] if root == "photos" else f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(path)
    with zipfile.ZipFile(folder / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / "photos" / name, name)
    for suffix, mode in (("tar", "w"), ("tgz", "w:gz")):
        with tarfile.open(folder / f"photos.{suffix}", mode) as archive:
            archive.add(folder / "photos", ".")
    np.savez(folder / "images.npz", images=images, labels=labels, classes=["a", "b"])
    np.savez(folder / "parts.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    for name in ("real.npz", "fake.npz"):
        np.savez(folder / name, mu=rng.normal(size=64), sigma=np.eye(64))
    rows = [(f"{i}.png", "ab"[i % 2]) for i in range(8)]
    table = "".join(f"{name},{label}\n" for name, label in [("file_name", "label"), *rows])
    lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
    stylegan = json.dumps({"labels": [[name, "ab".index(label)] for name, label in rows]})
    texts = {"labels.csv": table, "metadata.jsonl": "\n".join(lines), "dataset.json": stylegan}
    for name, text in texts.items():
        root = folder / name.partition(".")[0]
        shutil.copytree(folder / "labeled", root)
        (root / name).write_text(text)
    shutil.rmtree(folder / "labeled")
    with inside(folder):
        datasets.load("photos", SIDE)
        flags = ["--data", "images.npz", "--size", str(SIDE), "--width", "4", "--latent-dim", "4"]
        dcgan.main([*flags, "--steps", "2", "--log-every", "1", "--out", "run"])
    values = {"FID-64": [3.2, 1.5, "8 images"], "KID": [0.1, None, "8 images"]}
    result = {"values": values, "report": {"FID-64": 3.0, "protocol": "theirs"}}
    result |= {"weights": "plain weights at step 2", "changed": "", "step": 2}
    (folder / "run" / "metrics.json").write_text(json.dumps(result))


@contextlib.contextmanager
def inside(folder):
    """Make a folder the current one for a while."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# -------------------------------------------------------------------------------------- damages

NESTED = "[" * 20_000
VALUES = [None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 10**30, 10**400, 0.5, -0.5, 1e308]
VALUES += [math.nan, math.inf, -math.inf, "", "text", "1", "nan", "a\0b", "\x1b[2J", "\ud800"]
VALUES += [[], {}, [[]], [None], ["a"], [1, 2, 3], {"a": 1}, list(range(3000)), "../x"]


def damage_bytes(data, rng):
    """Flip, cut, zero, repeat, insert, remove or exchange some bytes, once to four times."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice([1, 1, 2, 4, 16, 200]))
        way = rng.choice(["flip", "set", "cut", "zero", "repeat", "insert", "remove", "exchange"])
        if way == "flip" and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif way == "set":
            data[start:end] = rng.randbytes(end - start)
        elif way == "cut":
            del data[start:]
        elif way == "zero":
            data[start:end] = bytes(end - start)
        elif way == "repeat":
            data[start:start] = data[start:end] * rng.choice([1, 2, 100])
        elif way == "insert":
            data[start:start] = rng.randbytes(rng.choice([1, 3, 50]))
        elif way == "remove":
            del data[start:end]
        elif way == "exchange":
            middle = (start + end) // 2
            data[start:end] = data[middle:end] + data[start:middle]
    return bytes(data)


def damage_tree(tree, rng):
    """Change one value somewhere in nested dicts and lists, or remove or add one."""
    holders = [tree]
    for holder in holders:  # grows meanwhile
        values = holder.values() if isinstance(holder, dict) else holder
        holders += [value for value in values if isinstance(value, (dict, list)) and value]
    holder = rng.choice(holders)
    if not holder:
        return rng.choice(VALUES)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    way = rng.choice(["change", "change", "change", "remove", "add"])
    if way == "change":
        holder[key] = other_value(holder[key], rng)
    elif way == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice(["new", "", "step", "\0", "../x"])] = rng.choice(VALUES)
    else:
        holder.insert(key, rng.choice(VALUES))
    return tree


def other_value(value, rng):
    """A value in place of another one. A tensor may get other numbers or another shape."""
    if not isinstance(value, torch.Tensor) or rng.random() < 0.2:
        return rng.choice(VALUES)
    value = value.clone()
    ways = [
        lambda: value.double(),
        lambda: value.to(torch.int8),
        lambda: value.flatten()[:-1],
        lambda: value[None],
        lambda: value.expand(3, *value.shape),
        lambda: torch.full_like(value.float(), math.nan),
        lambda: torch.full_like(value.float(), math.inf),
        lambda: torch.empty(0),
        lambda: value.float() * 1e30,
        lambda: value.to(torch.complex64),
        lambda: value.to_sparse() if value.dim() else value,
    ]
    return rng.choice(ways)()


def damage_json(path, rng):
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    k = rng.randrange(len(lines))
    tree = damage_tree(json.loads(lines[k]), rng)
    lines[k] = rng.choice([NESTED, "", "null"]) if rng.random() < 0.1 else json.dumps(tree)
    if rng.random() < 0.2:
        lines[k] = lines[k].replace(": ", f": {rng.choice(['NaN', '9' * 5000, NESTED])}, ", 1)
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")


def damage_csv(path, rng):
    lines = path.read_text().splitlines()
    for _ in range(rng.choice([1, 1, 3])):
        k = rng.randrange(len(lines))
        cells = lines[k].split(",")
        j = rng.randrange(len(cells))
        way = rng.choice(["cell", "cell", "cell", "more", "fewer", "row", "no row"])
        if way == "cell":
            cells[j] = str(rng.choice(VALUES))
        elif way == "more":
            cells += [str(rng.choice(VALUES))] * rng.choice([1, 40])
        elif way == "fewer":
            del cells[j]
        elif way == "row":
            lines.insert(k, rng.choice(["", '"', ",,,,", "\0\0\0", '"' * 9, "x" * 200_000]))
        lines[k] = ",".join(cells)
        if way == "no row" and len(lines) > 1:
            del lines[k]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")


def damage_npz(path, rng):
    """Other arrays, other keys, or a header that says more than there is."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    key = rng.choice(list(arrays))
    array = arrays[key]
    ways = {
        "float": lambda: array.astype(float, copy=False) if array.dtype.kind != "U" else array[:1],
        "nan": lambda: np.full(array.shape, rng.choice([math.nan, math.inf, -1.0, 2.0**63])),
        "large": lambda: np.full(array.shape, rng.choice([2**63, 2**64 - 1]), np.uint64),
        "negative": lambda: np.full(array.shape, -1),
        "fewer": lambda: array[: rng.choice([0, 1, len(array) - 1])],
        "flat": lambda: array.ravel(),
        "deeper": lambda: array[None],
        "text": lambda: np.array(["text"] * len(array)),
        "object": lambda: np.array([{}] * len(array), object),
        "number": lambda: np.array(7),
        "empty": lambda: np.zeros((0, 3)),
        "thin": lambda: array[..., :0],
        "record": lambda: np.zeros(len(array), [("a", "u1"), ("b", "f4")]),
        "complex": lambda: np.ones(array.shape, complex),
        "time": lambda: np.zeros(array.shape, "M8[s]"),
    }
    way = rng.choice([*ways, "key", "drop", "header", "header"])
    if way in ways:
        arrays[key] = ways[way]()
    elif way == "key":
        arrays[rng.choice(["new", "labels", "split", "images", "x_train", "../x"])] = array
    elif way == "drop":
        del arrays[key]
    np.savez(path, **arrays)
    if way == "header":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(list(members))
        shapes = [(2**40,), (2**62, 2**62), (-1, 4), (0,), (10**30,), (8, 16, 16, 3000), "x"]
        about = {"descr": rng.choice(["|u1", "<i8", "<U9999", "|O", "<f8"])}
        about |= {"fortran_order": rng.random() < 0.2, "shape": rng.choice(shapes)}
        text = (repr(about) if rng.random() < 0.9 else "(" * 500).encode()
        header = b"\x93NUMPY\1\0" + (len(text)).to_bytes(2, "little") + text
        members[name] = header + members[name][128:]
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)


MEMBERS = ["../x.png", "/etc/x.png", "a\\b.png", "a/", ".png", "a/\ud800.png", "\x1b[2J/1.png"]
MEMBERS += ["train/a/0.png", "test/b/1.png", "x" * 300 + ".png", "labels.csv", "a/0.png", "a/0.png"]
MEMBERS += ["a/0.png/1.png", "__MACOSX/0.png", "video.mp4", "a/b/c/d/e/f/g.png", "e\u0301/0.png"]


def damage_zip(path, rng):
    """Other names, sizes and contents of the files in it."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(rng.choice([1, 2, 5])):
        k = rng.randrange(len(members))
        name, data = members[k]
        other = [rng.choice(MEMBERS), data], [name, damage_bytes(data, rng)], [name, b""]
        members[k] = rng.choice([*other, [rng.choice(MEMBERS), bytes(3_000_000)]])
    with zipfile.ZipFile(path, "w", rng.choice([0, 8, 12, 14])) as archive:
        for name, data in members:
            archive.writestr(name.encode("utf-8", "replace").decode(), data)
    data = path.read_bytes()
    start = data.find(b"PK\1\2")  # the list of files at the end
    if rng.random() < 0.5 and start > 0:
        path.write_bytes(data[:start] + damage_bytes(data[start:], rng))


def damage_tar(path, rng):
    """Other names, types and sizes of the files in it."""
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member)) for member in archive]
        members = [(member, file.read() if file else b"") for member, file in members]
    for _ in range(rng.choice([1, 2, 5])):
        member, data = rng.choice(members)
        way = rng.choice(["name", "type", "size", "link", "time"])
        if way == "name":
            member.name = rng.choice(MEMBERS)
        elif way == "type":
            member.type = rng.choice([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"S", b"Z"])
        elif way == "size":
            member.size = rng.choice([0, 1, len(data) // 2])
        elif way == "link":
            member.type, member.linkname = b"2", rng.choice([*MEMBERS, member.name, "/dev/zero"])
        elif way == "time":
            member.mtime = rng.choice([-1, 2**40, 0.5])
    mode = "w:gz" if path.suffix == ".tgz" else "w"
    layout = rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    with tarfile.open(path, mode, format=layout, errors="surrogateescape") as archive:
        for member, data in members:
            with contextlib.suppress(ValueError, OSError):  # not every value can be written
                archive.addfile(member, io.BytesIO(data))


def damage_checkpoint(path, rng):
    checkpoint = torch.load(path, weights_only=True)
    for _ in range(rng.choice([1, 1, 2])):
        checkpoint = damage_tree(checkpoint, rng)
        if not isinstance(checkpoint, dict):
            break
    with contextlib.suppress(RuntimeError, OverflowError):  # not every value can be written
        torch.save(checkpoint, path)


def damage_png(path, rng):
    """Other sizes, depths and kinds of chunks, with the right checksums."""
    data = bytearray(path.read_bytes())
    places = []
    place = 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        places.append((place, length))
        place += length + 12
    place, length = rng.choice(places)
    if rng.random() < 0.2:
        data[place + 4 : place + 8] = rng.choice([b"tEXt", b"iCCP", b"eXIf", b"acTL", b"PLTE"])
    elif length:
        data[place + 8 + rng.randrange(length)] = rng.randrange(256)
    body = bytes(data[place + 4 : place + 8 + length])
    data[place + 8 + length : place + 12 + length] = zlib.crc32(body).to_bytes(4, "big")
    path.write_bytes(data)


BY_SUFFIX = {
    ".csv": damage_csv,
    ".json": damage_json,
    ".jsonl": damage_json,
    ".npz": damage_npz,
    ".png": damage_png,
    ".pt": damage_checkpoint,
    ".tar": damage_tar,
    ".tgz": damage_tar,
    ".zip": damage_zip,
}


def damage(path, rng):
    """Damage a file. Returns in words how."""
    structural = BY_SUFFIX.get(path.suffix)
    if structural and rng.random() < 0.5:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are there twice
            structural(path, rng)
        return structural.__name__
    path.write_bytes(damage_bytes(path.read_bytes(), rng))
    return "damage_bytes"


# ------------------------------------------------------------------------------------- programs


def load(path, rng):
    datasets.default_size(path)
    data = datasets.load(path, SIDE, rng.choice(["train", "test", "all"]))
    assert data.images.shape[2:] == (SIDE, SIDE) and data.images.dtype == torch.uint8
    assert data.labels is None or int(data.labels.max()) < len(data.classes)


def load_labels(path, rng):
    load(path.parent, rng)


def load_photos(path, rng):
    load(Path("photos"), rng)


def load_prepared(path, rng):
    datasets.list_data()
    try:
        data = datasets.load("photos", SIDE)
    except InputError as error:
        raise AssertionError(f"not prepared again: {error}") from error
    assert data.images.shape == (8, 3, SIDE, SIDE) and data.classes == ["a", "b"]
    assert sorted(data.labels.tolist()) == [0, 0, 0, 0, 1, 1, 1, 1]


def resume(path, rng):
    dcgan.main(["--resume", "run", "--steps", "3", "--device", "cpu"])


def make_samples(path, rng):
    sample.main(["run", "--count", "3", "--to", "samples.png", "--device", "cpu"])


def compare(path, rng):
    metrics.main(["real.npz", "fake.npz", "--device", "cpu"])


def make_report(path, rng):
    report.main(["run"])


RUN_FILES = ("run/log.csv", "run/weights.csv")
# kind: [(files, programs that read them), ...]
KINDS = {
    "zip": [(("photos.zip",), (load,))],
    "tar": [(("photos.tar", "photos.tgz"), (load,))],
    "npz": [(("images.npz", "parts.npz"), (load,)), (("real.npz", "fake.npz"), (compare,))],
    "csv": [(("labels/labels.csv",), (load_labels,)), (RUN_FILES, (resume, make_report))],
    "json": [
        (("metadata/metadata.jsonl", "dataset/dataset.json"), (load_labels,)),
        (("run/args.json",), (resume, make_report)),
        (("run/metrics.json",), (make_report,)),
    ],
    "checkpoint": [(("run/last.pt",), (resume, make_samples, make_report))],
    "cache": [(("data/*.npy", "data/*.json"), (load_prepared,))],
    "image": [(tuple(f"photos/?/{i}.*" for i in range(8)), (load_photos,))],
}
SLOW = (make_report,)  # a second or two each


# ------------------------------------------------------------------------------------- one damage


def peak_memory():
    """Of this process so far, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def interrupt(*_):
    raise Hang


def set_timers(seconds):
    """Raise Hang after so many seconds of computing, or five times as many of waiting; 0: never."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, interrupt)
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 5 * seconds)


def one_damage(kind, seed, originals, quick=False):
    """Damage a copy of one file, and let a program read it.

    Returns "works", "one line", or what is wrong. quick: leave out the programs that are slow.
    """
    rng = random.Random(f"{kind} {seed}")
    choices = []
    for files, programs in KINDS[kind]:
        programs = [program for program in programs if not quick or program not in SLOW]
        choices += [(files, programs)] if programs else []
    files, programs = rng.choice(choices)
    program = rng.choice(programs)
    folder = originals.with_name("work")
    shutil.rmtree(folder)
    shutil.copytree(originals, folder)  # the same times, so that what is prepared is up to date
    path = rng.choice(sorted(folder.glob(rng.choice(files))))
    way = damage(path, rng)
    with inside(folder):
        outcome = watch(lambda: program(path.relative_to(folder), rng))
    if outcome in GOOD and list(folder.rglob("*.tmp")):
        outcome = "leaves a half-written file"
    if outcome in GOOD:
        return outcome
    name = path.relative_to(folder)
    return f"--kinds {kind} --seed {seed}: {way} of {name}, {program.__name__}: {outcome}"


def watch(call):
    """Call a program. Returns "works", "one line", or what is wrong."""
    said = io.StringIO()
    memory = peak_memory()
    outcome = "works"
    set_timers(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            call()
    except (InputError, OSError, RuntimeError, MemoryError, OverflowError) as error:
        message = explanation(error)
        outcome = "one line"
        if message is None:
            outcome = last_frame(error)
        elif len(message.splitlines()) != 1:
            outcome = f"not one line: {message!r}"
    except SystemExit as leaving:
        outcome = "one line" if leaving.code == 2 else f"exit code {leaving.code}"
    except Hang as error:
        outcome = f"more than {SECONDS} seconds: {last_frame(error)}"
    except Exception as error:
        outcome = last_frame(error)
    finally:
        set_timers(0)
    lines = [line for line in said.getvalue().split("\n") if line.strip() and "\r" not in line]
    if len(lines) > LINES or "Traceback" in said.getvalue():
        outcome = f"{len(lines)} lines on stderr, the first: {lines[0]!r} ({outcome})"
    grown = peak_memory() - memory
    if grown > 2**30:
        outcome = f"{grown / 2**30:.1f} GiB of memory ({outcome})"
    return outcome


def last_frame(error):
    """The kind and the place of an exception, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).parent == Path(dcgan.__file__).parent]
    frame = (ours or frames)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
    return f"{type(error).__name__}: {str(error)[:150]!r} at {place}"


# ----------------------------------------------------------------------------------------- main


@contextlib.contextmanager
def prepared_originals():
    """The folder of originals, next to the folder "work".

    Meanwhile, a run makes no plots at its end: report.py is a program of its own here.
    """
    tool = training.tool
    training.tool = lambda name: None
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary).resolve() / "work"
            work.mkdir()
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                make_originals(work)
            yield Path(shutil.copytree(work, work.with_name("originals")))
    finally:
        training.tool = tool


def main(argv=None):
    parser = new_parser("fuzz.py", __doc__)
    add = parser.add_argument
    add("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="[all]")
    add("--count", type=number(int, 1), default=500, help="damages of each kind [500]")
    add("--seed", type=number(int, 0), default=0, help="of the first damage [0]")
    args = parser.parse_args(argv)
    failures = 0
    with prepared_originals() as originals:
        for kind in args.kinds:
            start = time.perf_counter()
            outcomes = []
            for seed in range(args.seed, args.seed + args.count):
                outcomes.append(one_damage(kind, seed, originals))
                if outcomes[-1] not in GOOD:
                    print(outcomes[-1], flush=True)
            good = [outcomes.count(outcome) for outcome in GOOD]
            failures += args.count - sum(good)
            words = f"{good[0]} work, {good[1]} end with one line, {args.count - sum(good)} fail"
            seconds = time.perf_counter() - start
            print(f"{kind:10s} {args.count} damages: {words}; {seconds:.0f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    run_program(main)
