"""sources.py: the ground floor that every file of the collection stands on.

- Programs: `InputError` and `run_program` turn bad input into one line and exit code 2.
- Files: `write_atomic` never leaves half a file, and `locked` holds a lock between processes.
- Sources: `path_source` turns a folder, a zip or an .npz of your own into a `Source`: the images,
  still packed, with their labels and splits.
- Preparation: `prepare` decodes a `Source`, crops and resizes its images, and writes one array.
  `datasets.load` calls it and keeps the result.

This file imports nothing else of the collection.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import os
import signal
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

# torchrun starts several processes that train one model, and describes them in these variables.
_TORCHRUN = os.environ if "LOCAL_RANK" in os.environ else {}
RANK = int(_TORCHRUN.get("RANK", 0))
WORLD = int(_TORCHRUN.get("WORLD_SIZE", 1))
START = f"torchrun --nproc-per-node {WORLD}" if WORLD > 1 else "python"  # how to start a script


# ------------------------------------------------------------------------------------ programs


class InputError(Exception):
    """Bad input. The message is one line that says what is wrong and what to do about it.

    Programs print it and exit with code 2.
    """


def short(error):
    """The first line of an exception, at most 200 characters, for one-line messages."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def out_of_memory(error):
    """Whether a RuntimeError says that memory ran out (an "illegal memory access" does not)."""
    phrases = ("out of memory", "allocate memory", "not enough memory")
    return any(phrase in str(error) for phrase in phrases)


def lost_a_process(error):
    """Whether an exception comes from talking to another process that has ended."""
    if WORLD == 1:
        return False
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def explanation(error):
    """One line that tells the user about an exception, or None for a mistake in the program."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, NotImplementedError) and "MPS" in str(error):
        return f"{short(error)} Set PYTORCH_ENABLE_MPS_FALLBACK=1, or use --device cpu"
    if isinstance(error, RuntimeError) and not out_of_memory(error):
        return None
    return short(error)


def run_program(main):
    """Call main() and exit as a command-line program should.

    main() returns None, or an exit code such as 128 + the signal that stopped it. Bad input, a full
    disk and too little memory print one line on stderr and exit with code 2. A mistake in the
    program keeps its traceback. Of several processes, only the first prints to stdout.
    """
    prog = Path(sys.argv[0]).name
    # Runnable files set SIG_DFL, so that Ctrl-C during the slow imports prints no traceback.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console may lack a letter of some file's name
            stream.reconfigure(errors="backslashreplace")
    if RANK > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough: drop what is still in the buffer, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:  # the training loop handles Ctrl-C itself
        print(f"{prog}: interrupted", file=sys.stderr)
        code = 130
    except (InputError, OSError, RuntimeError, MemoryError) as error:
        if lost_a_process(error):
            error = InputError(f"another of the {WORLD} processes ended")
        message = explanation(error)
        if message is None:
            raise
        if RANK == 0 or not isinstance(error, InputError):  # all processes get the same bad input
            print(f"{prog}: error: {message}", file=sys.stderr)
        code = 2
    if code or WORLD > 1:
        leave(code or 0)


def number(kind, low, below=math.inf):
    """A type for argparse: an int or a float with low <= value < below."""
    words = f"a {'whole ' if kind is int else ''}number of at least {low}"
    if below < math.inf:
        words += f" and below {below}"

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value < below:
            raise argparse.ArgumentTypeError(f"'{text}' is not {words}")
        return value

    return convert


def new_parser(prog, doc):
    """An ArgumentParser with one-line errors. The first paragraph of `doc` stands above the flags
    in --help, the rest below."""
    title, _, rest = doc.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog, None, title, rest, formatter_class=layout)
    parser.allow_abbrev = False
    parser.error = lambda message: parser.exit(2, f"{prog}: error: {message} (see --help)\n")
    return parser


def leave(code):
    """End the program.

    One of several processes ends at once: during an orderly exit, gloo's threads may still call
    into Python or wait for a process that is gone, and abort.
    """
    if WORLD > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# --------------------------------------------------------------------------------------- files


def write_atomic(path, write):
    """Call write(temporary path), then rename the result to `path`.

    Readers see either the old file or the whole new one. If `write` fails, no file is left behind.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def write_text(path, text):
    """Write a UTF-8 text file whole or not at all."""
    write_atomic(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def write_bytes(path, data):
    """Write a file whole or not at all."""
    write_atomic(path, lambda temporary: Path(temporary).write_bytes(data))


@contextlib.contextmanager
def locked(path, wait=None, busy="another process is using it"):
    """Hold the file `path` as a lock. The system releases it even after kill -9.

    If another process holds the lock, print the message `wait` once and wait; without `wait`, raise
    InputError(busy).
    """
    with open(path, "a+b") as file:
        if not try_lock(file):
            if wait is None:
                raise InputError(busy)
            print(wait, file=sys.stderr)
            while not try_lock(file):
                time.sleep(0.5)
        yield


def try_lock(file):
    """Lock an open file. Returns False if another process holds the lock."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # any other error: a file system without locks
        return False
    return True


def new_directory(out, base, left_by_a_kill=()):
    """Make and return a run directory: `out`, or if that is None `base`-n with the next free n.

    InputError if `out` holds more than the files that a run leaves when it is killed at once.
    """
    if out is not None:
        path = Path(out)
        if path.exists():
            files = list(path.iterdir()) if path.is_dir() else [path]
            names = {file.name for file in files if file.suffix != ".tmp"}
            if names - set(left_by_a_kill):
                resume = f"use --resume {path}, or " if (path / "last.pt").exists() else ""
                raise InputError(f"'{path}' exists and is not empty: {resume}give another --out")
        path.mkdir(parents=True, exist_ok=True)
        return path
    for n in itertools.count(1):
        path = Path(f"{base}-{n}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path


class Log:
    """A CSV file with a column `step`. If it exists, rows after `step` go: they are made again."""

    def __init__(self, path, step):
        self.path = path
        rows = read_log(path, step)
        self.columns = list(rows[0]) if rows else []
        self.rewrite(rows)

    def write(self, rows):
        """Append rows, dicts of the same keys. A key that is new becomes a new column."""
        if not rows:
            return
        new = [name for name in rows[0] if name not in self.columns]
        if new:
            self.columns += new
            self.rewrite(read_log(self.path))
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerows(rows)

    def rewrite(self, rows):
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if self.columns:
            writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


def read_log(path, last=math.inf):
    """The rows of a CSV file up to step `last`, as dicts of strings.

    A damaged row is left out, and one line says so: it must not cost a good checkpoint.
    """
    rows = []
    damaged = 0
    if not path.exists():
        return rows
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "?")
    for row in csv.DictReader(io.StringIO(text)):
        step = row.get("step") or ""
        if None in row or None in row.values() or not (step.isascii() and step.isdecimal()):
            damaged += 1
        elif int(step) <= last:
            rows.append(row)
    if damaged:
        print(f"{path}: {damaged} damaged rows are left out", file=sys.stderr)
    return rows


# ------------------------------------------------------------------------------------- sources

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_FILE = 200 * 2**20  # bytes of one packed image; a larger one is skipped (zip bombs)

# The folder next to train/ that holds the test images. The first name that exists is used.
TEST_FOLDERS = ("test", "val", "valid", "validation")


class Source(NamedTuple):
    """Images that are not decoded yet."""

    names: list[str]  # of each image, for messages
    read: Callable  # index -> PIL image
    labels: list[int] | None  # of each image, an index into `classes`
    classes: list[str]
    split: list[int] | None  # of each image, 0 train or 1 test
    unused: str = ""  # a line about images that are there but are not used


def path_source(path):
    """A folder, zip or .npz -> (cache key, stamp, open_source).

    The key names the prepared files, the stamp changes when the data do, and open_source() returns
    the Source. Raises InputError if `path` is something else.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_image(file.relative_to(path)))
        files = [file for file in files if file.is_file()]
        names = [file.relative_to(path).as_posix() for file in files]
        stats = []
        for name, file in zip(names, files, strict=True):
            status = file.stat()
            stats.append((name, status.st_size, status.st_mtime_ns))
        stamp = hashlib.sha256(json.dumps(stats).encode()).hexdigest()

        def open_source():
            return from_files(names, lambda i: Image.open(files[i]), path)

    elif zipfile.is_zipfile(path) or path.suffix.lower() in (".zip", ".npz"):
        status = path.stat()
        stamp = f"{status.st_size}-{status.st_mtime_ns}"

        def open_source():
            return npz_source(path) if path.suffix.lower() == ".npz" else zip_source(path)

    else:
        raise InputError(f"'{path}' is no folder, zip or .npz file")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    return f"{title(path)}-{digest[:8]}", stamp, open_source


def title(path):
    """The name of a data set at this path: the folder's name, or the file's without its suffix."""
    return path.resolve().name if path.is_dir() else path.stem


def is_image(path):
    """Whether a relative path looks like an image that is not hidden. Nothing is opened."""
    path = Path(path)
    hidden = any(name.startswith(".") or name == "__MACOSX" for name in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES


def from_files(names, read, path):
    """File names -> Source. Splits and classes are read off the folders.

    names: with "/" between folders; read(i) opens names[i]; path: where they lie, for messages.
    Raises InputError if there are no images.
    """
    if not names:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"no images in '{path}' (looked for {suffixes}, sub-folders too)")
    places = without_common_folder([name.split("/") for name in names])
    split = None
    unused = ""
    folders = {place[0] for place in places if len(place) > 1}
    test_folders = [name for name in TEST_FOLDERS if name in folders]
    if "train" in folders and test_folders:
        test = test_folders[0]
        used = []
        for i, place in enumerate(places):
            if len(place) > 1 and place[0] in ("train", test):
                used.append(i)
        if len(used) < len(names):
            count = len(names) - len(used)
            unused = f"{path}: {count} images outside train/ and {test}/ are not used"
        read_any = read
        names = [names[i] for i in used]
        split = [int(places[i][0] != "train") for i in used]
        places = [places[i][1:] for i in used]

        def read(i):
            return read_any(used[i])

    labels = None
    classes = []
    if all(len(place) > 1 for place in places):  # an image outside all folders has no class
        classes = sorted({place[0] for place in places})
        labels = [classes.index(place[0]) for place in places]
    return Source(names, read, labels, classes, split, unused)


def without_common_folder(places):
    """Drop the folders that hold everything. places: [["photos", "cat", "1.png"], ...]."""
    while len({place[0] for place in places}) == 1 and all(len(place) > 1 for place in places):
        places = [place[1:] for place in places]
    return places


def zip_source(path):
    """A zip of images -> Source. Files are read in memory and never unpacked to disk, so no name in
    the archive can lead out of a folder."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"'{path}' is not a readable zip file ({error})") from None
    members = [member for member in archive.infolist() if is_image(member.filename)]
    members.sort(key=lambda member: member.filename)

    def read(i):
        if members[i].file_size > MAX_FILE:
            raise ValueError(f"{members[i].file_size} bytes unpacked")
        return Image.open(io.BytesIO(archive.read(members[i])))

    return from_files([member.filename for member in members], read, path)


def npz_source(path):
    """An .npz file -> Source. Its arrays: `images` uint8 (N, H, W[, C]) or (N, C, H, W), and, where
    there are any, `labels` (N,), `classes` (names) and `split` (N,) (0 train, 1 test)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # zipfile, zlib, ValueError, EOFError ... all mean the same
        raise InputError(f"'{path}' is not a readable .npz file ({error})") from None
    images = npz_images(arrays, path)
    labels = npz_numbers(arrays, "labels", len(images), path)
    split = npz_numbers(arrays, "split", len(images), path)
    classes = [str(name) for name in np.atleast_1d(arrays.get("classes", []))]
    if labels is not None:
        largest = max(labels)
        if not classes:
            classes = [str(c) for c in range(largest + 1)]
        if largest >= len(classes):
            count = len(classes)
            raise InputError(
                f"'labels' in '{path}' go up to {largest}, but there are {count} classes"
            )
    return array_source(images, labels, classes, split)


def npz_images(arrays, path):
    """The array `images` of an .npz file, checked: uint8 (N, H, W) or (N, H, W, C)."""
    if "images" not in arrays:
        keys = ", ".join(arrays) or "nothing"
        raise InputError(f"'{path}' has no array 'images' (it has: {keys})")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        actual = f"{images.dtype} {images.shape}"
        raise InputError(f"'images' in '{path}' must be uint8 (N, H, W[, C]), not {actual}")
    if images.ndim == 4:
        if images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
            images = images.transpose(0, 2, 3, 1)
        if images.shape[-1] not in (1, 3):
            raise InputError(
                f"'images' in '{path}' must have 1 or 3 channels, not shape {images.shape}"
            )
    return images


def npz_numbers(arrays, key, count, path):
    """`labels` or `split` of an .npz file as a list of `count` ints, or None where it is absent."""
    if key not in arrays:
        return None
    values = arrays[key]
    if values.shape != (count,) or values.dtype.kind not in "iu" or values.min() < 0:
        actual = f"{values.dtype} {values.shape}"
        raise InputError(
            f"'{key}' in '{path}' must be {count} whole numbers from 0 up, not {actual}"
        )
    return values.tolist()


def array_source(images, labels, classes, split):
    """Images that are decoded already -> Source. images: uint8 (N, H, W) or (N, H, W, C)."""
    if images.shape[-1] == 1:
        images = images[..., 0]
    names = [f"image {i}" for i in range(len(images))]
    return Source(names, lambda i: Image.fromarray(images[i]), labels, classes, split)


# --------------------------------------------------------------------------------- preparation


def prepare(source, size, path, key):
    """Decode, crop and resize every image of a Source into the .npy file `path`.

    Returns what the .json says about it. An image that cannot be read is skipped and named; if more
    than 1 % cannot be read, that is an InputError.
    """
    if source.unused:
        print(source.unused, file=sys.stderr)
    info = {}

    def write(temporary):
        with open(temporary, "wb+") as file:
            info.update(write_array(file, source, size, key))

    with warnings.catch_warnings():  # Pillow warns about odd files that it can read all the same
        warnings.simplefilter("ignore")
        write_atomic(path, write)
    skipped = info["skipped"]
    if skipped:
        count = f"{len(skipped)} of {len(source.names)}"
        print(f"{key}: skipped {count} unreadable images; the first: {skipped[0]}", file=sys.stderr)
    return info


def write_array(file, source, size, key):
    """Write an .npy file of uint8 (N, C, size, size). Returns the dict for the .json."""
    total = len(source.names)
    write_header(file, (total, 3, size, size))
    kept, skipped, natural_sizes, is_gray = write_rows(file, source, size, key)
    if len(skipped) > total / 100 or not kept:
        examples = "; ".join(skipped[:5])
        if len(skipped) > 5:
            examples += "; ..."
        raise InputError(
            f"{len(skipped)} of {total} images cannot be read, which is more than 1 % "
            f"(delete or repair them): {examples}"
        )
    shape = (len(kept), 3, size, size)
    if is_gray:
        shape = (len(kept), 1, size, size)
        keep_one_channel(file, len(kept), size)
    file.seek(0)
    write_header(file, shape)
    file.truncate(file.tell() + math.prod(shape))

    labels = None
    if source.labels is not None and len(source.classes) > 1:  # a single class says nothing
        labels = [source.labels[i] for i in kept]
    split = None if source.split is None else [source.split[i] for i in kept]
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    digest.update(json.dumps([labels, shape, split]).encode())
    return {
        "shape": shape,
        "labels": labels,
        "classes": [] if labels is None else source.classes,
        "split": split,
        "fingerprint": digest.hexdigest()[:16],
        "skipped": skipped,
        "note": how_prepared(natural_sizes, size),
    }


def write_header(file, shape):
    """Write the .npy header for uint8 `shape`. It is equally long for any smaller shape."""
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)


def write_rows(file, source, size, key):
    """Append every image as uint8 (3, size, size), so that memory does not grow with the set.

    Returns (indices of the images written, a line about each that cannot be read, the set of sizes
    that the images had, whether all of them are gray).
    """
    kept = []
    skipped = []
    natural_sizes = set()
    is_gray = True
    total = len(source.names)

    def decode(i):
        try:
            image = source.read(i)
            natural_size = image.size
            gray = image.mode in ("1", "L", "I;16", "I")
            return square(image, size), natural_size, gray
        except Exception as error:  # Pillow raises many kinds, and each means the same
            return f"{source.names[i]}: {short(error)}", None, None

    def decode_eight(start):  # a task for each image would cost a few percent
        return [decode(i) for i in range(start, min(start + 8, total))]

    bar = tqdm(total=total, desc=f"preparing {key}", unit="img", disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, total, 1024):
            tasks = range(start, min(start + 1024, total), 8)
            results = [result for eight in pool.map(decode_eight, tasks) for result in eight]
            for i, (pixels, natural_size, gray) in enumerate(results, start):
                bar.update()
                if natural_size is None:
                    skipped.append(pixels)
                    continue
                kept.append(i)
                natural_sizes.add(natural_size)
                is_gray = is_gray and gray
                file.write(pixels.tobytes())
    return kept, skipped, natural_sizes, is_gray


def keep_one_channel(file, count, size):
    """Move the first channel of each image forward in the file, so that they lie one after another.

    The file ends with uint8 (count, 3, size, size).
    """
    values = size * size
    start = file.tell() - 3 * count * values
    for k in range(count):
        file.seek(start + 3 * k * values)
        channel = file.read(values)
        file.seek(start + k * values)
        file.write(channel)


def how_prepared(natural_sizes, size):
    """The note about a prepared set. natural_sizes: the sizes its images had."""
    if natural_sizes == {(28, 28)} and size == 32:
        return "28x28 padded to 32x32 with black"
    if natural_sizes == {(size, size)}:
        return f"{size}x{size} as they are"
    return f"cropped to the central square and resized to {size}x{size} (bicubic, antialiased)"


def square(image, size):
    """PIL image -> uint8 (3, size, size): upright (EXIF), RGB, central square, resized (bicubic,
    antialiased)."""
    if image.mode in ("I;16", "I;16B", "I"):  # 16-bit gray: Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")  # what shows through is white
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size == (28, 28) and size == 32:
        image = ImageOps.expand(image, 2)  # MNIST and its kin: padding keeps every pixel sharp
    elif image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
