"""sources.py: the ground floor that every file of the collection stands on.

- Programs: `InputError` and `run_program` turn bad input into one line and exit code 2.
- Files: `write_atomic` never leaves half a file, and `locked` holds a lock between processes.
- Sources: a `Source` is a set of images, still packed, with their labels and splits. `npz_source`
  makes one of an .npz of your own; folders.py makes one of a folder, zip or tar.
- Preparation: `prepare` decodes a `Source`, crops and resizes its images, and writes one array.
  `datasets.load` calls it and keeps the result.

This file imports nothing else of the collection.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
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


def printable(text, limit=200):
    """Text of one line for a terminal or a plot: control characters, invisible ones and what is not
    Unicode as escapes, and long text cut off."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def markdown(text):
    """Text of one line as Markdown that shows just this text: no HTML, link, emphasis or cell."""
    text = re.sub(r"[\\`*~$|\[\]]|\b_|_\b", r"\\\g<0>", printable(text, math.inf))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def out_of_memory(error):
    """Whether an exception says that memory ran out (an "illegal memory access" does not), or that
    something is too large for any memory."""
    phrases = ["out of memory", "allocate memory", "not enough memory", "negative dimension"]
    # torch.save, when its buffer cannot grow; threading
    phrases += ["unexpected pos", "can't start new thread"]
    phrases += ["Storage size calculation overflowed", "integer multiplication overflow"]
    return isinstance(error, (MemoryError, OverflowError)) or any(p in str(error) for p in phrases)


def lost_a_process(error):
    """Whether an exception comes from talking to another process that has ended."""
    return WORLD > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error))


def explanation(error):
    """One line that tells the user about an exception, or None for a mistake in the program."""
    if isinstance(error, (InputError, OSError)):
        return str(error) or short(error)
    if isinstance(error, NotImplementedError) and "MPS" in str(error):
        return f"{short(error)} Set PYTORCH_ENABLE_MPS_FALLBACK=1, or use --device cpu"
    advice = "take a smaller --batch, --size or --width, or a lower --latent-dim"
    return f"not enough memory ({short(error)}): {advice}" if out_of_memory(error) else None


def interrupt_again(problem):
    """sys.unraisablehook: Python drops a Ctrl-C that comes inside of a destructor or the like, with
    a traceback. It comes once more instead, a moment later."""
    if issubclass(problem.exc_type, KeyboardInterrupt) and os.name != "nt":
        main_thread = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, [main_thread, signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(problem)


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
        sys.unraisablehook = interrupt_again
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or (RANK > 0 and name == "stdout"):  # None: closed by `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # a console may lack a letter of some file's name
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough: drop what is still in the buffer, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:  # the training loop handles Ctrl-C itself
        print(f"{prog}: interrupted", file=sys.stderr)
        code = 130
    except (InputError, OSError, RuntimeError, MemoryError, OverflowError) as error:
        if lost_a_process(error):
            error = InputError(f"another of the {WORLD} processes ended")
        message = explanation(error)
        if message is None:
            raise
        if RANK == 0 or not isinstance(error, InputError):  # all processes get the same bad input
            print(f"{prog}: error: {printable(message, 2000)}", file=sys.stderr)
        code = 2
    if code or WORLD > 1:
        if main.__module__ == "__main__":  # another Ctrl-C ends it at once, without a traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # One of several processes ends at once: during an orderly exit, gloo's threads may still
        # call into Python or wait for a process that is gone, and abort.
        if WORLD > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
        sys.exit(code)


def number(kind, low, below=2**31):
    """A type for argparse: an int or a float with low <= value < below, written in plain digits.

    The usual bound keeps out what no machine can hold.
    """
    words = f"a {'whole ' if kind is int else ''}number of at least {low} and below {below}"

    def convert(text):
        plain = re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*(e[+-]?[0-9]+)?", text.lower())
        try:
            value = kind(text) if plain else math.nan
        except ValueError:  # 1.5 as a whole number, no digits at all, or thousands of them
            value = math.nan
        underflow = value == 0 and text.strip("+-.0")[:1].isdigit()  # 1e-400 is not 0
        if underflow or not low <= value < below:
            raise argparse.ArgumentTypeError(f"'{printable(text, 50)}' is not {words}")
        return value

    return convert


def filled(text):
    """A type for argparse: a path or a name. An empty one is an unset variable of the shell."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("is empty: is a variable of your shell unset?")
    return os.path.expanduser(text) if text.startswith("~/") else text  # --data=~/photos


def check_output(path):
    """Before the slow work: InputError or OSError unless a file can be written at this path.

    Folders that are missing are made later.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"'{path}' is a folder: name a file")
    if path.exists() and not path.is_file():
        raise InputError(f"'{path}' is not a regular file: give another path")
    folder = next(parent for parent in path.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise InputError(f"'{path}' cannot be written: '{folder}' is a file")
    trial = folder / f"{path.name}.{os.getpid()}.tmp"  # as write_atomic will do
    with writing(path):
        open(trial, "xb").close()
        trial.unlink()


class HelpFormatter(argparse.HelpFormatter):
    """At most 80 columns, N for numbers, and the default of each flag in brackets."""

    def __init__(self, prog):
        super().__init__(prog, width=80)

    def _fill_text(self, text, width, indent):
        lines = text.splitlines()
        return "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in lines)

    def _split_lines(self, text, width):
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _get_default_metavar_for_optional(self, action):
        return action.dest.upper() if action.type in (None, str) else "N"

    def _get_help_string(self, action):
        if action.nargs == 0 or action.default is None or "[" in action.help:
            return action.help
        return f"{action.help} [%(default)s]"


def new_parser(prog, doc):
    """An ArgumentParser with one-line errors.

    doc: the docstring of the program. Its first paragraph stands at the top of --help, its example
    commands at the end. parser.groups: headings of --help; those without flags are not shown.
    """
    title, _, rest = doc.partition("\n\n")
    examples = ["examples:"]
    for command, remark in re.findall("^    (python .*?)(?: +# (.*))?$", rest, re.MULTILINE):
        examples += [f"  # {remark}", f"  {command}"] if remark else [f"  {command}"]
    examples.append(f"\nMore at the top of {prog}.")
    parser = argparse.ArgumentParser(prog, "%(prog)s [flags]", title, "\n".join(examples))
    parser.formatter_class = HelpFormatter
    parser.allow_abbrev = False
    titles = ("data", "model", "training", "run", "evaluation")
    parser.groups = {title: parser.add_argument_group(title) for title in titles}
    parser.register("type", None, filled)  # for all flags without a type of their own

    def error(message):
        parser.exit(2, f"{prog}: error: {printable(message, 400)} (see --help)\n")

    parser.error = error
    return parser


# --------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def writing(path):
    """Turn an OSError into one that names this file. That of a full disk names none."""
    try:
        yield
    except OSError as error:
        raise OSError(f"'{path}' cannot be written ({error.strerror or short(error)})") from None


def write_atomic(path, write):
    """Call write(temporary path), then rename the result to `path`.

    Readers see either the old file or the whole new one. If `write` fails, no file is left behind.
    After kill -9, see remove_half_written.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with writing(path), contextlib.ExitStack() as stack:
            if os.name != "nt":  # there, nobody can remove an open file
                try_lock(stack.enter_context(open(temporary, "wb")))
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def remove_half_written(folder):
    """Remove what kill -9 has left of write_atomic in a folder and below: files <name>.<pid>.tmp
    that no living process holds."""
    for path in Path(folder).glob("**/*.[0-9]*.tmp"):
        with contextlib.suppress(OSError):
            with open(path, "rb+") as file:
                abandoned = try_lock(file)
            if abandoned:
                path.unlink()


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
        check_new_directory(out, left_by_a_kill)
        path = Path(out)
        path.mkdir(parents=True, exist_ok=True)
        return path
    Path(base).parent.mkdir(parents=True, exist_ok=True)
    for n in itertools.count(1):
        path = Path(f"{base}-{n}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def check_new_directory(out, left_by_a_kill=()):
    """Before the slow work: InputError or OSError unless new_directory can make and fill `out`."""
    path = Path(out)
    if path.exists():
        files = list(path.iterdir()) if path.is_dir() else [path]
        names = {file.name for file in files if file.suffix != ".tmp"}
        if names - set(left_by_a_kill):
            resume = f"use --resume {path}, or " if (path / "last.pt").exists() else ""
            raise InputError(f"'{path}' exists and is not empty: {resume}give another --out")
    check_output(path / "args.json")


class Log:
    """A CSV file with a column `step`. If it exists, rows after `step` go: they are made again.

    Something else in its place, such as a folder, is renamed: it must not cost a good checkpoint.
    """

    def __init__(self, path, step):
        self.path = path
        if path.exists() and not path.is_file():
            path.rename(f"{path}.old")
            print(f"{printable(path)} is no file: it is now {path.name}.old", file=sys.stderr)
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
        with writing(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
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
    rows, damaged = parse_log(path)
    if damaged:
        print(f"{printable(path)}: {damaged} damaged rows are left out", file=sys.stderr)
    return [row for row in rows if int(row["step"]) <= last]


def parse_log(path):
    """The rows of a CSV file in the order of their steps, and how many were damaged.

    A row is damaged if its cells are not those of the first line, if one of them does not hold
    numbers, or if it comes a second time. So is a last line that does not end: its number may have
    been cut in two.
    """
    rows = {}
    if not path.is_file():
        return [], 0
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    *lines, cut = text.split("\n")  # not csv: a lone quotation mark would swallow what follows
    damaged = int(cut != "")
    names = lines[0].split(",") if lines else []
    # a damaged name must come back as it was written, so it gets no quotation marks
    columns = [re.sub(r"[^\w.-]", "_", name.strip()) for name in names]
    for line in lines[1:]:
        cells = line.split(",")
        row = dict(zip(columns, cells, strict=False))
        key = (row.get("step"), row.get("network"), row.get("layer"))
        if key in rows or len(cells) != len(columns) or not plausible(row):
            damaged += 1
        else:
            rows[key] = row
    return sorted(rows.values(), key=lambda row: int(row["step"])), damaged


def plausible(row):
    """Whether a row has a step, and numbers (or nothing) in all cells but names."""
    step = row.get("step", "")
    if not (step.isascii() and step.isdecimal() and len(step) < 16):
        return False
    cells = [cell for name, cell in row.items() if name not in ("network", "layer")]
    try:
        values = [float(word) for cell in cells for word in cell.split()]
    except ValueError:
        return False
    return not any(abs(value) > 1e39 for value in values)  # no float32 is larger


# ------------------------------------------------------------------------------------- sources

MAX_CLASSES = 100_000  # in arrays
LAYOUT = "3"  # another one where the same files get other labels: all is prepared again


class Source(NamedTuple):
    """Images that are not decoded yet."""

    names: list[str]  # of each image, for messages
    read: Callable  # index -> PIL image
    labels: list[int] | None  # of each image, an index into `classes`
    classes: list[str]
    split: list[int] | None  # of each image, 0 train or 1 test
    unused: str = ""  # lines about what is not used, and where the labels come from
    unlabelled: str = ""  # the first training image without a class


def file_stamp(path):
    """Changes when the file does."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def title(path):
    """The name of a data set at this path: the folder's name, or the file's without its suffix."""
    return printable(path.resolve().name if path.is_dir() else path.stem.removesuffix(".tar"))


def counted(things, noun):
    """1 file, 2 files"""
    return f"{len(things)} {noun}" if len(things) == 1 else f"{len(things)} {noun}s"


def left_out(names, noun, where="", rest="not used"):
    """A line about some names: "2 images outside train/ are not used (the first: 'a.png')"."""
    verb = "are" if len(names) > 1 else "is"
    return f"{counted(names, noun)}{where} {verb} {rest} (the first: '{printable(names[0])}')"


def unreadable(path, kind, error):
    """The InputError for an archive that its module cannot read."""
    words = printable(short(error))
    return InputError(f"'{printable(path)}' is not a readable {kind} file ({words})")


def labelled_source(names, read, path, keys, splits, notes, classes=None):
    """Decide which images are used, and with which labels -> Source.

    keys: of each image its class, a str or an int, or None; splits: of each image (0 train, from 1
    up held out; the name of that part), or None if it is not used; classes: the names of all
    classes, if the keys are indices into them.

    A class is what a training image has. Where most of these have one, the others are not used.
    """
    train = [i for i, split in enumerate(splits) if split and split[0] == 0] or range(len(names))
    odd = [names[i] for i in train if keys[i] is None]
    order = sorted({keys[i] for i in train} - {None})
    if len(order) > 1 and 2 * len(odd) >= len(train):
        notes.append(f"no labels: {left_out(odd, 'image', rest='without a class')}")
        order = []
    if order and classes is not None:
        order = range(len(classes))
    index = {key: k for k, key in enumerate(order)} if len(order) > 1 else None
    fits = [not index or key in index for key in keys]
    ranks = {split[0] for split, fit in zip(splits, fits, strict=True) if split and fit} - {0}
    ranks = [0, *sorted(ranks)[:1]]  # training, and the first held-out part that is any good
    parts = dict(split for split in splits if split)
    parts = " and ".join(parts[rank] for rank in ranks if parts.get(rank))
    used = []
    passed = {}  # where: names
    for i, (split, fit) in enumerate(zip(splits, fits, strict=True)):
        if split and fit and split[0] in ranks:
            used.append(i)
            continue
        where = f" outside {parts}"
        if split and not fit:
            where = " of no class that is trained on" if split[0] else " without a class"
        passed.setdefault(where, []).append(names[i])
    notes += [left_out(files, "image", where) for where, files in passed.items()]
    class_names = {}
    for key in index or ():
        name = printable(key if classes is None else classes[key], math.inf)
        while name in class_names:
            name = f"{name} ({len(class_names)})"
        class_names[name] = key
    return Source(
        names=[printable(names[i]) for i in used],
        read=lambda k: read(used[k]),
        labels=[index[keys[i]] for i in used] if index else None,
        classes=list(class_names),
        split=[int(splits[i][0] > 0) for i in used] if len(ranks) > 1 else None,
        unused="\n".join(f"{printable(path)}: {note}" for note in notes),
        unlabelled=printable(odd[0]) if odd else "",
    )


# Words in the names of folders, arrays and columns: for training, and for what is held out, in the
# order in which one of these is chosen. What fits the last is of no use.
SPLIT_WORDS = [
    "train(ing|val|set|data|list|images?)?",
    "test(ing|set|data|list|images?)?",
    "val(id|idation|set|data|list|images?)?",
    "dev|eval(uation)?|hold(out)?|heldout",
    "pred(ict|iction)?s?|unlabell?ed",
]
USELESS = 4
FILLERS = "set sets data dataset images image imgs img folder split out samples".split()


@functools.lru_cache(1000)
def split_of(name):
    """seg_train -> (0, "seg"), Test -> (1, ""), cats -> None: which of SPLIT_WORDS a name has, and
    the words that are left."""
    words = re.findall(r"[^\W\d_]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    for word in words:
        for rank, pattern in enumerate(SPLIT_WORDS):
            if re.fullmatch(pattern, word):
                rest = [other for other in words if other not in (word, *FILLERS)]
                return rank, " ".join(rest)
    return None


# What the words in the key of an array say about it, besides those in SPLITS
ARRAY_WORDS = {
    **dict.fromkeys(("", "x", "images", "image", "imgs", "img", "data", "arr 0"), "images"),
    **dict.fromkeys(("y", "labels", "label", "targets", "target", "arr 1"), "labels"),
    **dict.fromkeys(("classes", "class names", "label names", "list classes"), "classes"),
    "split": "split",
}


def npz_source(path):
    """An .npz file -> Source. Its arrays: `images` uint8 (N, H, W[, C]) or (N, C, H, W), and, where
    there are any, `labels`, `classes` (names) and `split` (N,) (0 train, 1 test); or `x_train`,
    `y_train`, `x_test`, `y_test` and the like. An .npy file holds the images alone.

    What the headers say is checked before an array is read, and those not needed are never read.
    """
    try:
        file = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(file, np.ndarray):
            return arrays_source({"images": file}, {"images": (file.shape, file.dtype)}, path)
        return arrays_source(file, npz_headers(file.zip), path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib, ValueError, EOFError ... all mean the same
        if "pickle" in str(error):  # numpy would have it loaded unsafely
            error = "another format, or Python objects, such as images of different sizes"
        raise unreadable(path, path.suffix.lower(), error) from None


def npz_headers(archive):
    """{key: (shape, dtype)} of the arrays in an open .npz. Raises ValueError and its kin."""
    headers = {}
    for member in archive.infolist():
        with archive.open(member) as file:
            is_first = np.lib.format.read_magic(file) == (1, 0)
            read = np.lib.format.read_array_header_1_0
            read = read if is_first else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        size = 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size > member.file_size:
            raise ValueError(f"'{member.filename}' says {shape}, but has {member.file_size} bytes")
        headers[member.filename.removesuffix(".npy")] = (shape, dtype)
    return headers


def array_kinds(headers):
    """{(split as in SPLIT_WORDS, kind as in ARRAY_WORDS): key}. headers: see npz_headers."""
    kinds = {}
    for key, (shape, _) in headers.items():
        words = re.sub("([a-z])([A-Z])", r"\1 \2", key).lower()  # trainX
        words = [word for word in re.findall("[a-z]+|[0-9]+", words) if word != "set"]
        rank = next((split_of(word)[0] for word in words if split_of(word)), 0)
        kind = ARRAY_WORDS.get(" ".join(word for word in words if not split_of(word)))
        if kind and rank != USELESS and (kind != "images" or len(shape) > 2 or key == "images"):
            kinds.setdefault((rank, kind), key)
    return kinds


def arrays_source(arrays, headers, path):
    """The arrays of an open .npz -> Source. headers: see npz_headers."""
    kinds = array_kinds(headers)
    ranks = sorted(rank for rank, kind in kinds if kind == "images")[:2]
    if not ranks:
        keys = printable(", ".join(headers) or "nothing")
        raise InputError(f"'{printable(path)}' has no array 'images' (it has: {keys})")
    used = []

    def check(key, good, words, more=""):
        if not good:
            place = f"'{printable(key)}' in '{printable(path)}'"
            shape, dtype = headers[key]
            raise InputError(f"{place} must {words}, not {printable(f'{dtype} {shape}')}{more}")

    def load(key):
        shape, dtype = headers[key]
        fits = math.prod(shape) * dtype.itemsize <= memory()
        check(key, fits, f"fit in memory ({memory() / 1e9:.1f} GB)")
        used.append(key)
        return arrays[key]

    images = []
    keys = []
    splits = []
    for k, rank in enumerate(ranks):
        key = kinds[rank, "images"]
        shape, dtype = headers[key]
        good = dtype == np.uint8 and len(shape) in (3, 4) and min(shape) > 0
        how = "; use np.uint8(255 * x + 0.5) if 1 is white, np.uint8(x) if 255 is"
        words = "be uint8 (N, H, W[, C]) with at least one image"
        check(key, good or dtype.hasobject, words, "" if dtype == np.uint8 else how)
        channels_last = len(shape) != 4 or shape[-1] in (1, 3)
        check(key, channels_last or shape[1] in (1, 3), "have 1 or 3 channels")
        images.append(load(key) if channels_last else load(key).transpose(0, 2, 3, 1))
        splits += [(k, f"'{key}'")] * shape[0]
        values = [None] * shape[0]
        key = kinds.get((rank, "labels"))
        if key:
            words = f"be {shape[0]} whole numbers from 0 up, or names"
            label_shape, _ = headers[key]
            good = label_shape[:1] == shape[:1] and len(label_shape) < 3
            check(key, good and math.prod(label_shape[1:]) <= MAX_CLASSES, words)
            labels = load(key)
            values = plain_labels(labels)
            check(key, values is not None, words, extremes(labels))
        keys += values
    if (0, "split") in kinds and len(ranks) == 1:
        key = kinds[0, "split"]
        words = f"be {len(keys)} whole numbers: 0 (train) or 1 (test)"
        check(key, headers[key][0] == (len(keys),) and headers[key][1].kind in "iub", words)
        values = load(key)
        check(key, values.min() >= 0 and values.max() <= 3, words, extremes(values))
        splits = [(int(value), f"split {value}") for value in values]
    classes = None
    if (0, "classes") in kinds and all(isinstance(key, int) for key in keys):
        key = kinds[0, "classes"]
        shape, dtype = headers[key]
        good = math.prod(shape) <= MAX_CLASSES and dtype.itemsize < 10_000
        check(key, good, f"be at most {MAX_CLASSES} names")
        classes = np.atleast_1d(load(key)).ravel().astype(str).tolist()
        if max(keys) >= len(classes):
            labels = f"'labels' in '{printable(path)}' go up to {max(keys)}"
            raise InputError(f"{labels}, but there are {len(classes)} classes")
    unused = [key for key in headers if key not in used]
    notes = [left_out(unused, "array")] if unused else []

    def read(i):
        image = images[0][i] if i < len(images[0]) else images[1][i - len(images[0])]
        return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)

    names = [f"image {i}" for i in range(len(keys))]
    source = labelled_source(names, read, path, keys, splits, notes, classes)
    if (0, "split") in kinds and not source.split:  # nothing is held out, and that is meant
        source = source._replace(split=[0] * len(source.names))
    return source


def plain_labels(values):
    """Labels (N,), (N, 1) or one-hot (N, C) -> a list of ints from 0 up or of str; None if they are
    something else."""
    if values.ndim == 2 and values.shape[1] > 1:
        is_number = values.dtype.kind in "iubf"
        if not is_number or not np.isin(values, (0, 1)).all() or (values.sum(1) != 1).any():
            return None
        values = values.argmax(1)
    values = values.ravel()
    if values.dtype.kind in "SU":
        return values.astype(str).tolist()
    if values.dtype.kind == "f" and (abs(values) < 2**53).all() and (values % 1 == 0).all():
        values = values.astype(np.int64)
    if values.dtype.kind not in "iub" or values.min() < 0:
        return None
    return [int(value) for value in values.tolist()]


def extremes(values):
    """Words about the lowest and the highest of some numbers."""
    if values.dtype.kind not in "iuf":
        return ""
    return f"; they go from {values.min()} (index {values.argmin()}) to {values.max()}"


def memory():
    """The memory of this machine in bytes; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return math.inf


def array_source(images, labels, classes, split):
    """Images that are decoded already -> Source. images: uint8 (N, H, W) or (N, H, W, C)."""
    if images.shape[-1] == 1:
        images = images[..., 0]
    names = [f"image {i}" for i in range(len(images))]
    return Source(names, lambda i: Image.fromarray(images[i]), labels, classes, split)


# --------------------------------------------------------------------------------- preparation

# Modes of Pillow with values that are not 8 bits, and the usual ranges of such values.
DEEP = {"F": "floats", "I": "32-bit numbers", "I;16": "16-bit numbers"}
RANGES = [(0, 1), (-1, 1), *((0, 2**bits - 1) for bits in (8, 10, 12, 14, 16))]
# How images that are not square become square, and what the note about the set says.
FITS = {
    "crop": "cropped to the central square and resized",
    "squash": "squashed",
    "pad": "resized and padded with black",
}


class PngPixels(PngImagePlugin.PngStream):
    """Pillow's reader of PNGs, except that text, color profiles and other extras may be damaged or
    too long. Pillow itself refuses an image for that."""

    def call(self, cid, pos, length):
        try:
            return super().call(cid, pos, length)
        except Exception:
            if self.is_needed(cid):
                raise
            self.fp.seek(pos + length)
            return b""

    def crc(self, cid, data):
        check = super().crc if self.is_needed(cid) else self.crc_skip
        check(cid, data)

    def is_needed(self, cid):
        """Whether pixels need a chunk: its name begins in uppercase, or it is transparency."""
        return cid[:1].isupper() or cid == b"tRNS"


class Tally(NamedTuple):
    """What decoding a set tells about it."""

    used: list  # indices of the images that can be read
    skipped: list  # a line about each of the others
    sizes: set  # of the images as they were
    modes: set  # Pillow's, four letters at most: "I;16B" and others differ in the order of bytes
    ranges: dict  # of each mode in DEEP: (lowest value, highest value)
    peculiar: dict  # what somebody might not expect, in words -> the names of such images


def prepare(source, size, path, key, fit="crop"):
    """Decode, crop and resize every image of a Source into the .npy file `path`.

    fit: see fitted. Floats, 32-bit numbers and 16-bit numbers are scaled to 8 bits, each kind by
    one scale for the whole set: see common_scale.

    Returns what the .json says about it; "remarks" are lines for everybody who uses the set. An
    image that cannot be read is skipped and named; if more than five and more than 1 % cannot be
    read, or all, that is an InputError.
    """
    info = {}

    def write(temporary):
        with open(temporary, "wb+") as file:
            info.update(write_array(file, source, size, key, fit))

    PngImagePlugin.PngStream = PngPixels
    try:
        with warnings.catch_warnings():  # Pillow warns about files that it can read all the same
            warnings.simplefilter("ignore")
            write_atomic(path, write)
    finally:
        PngImagePlugin.PngStream = PngPixels.__base__
    skipped = info["skipped"]
    if skipped:
        count = f"{len(skipped)} of {len(source.names)}"
        info["remarks"].append(f"skipped {count} unreadable images; the first: {skipped[0]}")
    remarks = [printable(f"{key}: {remark}", 500) for remark in info["remarks"]]
    return {**info, "remarks": [*source.unused.splitlines(), *remarks]}


def write_array(file, source, size, key, fit):
    """Write an .npy file of uint8 (N, C, size, size). Returns the dict for the .json."""
    total = len(source.names)
    write_header(file, (total, 3, size, size))
    start = file.tell()
    tally = write_rows(file, source, size, key, fit, {})
    limit = max(5, total // 100)
    if len(tally.skipped) > limit or not tally.used:
        examples = "; ".join(tally.skipped[:5])
        if len(tally.skipped) > 5:
            examples += "; ..."
        words = f"more than {limit}" if tally.used else "all"
        raise InputError(
            f"{len(tally.skipped)} of {total} images cannot be read, which is {words} "
            f"(delete or repair them): {examples}"
        )
    if tally.ranges:  # decode the images once more, now that the range of all is known
        scales = {mode: common_scale(*limits) for mode, limits in tally.ranges.items()}
        file.seek(start)
        tally = write_rows(file, source, size, key, fit, scales)
    shape = (len(tally.used), 3, size, size)
    if tally.modes <= {"1", "L", *DEEP}:
        shape = (len(tally.used), 1, size, size)
        keep_one_channel(file, len(tally.used), size)
    file.seek(0)
    write_header(file, shape)
    file.truncate(file.tell() + math.prod(shape))

    labels = None
    if source.labels is not None and len(source.classes) > 1:  # a single class says nothing
        labels = [source.labels[i] for i in tally.used]
    split = None if source.split is None else [source.split[i] for i in tally.used]
    digest = hashlib.sha256()
    values = set()
    while piece := file.read(2**20):
        digest.update(piece)
        pixels = np.frombuffer(piece, np.uint8)
        values |= {int(pixels.min()), int(pixels.max())}
    digest.update(json.dumps([labels, shape, split]).encode())
    kinds = tally.peculiar.items()
    remarks = [f"{counted(names, 'image')} {what}; the first: {names[0]}" for what, names in kinds]
    if max(values) - min(values) < 16:
        words = f"every pixel of every image is from {min(values)} to {max(values)}"
        remarks.append(f"{words}, of 0 to 255: there is next to nothing to see")
    return {
        "shape": shape,
        "labels": labels,
        "classes": [] if labels is None else source.classes,
        "split": split,
        "fingerprint": digest.hexdigest()[:16],
        "skipped": tally.skipped,
        "remarks": remarks,
        "note": how_prepared(tally.sizes, size, fit),
    }


def write_header(file, shape):
    """Write the .npy header for uint8 `shape`. It is equally long for any smaller shape."""
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)


def write_rows(file, source, size, key, fit, scales):
    """Write every image as uint8 (3, size, size), so that memory does not grow with the set.

    fit, scales: see square. Returns a Tally.
    """
    tally = Tally([], [], set(), set(), {}, {})
    total = len(source.names)

    def decode(i):
        try:
            image = source.read(i)
            natural_size = image.size
            pixels = square(image, size, fit, scales)
            remarks = peculiar(image, scales)
            if pixels.max() < 16:
                remarks.append("all but black")
            return pixels, natural_size, image.mode[:4], value_range(image), remarks
        except UnidentifiedImageError:  # whose own words name an object in memory
            return f"{source.names[i]}: damaged, or no image"
        except Exception as error:  # Pillow raises many kinds, and each means the same
            return f"{source.names[i]}: {short(error)}"

    def decode_eight(start):  # a task for each image would cost a few percent
        return [decode(i) for i in range(start, min(start + 8, total))]

    bar = tqdm(total=total, desc=f"preparing {printable(key)}", unit="img", disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, total, 1024):
            tasks = range(start, min(start + 1024, total), 8)
            results = [result for eight in pool.map(decode_eight, tasks) for result in eight]
            for i, result in enumerate(results, start):
                bar.update()
                if isinstance(result, str):
                    tally.skipped.append(result)
                    continue
                pixels, natural_size, mode, limits, remarks = result
                tally.used.append(i)
                tally.sizes.add(natural_size)
                tally.modes.add(mode)
                if limits:
                    both = (*limits, *tally.ranges.get(mode, limits))
                    tally.ranges[mode] = (min(both), max(both))
                for words in remarks:
                    tally.peculiar.setdefault(words, []).append(source.names[i])
                file.write(pixels.tobytes())
    return tally


def value_range(image):
    """(lowest, highest) finite value of an image in DEEP, else None."""
    if image.mode[:4] not in DEEP:
        return None
    values = np.ma.masked_invalid(image).compressed()
    if values.size == 0:
        raise ValueError("it holds no finite number")
    return values.min().item(), values.max().item()


def peculiar(image, scales):
    """What somebody might not expect about an image, in words that follow "3 images"."""
    remarks = []
    with contextlib.suppress(Exception):  # Pillow looks for a second image, and it may be damaged
        if getattr(image, "is_animated", False):
            remarks.append("with several frames, of which only the first is used")
    mode = image.mode[:4]
    if mode in scales:
        low, high = scales[mode]
        remarks.append(f"of {DEEP[mode]}, where {low:g} to {high:g} become 0 to 255")
        if not np.isfinite(np.asarray(image)).all():
            remarks.append("with NaN, which becomes black, or infinite values")
    return remarks


def common_scale(low, high):
    """The values that become 0 and 255, where the values of a set go from low to high.

    These are 0 and 1, -1 and 1, or what 8, 10, 12, 14 or 16 bits can hold: the smallest range that
    the values fit in. But if they take up less than an eighth of it, they are low and high: up to
    3.7, they are no dark version of 0 to 255.
    """
    for bottom, top in RANGES:
        wide = low == high or 8 * (high - low) > top - bottom
        if bottom <= low and high <= top and wide:
            return bottom, top
    return low, high


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


def how_prepared(natural_sizes, size, fit):
    """The note about a prepared set. natural_sizes: the sizes its images had."""
    if natural_sizes == {(28, 28)} and size == 32:
        return "28x28 padded to 32x32 with black"
    if natural_sizes == {(size, size)}:
        return f"{size}x{size} as they are"
    square_already = all(width == height for width, height in natural_sizes)
    words = "resized" if fit != "crop" and square_already else FITS[fit]
    return f"{words} to {size}x{size} (bicubic, antialiased)"


def square(image, size, fit, scales):
    """PIL image -> uint8 (3, size, size): upright (EXIF), RGB, then see fitted.

    scales: of each mode in DEEP, the values that become 0 and 255."""
    if 0 in image.size:
        raise ValueError("it is 0 pixels high or wide")
    image.load()
    # Damaged EXIF costs no image. It may fail late, when Pillow has turned the pixels.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[:4] in scales:
        image = to_8_bits(np.asarray(image, np.float64), *scales[image.mode[:4]])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")  # what shows through is white
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size == (28, 28) and size == 32:
        image = ImageOps.expand(image, 2)  # MNIST and its kin: padding keeps every pixel sharp
    elif image.size != (size, size):
        image = fitted(image, size, fit)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def fitted(image, size, fit):
    """RGB PIL image of any shape -> size x size, resized with Pillow's antialiased bicubic filter.

    fit: "crop", the central square of it; "squash", all of it, whatever its shape; "pad", all of
    it in its shape, in the middle of black."""
    bicubic = Image.Resampling.BICUBIC
    if fit == "crop":
        return ImageOps.fit(image, (size, size), bicubic)
    if fit == "squash":
        return image.resize((size, size), bicubic)
    # ImageOps.pad alone fails where the shorter side would round to 0 pixels
    width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
    return ImageOps.pad(image.resize((width, height), bicubic), (size, size), color="black")


def to_8_bits(values, low, high):
    """float64 (H, W) -> PIL image of mode L. low becomes 0, high 255, NaN 0.

    Each gray level has an equal share of the range, so 16-bit numbers lose their lower byte.
    """
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    shares = 256 * ((values - low) / ((high - low) or 1))
    return Image.fromarray(shares.clip(0, 255).astype(np.uint8))
