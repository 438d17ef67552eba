"""folders.py: the images of a folder, a zip or a tar of your own, with their labels and splits.

1. `scan`, `zip_source` and `tar_source` list the files. `files_source` sorts out the images.
2. `read_folders` reads classes and splits off the names of the folders.
3. `read_tables` reads labels from files such as labels.csv that lie beside the images.
4. `labelled_source` of sources.py decides which images are used.

Nothing is left out in silence: each of these adds a line to the notes of the Source. docs/data.md
says what is understood. datasets.py imports this file when a path of your own is asked for.
"""

import bz2
import csv
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import threading
import unicodedata
import zipfile

from PIL import Image

from sources import (
    USELESS,
    InputError,
    counted,
    file_stamp,
    labelled_source,
    left_out,
    printable,
    short,
    split_of,
    unreadable,
)

# ----------------------------------------------------------------------------- folders and archives

# What Pillow decodes by itself, the usual ones first: no videos, no PDFs, no PostScript.
FORMATS = "JPEG PNG WEBP GIF BMP TIFF AVIF JPEG2000 MPO PPM DIB ICO PCX QOI SGI PSD DDS TGA".split()
ENDINGS = Image.registered_extensions().items()  # this also loads Pillow's formats
IMAGE_SUFFIXES = {ending for ending, kind in ENDINGS if kind in FORMATS}
FORMATS = [kind for kind in FORMATS if kind in Image.OPEN]  # some builds of Pillow lack some
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt")  # of files that may hold labels
COMPANIONS = (*TABLE_SUFFIXES, "", *".md .rst .html .xml .yaml .yml .ini .db .log .py .url".split())
TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
MAX_FILE = 200 * 2**20  # bytes of one packed image; a larger one is skipped (zip bombs)
MAX_UNPACKED = 2**30  # bytes that any compressed tar may unpack to, or 100 times its size
MAX_TABLE = 2**26  # bytes of a label file


def path_source(path):
    """A folder, zip or tar -> (stamp, open_source): see datasets.path_source."""
    if path.is_dir():
        return folder_source(path)
    name = path.name.lower()
    with open(path, "rb") as file:  # the first bytes count, and not the name
        is_zip = file.read(3) in (b"PK\3", b"PK\5")
    if not is_zip and (name.endswith(TAR_SUFFIXES) or tarfile.is_tarfile(path)):
        return file_stamp(path), lambda: tar_source(path)
    if is_zip or name.endswith(".zip") or zipfile.is_zipfile(path):
        return file_stamp(path), lambda: zip_source(path)
    words = "is no folder, zip or .npz file, and no tar: unpack or convert it"
    if is_image(path.name):
        words = "is a single image: give the folder that it is in"
    raise InputError(f"'{printable(path)}' {words}")


def folder_source(path):
    """A folder -> (stamp, open_source). The stamp is that of all images and label files in it."""
    files, notes = scan(path)
    names = sorted(files, key=lambda name: name.split("/"))
    relevant = {"", *IMAGE_SUFFIXES, *TABLE_SUFFIXES}
    stats = []
    for file in names:
        if files[file] and suffix(file) in relevant:
            stats.append((file, files[file].st_size, files[file].st_mtime_ns))
    stamp = hashlib.sha256(json.dumps(stats).encode()).hexdigest()

    def open_file(i):
        return open(path / names[i], "rb")

    def image_path(i):
        if files[names[i]].st_size > 5 * MAX_FILE:  # a sparse file may say that it is endless
            raise ValueError(f"{files[names[i]].st_size} bytes")
        return path / names[i]

    return stamp, lambda: files_source(names, open_file, image_path, path, list(notes))


def suffix(name):
    """The suffix of a file's name in lower case; "" where what follows the last dot is none."""
    match = re.search(r"\.(?=\w*[a-z])\w{1,10}$", name.lower())
    return match.group() if match else ""


def is_hidden(name):
    """Whether a file or one of its folders is hidden, or made by a system for itself."""
    return any(part.startswith((".", "__MACOSX", "@eaDir")) for part in re.split(r"[/\\]", name))


def is_image(path):
    """Whether a relative path looks like an image that is not hidden. Nothing is opened."""
    return suffix(path) in IMAGE_SUFFIXES and not is_hidden(path)


def scan(root):
    """All files below a folder, without hidden ones. Links are followed; no folder is read twice.

    Returns ({name: os.stat_result}, notes). The names of folders end with "/"; they have None.
    Raises InputError if a folder cannot be read.
    """
    files = {}
    passed = {}  # what, where: names
    home = f"{os.path.realpath(root)}{os.sep}"
    seen = set()
    folders = [""]
    links = []  # to folders; read after all real ones
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        place = os.path.join(root, folder)
        real = os.path.realpath(place)
        if real in seen or (folder and home.startswith(f"{real}{os.sep}")):
            passed.setdefault(("link", " to a folder that is read already"), []).append(folder)
            del files[folder]
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            words = f"'{printable(place)}' cannot be read ({error.strerror})"
            raise InputError(f"the folder {words}") from None
        for entry in entries:
            name = folder + entry.name
            if is_hidden(entry.name):
                continue
            try:
                status = entry.stat()
            except OSError:
                passed.setdefault(("link", " that cannot be followed"), []).append(name)
                continue
            if stat.S_ISDIR(status.st_mode):
                files[f"{name}/"] = None
                (links if entry.is_symlink() else folders).append(f"{name}/")
            elif stat.S_ISREG(status.st_mode):
                files[name] = status
            else:
                passed.setdefault(("special file", " (pipe, socket, device)"), []).append(name)
    return files, [left_out(names, *reason) for reason, names in passed.items()]


def zip_source(path):
    """A zip of images -> Source. Files are read in memory and never unpacked to disk, so no name in
    the archive can lead out of a folder."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # also ValueError, NotImplementedError ...: all mean the same
        raise unreadable(path, "zip", error) from None
    members = [(member.filename, member.file_size, member) for member in archive.infolist()]
    if any(member.flag_bits & 1 for member in archive.infolist()):
        raise InputError(f"'{printable(path)}' is encrypted: unpack it, and give the folder")
    return archive_source(members, archive.open, path, [])


def tar_source(path):
    """A tar of images -> Source. A compressed one is unpacked once, into a temporary file without a
    name. Files are then read from their places in it."""
    members = []
    others = []
    position = -1
    try:
        file, lock = plain_tar(path, path.stat().st_mtime_ns)
        file.seek(0)
        archive = tarfile.open(fileobj=file, mode="r:")
        for member in archive:
            if member.offset_data <= position or member.size < 0:
                raise ValueError("its files overlap")
            position = member.offset_data
            if member.isdir() or (member.isreg() and not member.issparse()):
                name = f"{member.name}/" if member.isdir() else member.name
                members.append((name, member.size, member))
            else:
                others.append(member.name)
        file.seek(archive.offset)
        end = file.read(512)
        if end.strip(b"\0"):  # at a damaged header, tarfile ends the list without a word
            raise ValueError(f"damaged or cut short after {archive.offset} bytes")
    except (InputError, MemoryError):
        raise
    except Exception as error:  # many kinds, and each means the same
        raise unreadable(path, "tar", error) from None
    notes = [left_out(others, "special file", " (link, device, sparse)")] if others else []
    if not end:
        notes.append("the tar has no end mark: it may be cut short")

    def open_member(member):
        with lock:
            file.seek(member.offset_data)
            return io.BytesIO(file.read(member.size))

    return archive_source(members, open_member, path, notes)


@functools.lru_cache(1)  # the same one for the native size and for the preparation
def plain_tar(path, _time):
    """The tar at `path` as an open file, uncompressed, and a lock for threads that read from it."""
    file = open(path, "rb")
    lock = threading.Lock()
    unpack = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}.get(file.read(2))
    file.seek(0)
    if unpack is None:
        return file, lock
    print(f"unpacking {printable(path)} into a temporary file", file=sys.stderr)
    plain = tempfile.TemporaryFile()
    room = shutil.disk_usage(tempfile.gettempdir()).free * 9 // 10
    limit = min(room, max(MAX_UNPACKED, 100 * path.stat().st_size))
    with unpack(file) as packed:
        while piece := packed.read(2**20):
            if plain.tell() + len(piece) > limit:
                raise InputError(
                    f"'{printable(path)}' unpacks to more than {limit / 1e9:.1f} GB, too much for "
                    f"an archive of its size or for {tempfile.gettempdir()}: unpack it yourself"
                )
            plain.write(piece)
    return plain, lock


def archive_source(members, open_member, path, notes):
    """The members of an archive -> Source. members: [(name, size, what open_member takes), ...];
    the names of folders end with "/"."""
    clean = {}
    outside = []
    for name, size, member in members:
        # Some programs on Windows pack names with backslashes. A drive or a slash at the beginning
        # is dropped, as unzip and tar do.
        parts = re.split(r"[/\\]", re.sub(r"^[A-Za-z]:(?=[/\\])", "", name))
        plain = "/".join(part for part in parts if part not in ("", "."))
        if ".." in parts:
            if parts[-1]:  # else a folder, which holds nothing by itself
                outside.append(name)
        elif plain and not is_hidden(plain):
            clean.setdefault(plain if parts[-1] else f"{plain}/", []).append((size, member))
    if outside:
        notes.append(left_out(outside, "file", " outside the archive's own folder"))
    repeated = [name for name, same in clean.items() if len(same) > 1 and name[-1] != "/"]
    if repeated:
        notes.append(left_out(repeated, "name", rest="there more than once: the last file counts"))
    names = sorted(clean)

    def open_file(i):
        size, member = clean[names[i]][-1]
        if size > MAX_FILE:
            raise ValueError(f"{size} bytes unpacked")
        return open_member(member)

    def packed_image(i):
        with open_file(i) as file:
            return io.BytesIO(file.read())

    return files_source(names, open_file, packed_image, path, notes)


def files_source(names, open_file, open_image, path, notes):
    """The files of a folder or an archive -> Source.

    open_file: index -> binary file; open_image: index -> what Pillow opens and closes.
    """
    images = []
    others = {}  # suffix: names
    folders = set()
    for i, name in enumerate(names):
        ending = suffix(name)
        if name.endswith("/"):
            folders.add(name)
            continue
        folders.difference_update(name[: match.end()] for match in re.finditer("/", name))
        if ending in IMAGE_SUFFIXES or (not ending and begins_like_an_image(open_file, i)):
            images.append(i)
        else:
            others.setdefault(ending, []).append(name)
    if not images:
        there = [counted(files, f"{ending or 'other'} file") for ending, files in others.items()]
        what = f", but {', '.join(there[:5])}: unpack or convert what is in them" if there else ""
        what = what or " (looked for .jpg, .png and others, sub-folders too)"
        raise InputError("; ".join([f"no images in '{printable(path)}'{what}", *notes]))
    for ending, files in others.items():
        if ending not in COMPANIONS:
            notes.append(left_out(files, f"{ending} file", rest="not used: convert them"))
    if folders:
        notes.append(left_out(sorted(folders), "folder", rest="empty"))
    image_names = [names[i] for i in images]
    tables = {}
    for name in label_files(others, image_names):
        try:
            with open_file(names.index(name)) as file:
                tables[name] = parse_table(name, file.read(MAX_TABLE + 1))
        except Exception as error:  # csv, json and archives raise many kinds
            notes.append(f"'{printable(name)}' cannot be read ({printable(short(error))})")

    def read(i):
        return Image.open(open_image(images[i]), formats=FORMATS)

    return from_files(image_names, read, path, tables, notes)


def begins_like_an_image(open_file, i):
    """Whether the first bytes of a file are those of a usual format."""
    try:
        with open_file(i) as file:
            start = file.read(16)
        # a text such as a license may begin with BM, but has no zero byte
        return b"\0" in start and any(Image.OPEN[kind][1](start) for kind in FORMATS[:6])
    except Exception:  # a damaged archive
        return False


def from_files(names, read, path, tables=None, notes=()):
    """Names of images -> Source. Classes and splits are read off the folders and label files.

    names: with "/" between folders; read(i) opens names[i]; path: where they lie, for messages;
    tables: {name: what parse_table gives}; notes: lines for Source.unused. See docs/data.md.
    """
    notes = list(notes)
    keys, splits = read_folders(names, notes)
    if tables:
        keys = read_tables(names, tables, keys, splits, notes)
    return labelled_source(names, read, path, keys, splits, notes)


# ------------------------------------------------------------------------------ names of folders

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "photos", "input", "inputs")
SHARD_FILES = r"(.*/)?((\d\d)000/\3\d{3}|\d{5}/img\d{8})\.\w+"  # of FFHQ and StyleGAN
SHARDS = r".*(part|fold|shard|batch|chunk|images?|imgs?)[\W_]*\d+"  # folders that are no classes
MASK_FOLDERS = r"(ground_?truth|gt|labels|annotations|trimaps|targets|.*masks?|segmentation.*)"


def read_folders(names, notes):
    """The classes and splits that folders speak of: keys and splits as in labelled_source."""
    places = [unicodedata.normalize("NFC", name).split("/")[:-1] for name in names]
    if all(re.fullmatch(SHARD_FILES, name) for name in names):
        places = [folders[:-1] for folders in places]
    used = without_masks(places)
    places = without_common(places, used)
    parts = find_splits(inner_folders(places, used))
    if not parts:  # cat/train/, cat/test/, dog/train/ ...
        turned = [[f[1], f[0], *f[2:]] if len(f) > 1 else [] for f in places]
        inner = inner_folders(turned, used)
        most = 2 * sum(bool(turned[i]) for i in used) > len(used)
        below = find_splits(inner)
        if most and len(below) > 1 and (0, "") in below.values():
            places = turned
            parts = below
    held_out = [printable(f"{folder}/") for folder in parts if 0 < parts[folder][0] < USELESS]
    if len(parts) > 1 and not held_out:
        notes.append(f"all for training: {printable('/ '.join(sorted(parts)))}/")
    elif any(class_name or not split_of(folder) for folder, (_, class_name) in parts.items()):
        notes.append(f"held out: {' '.join(sorted(held_out))}")
    keys = [None] * len(names)
    splits = [None] * len(names)
    for i in used:
        splits[i] = (0, "the folders of images")
        if parts:
            top = places[i][0] if places[i] else None
            rank, class_name = parts.get(top, (USELESS, ""))
            splits[i] = None if rank == USELESS else (rank, f"{top}/")
            places[i] = [class_name] * bool(class_name) + places[i][1:]
    train = [i for i in used if splits[i] and splits[i][0] == 0]
    inside = classes_first(places, train, notes)
    for i in train:
        keys[i] = inside[i][0] if inside[i] else None
    known = {key.casefold(): key for key in keys if key}
    known |= {key: key for key in keys if key}
    for i in used:
        if keys[i] is None:
            matches = [known.get(f, known.get(f.casefold())) for f in places[i]]
            keys[i] = next(filter(None, matches), None)
    return keys, splits


def without_masks(places):
    """Which images are no masks or segmentations: no folder images/ lies beside theirs."""
    with_images = set()
    for folders in places:
        for k, folder in enumerate(folders):
            if folder.lower() in IMAGE_FOLDERS:
                with_images.add(tuple(folders[:k]))
    used = []
    for i, folders in enumerate(places):
        masks = [k for k, name in enumerate(folders) if re.fullmatch(MASK_FOLDERS, name.lower())]
        if not any(tuple(folders[:k]) in with_images for k in masks):
            used.append(i)
    return used


def without_common(places, used):
    """Drop the outer folders that hold nearly all images used. places: [["photos", "cat"], ...]."""
    while len(inner_folders(places, used)) == 1:
        if 2 * sum(bool(places[i]) for i in used) <= len(used):
            break
        places = [folders[1:] for folders in places]
    return places


def inner_folders(places, used):
    """{outer folder: the set of folders right in it}."""
    inner = {}
    for i in used:
        if places[i]:
            inner.setdefault(places[i][0], set()).update(places[i][1:2])
    return inner


def find_splits(inner):
    """Which outer folders are splits: {folder: (its split, a class to put in its place or "")}.

    Folders that it lacks are not used. Empty if there are no splits. inner: see inner_folders.
    """
    roles = {folder: split_of(folder) for folder in inner if split_of(folder)}
    plain = set(inner) - set(roles)
    train = {words for rank, words in roles.values() if rank == 0}
    pairs = train & {words for rank, words in roles.values() if rank}
    if pairs:  # several pairs are classes: trainA, trainB, testA, testB
        paired = {folder: role for folder, role in roles.items() if role[1] in pairs}
        return {f: (rank, words if len(pairs) > 1 else "") for f, (rank, words) in paired.items()}
    if len(roles) > 1 and not plain:  # a_train/ and my_test/; or test/ and val/, all that there is
        several = len(train) > 1
        return {
            folder: (rank if train else 0, words if several and rank == 0 else "")
            for folder, (rank, words) in roles.items()
        }
    if train:  # train/cat, train/dog and previews/
        trains = {folder: (0, "") for folder, (rank, _) in roles.items() if rank == 0}
        known = set().union(*(inner[folder] for folder in trains))
        same = all(inner[folder] <= known for folder in inner)
        return trains if same and all(inner[folder] for folder in trains) else {}
    held_out = {}
    inside = set().union(*(inner[folder] for folder in plain))
    opposites = {folder.lower() for folder in plain}  # valid/, invalid/
    for folder, (rank, words) in roles.items():
        is_plain = not words and f"in{folder.lower()}" not in opposites
        same = inner[folder] & plain or len(inner[folder] & inside) > 1
        if rank != USELESS and plain and (is_plain or same):
            held_out[folder] = (rank, "")
    several = len(plain) > 1  # cat/, dog/, test/
    return held_out and held_out | {f: (0, f if several else "") for f in plain}


def classes_first(places, train, notes):
    """Drop the folders of training images that are around the folders of the classes."""
    places = without_common(places, train)
    inner = inner_folders(places, train)
    while all(inner.values()) and len(set().union(*inner.values())) == 1:  # amazon/images/mug
        places = [[*f[:1], *f[2:]] for f in places]
        inner = inner_folders(places, train)
    if len(inner) < 2:
        return places
    direct = sum(len(places[i]) == 1 for i in train)
    common = set.intersection(*inner.values())
    union = set.union(*inner.values())
    outer = {folder for folder in inner if re.fullmatch(SHARDS, folder.lower())}
    if len(outer) < len(inner):  # flowers/rose, flowers/flowers/rose
        outer = {f for f, folders in inner.items() if len(folders) > 1 and folders <= set(inner)}
    if not outer and all(inner.values()) and 2 * direct < len(train):
        one_each = max(map(len, inner.values())) == 1 and len(union) > 1
        if one_each or (len(common) > 1 and 2 * len(common) > len(union)):
            outer = set(inner)
    if outer:
        words = "passed over: only those inside can be classes"
        notes.append(left_out(sorted(outer), "folder", rest=words))
    return [f[1:] if f and f[0] in outer else f for f in places]


# ------------------------------------------------------------------------------------ label files

# Titles of columns in label files, in lower case and without all but letters
IMAGE_TITLES = "(?=.)(image|img|file|photo|picture)*(name|path|id|index)?s?"
LABEL_TITLES = "(.*label|class|category|categorie|target|species|breed|y)(name|str|id|es|s)?"
LABEL_TITLES += "|dx|diagnosis|emotion"
SPLIT_TITLES = "(data|sub)?set|splits?|partition|phase|usage"
BOXES = "with boxes"
TEXT_TITLES = "text|captions?|prompt|description"


def label_files(others, names):
    """Which files may hold labels, those at the top first. others: {suffix: names of files that are
    no images}; names: of the images."""
    stems = {os.path.splitext(os.path.basename(name))[0] for name in names}
    files = []
    for ending in TABLE_SUFFIXES:
        for name in others.get(ending, ()):
            stem = os.path.basename(name)[: -len(ending)]
            about_one = {stem, os.path.splitext(stem)[0]} & stems  # 1.txt or 1.png.json
            if not about_one and "submission" not in stem.lower():
                files.append(name)
    return sorted(files, key=lambda name: name.count("/"))[:100]


def parse_table(name, data):
    """The bytes of a label file -> (title of the label column, [(image, label, split), ...]), all
    str. A list without titles has the title "". Raises many kinds of error."""
    rows = table_rows(name, data)
    if not rows or not isinstance(rows[0], dict):
        pairs = [(*map(cell_text, row), "") for row in rows if len(row) == 2]
        if not pairs:  # 1.png, its label, a box; or 1.png alone
            rows = [(*map(cell_text, row), "", "") for row in rows]
            lists = [row for row in rows if is_image(row[0]) or len(row) == 3]
            return BOXES, [(image, label, "") for image, label, *_ in lists]
        if pairs and is_image(pairs[-1][1]) and not is_image(pairs[-1][0]):
            pairs = [(image, label, "") for label, image, _ in pairs]
        return "", pairs

    def column(pattern):
        titles = [title for title in rows[0] if re.fullmatch(pattern, letters(title))]
        titles.sort(key=lambda title: letters(title).endswith("id"))  # rather names than numbers
        return titles[0] if titles else None

    def class_column(row):
        ones = [title for title in rest if cell_text(row.get(title)).strip() in ("1", "1.0")]
        zeros = [title for title in rest if cell_text(row.get(title)).strip() in ("0", "0.0")]
        return ones[0].strip() if len(ones) == 1 and len(zeros) == len(rest) - 1 else ""

    image = column(IMAGE_TITLES)
    label = column(LABEL_TITLES)
    split = column(SPLIT_TITLES)
    rest = [title for title in rows[0] if title not in (image, split)]
    if label is None and len(rest) == 1 and not re.fullmatch(TEXT_TITLES, letters(rest[0])):
        label = rest[0]
    if label is None and split is None and not class_column(rows[0]):
        if image is not None and len(rest) > 1:
            raise ValueError(f"no column is named label: {', '.join(rows[0])}")
        return "", []
    table = []
    for row in rows:  # without a column of labels: one column for each class
        text = class_column(row) if label is None else cell_text(row.get(label))
        table.append((cell_text(row.get(image)), text, cell_text(row.get(split))))
    return letters(label or "one-hot"), table


def table_rows(name, data):
    """The bytes of a label file -> its rows: dicts, or lists where there are no titles."""
    if len(data) > MAX_TABLE:
        raise ValueError(f"larger than {MAX_TABLE} bytes")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")  # as Excel writes it
    text = re.sub(r"(# .*\n\s*)*", "", text.strip(), count=1)  # comments above the titles
    lines = [line for line in text.splitlines() if line.strip()]
    delimiter = max("\t;,", key=lines[0].count) if lines else ","
    if suffix(name) in (".json", ".jsonl"):
        rows = json.loads(text) if suffix(name) == ".json" else [json.loads(line) for line in lines]
        keys = set(rows) if isinstance(rows, dict) else set()
        if {"images", "annotations", "categories"} <= keys:  # COCO's
            files = {image["id"]: image["file_name"] for image in rows["images"]}
            titles = {category["id"]: category["name"] for category in rows["categories"]}
            pairs = [(file["image_id"], file["category_id"]) for file in rows["annotations"]]
            return [[files.get(image), titles.get(category)] for image, category in pairs]
        lists = keys & {"labels", "images", "data", "annotations"}  # {"labels": [...]}: StyleGAN's
        rows = rows[min(lists)] if len(lists) == 1 else rows
        if isinstance(rows, dict):  # {"cat": ["1.png", ...]}, {"1.png": {"label": "cat"}}
            pairs = []
            for name, value in rows.items():
                is_list = isinstance(value, list)
                pairs += [(item, name) for item in value] if is_list else [(name, value)]
            named = [{**row, "image": name} for name, row in pairs if isinstance(row, dict)]
            rows = named if 2 * len(named) > len(rows) else pairs
        rows = rows or []
        kinds = dict if rows and isinstance(rows[0], dict) else (list, tuple)
        return [row for row in rows if isinstance(row, kinds)]
    if not lines or delimiter not in lines[0]:
        return [line.rsplit(None, 1) for line in lines]
    rows = list(csv.reader(io.StringIO(text, None), delimiter=delimiter))
    if any(re.fullmatch(IMAGE_TITLES, letters(cell)) for cell in rows[0]):
        rows = [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
    return rows


def cell_text(cell):
    """A cell of a table as text; "" for None and for what has parts of its own."""
    text = str(cell) if isinstance(cell, (str, int, float)) else ""
    return unicodedata.normalize("NFC", text)


def letters(title):
    """The title of a column in lower case, without all but letters."""
    return re.sub("[^a-z]", "", str(title).lower())


def read_tables(names, tables, keys, splits, notes):
    """The keys of labelled_source from label files, where they say more than the folders do.

    tables: {name: what parse_table gives}; the others as in labelled_source. Splits are changed in
    place.
    """
    places = image_places(names)
    several = set()  # of (title, index of an image with several labels)
    columns = {}  # title: {index: (label, name of the file)}
    parts = {}  # index: (split as in SPLIT_WORDS, its name)
    for table, (column, rows) in tables.items():
        labels = columns.setdefault(column, {})
        strange = []
        if all(split_of(label) and not split_of(label)[1] for _, label, _ in rows):
            rows = [(image, "", label) for image, label, _ in rows]
        for image, label, split in rows:
            i = find_image(places, table, image)
            in_split = i is not None and any(map(split_of, names[i].split("/")[:-1]))
            text = split.strip() or ("" if in_split else os.path.basename(table))
            part = table_split(text)
            if i is not None and part and part[0] != USELESS:  # held out in any: not trained on
                parts[i] = max(part, parts.get(i, part))
            if i is not None and label.strip():
                first, _ = labels.setdefault(i, (label.strip(), printable(table)))
                if first != label.strip():
                    several.add((column, i))
            elif i is None and (re.fullmatch(LABEL_TITLES, column) or is_image(image)):
                strange.append(image)
        if strange:
            where = f" of {printable(table)} that no image has"
            notes.append(left_out(strange, "name", where, "passed over"))
    ranks = {rank for rank, _ in parts.values()}
    if ranks - {0} and not any(split and split[0] for split in splits):
        files = {name for _, name in parts.values()}
        files = printable(" and ".join(sorted(files)))
        words = f"split of {len(parts)} of {len(names)} images ({files}): not used"
        default = None if 0 in ranks else (0, "other images")  # that no file names
        new = [split and parts.get(i, default) for i, split in enumerate(splits)]
        most = 2 * len(parts) > len(names)
        if (0 in ranks) == most and {0} < {split[0] for split in new if split}:
            words = f"the split is that of a label file ({files})"
            splits[:] = new
        notes.append(words)
    column = max(columns, key=lambda title: len(columns[title]))
    rows = columns[column]
    several = [names[i] for i in list(rows) if (column, i) in several and rows.pop(i)]
    where = " with several labels"
    lines = [left_out(several, "image", where, "without a class")] if several else []
    if not rows:
        notes += lines
        return keys
    labels = {i: label for i, (label, _) in rows.items()}
    files = " and ".join(sorted({file for _, file in rows.values()}))
    count = len(set(labels.values()))
    try:
        numbers = {i: float(label) for i, label in labels.items()}
    except ValueError:
        numbers = {}
    whole = all(number.is_integer() for number in numbers.values())
    if 2 * count > len(labels) and (len(labels) > 20 or not whole):
        notes.append(f"{files}: {count} values for {len(labels)} images are no classes: not used")
        return keys
    if all(re.fullmatch(r"-?(0|[1-9][0-9]{0,99})(\.0*)?", label) for label in labels.values()):
        for i, label in labels.items():  # so that 10 comes after 9; 007 is a name
            labels[i] = int(label.partition(".")[0])
    train = [i for i, split in enumerate(splits) if split and split[0] == 0]
    matched = [i for i in train if i in labels]
    both = {(keys[i], labels[i]) for i in matched if keys[i] is not None}
    known = set(keys) - {None}
    agree = len(known) > 1 and len(both) == len({a for a, _ in both}) == len({b for _, b in both})
    if agree or column == BOXES or 2 * len(matched) <= len(train):
        by_name = {str(key): key for key in known}  # for images outside the folders of classes
        filled = [key or by_name.get(str(labels.get(i))) for i, key in enumerate(keys)]
        if not agree and filled == keys:
            notes.append(f"{files}: labels of {len(matched)} of {len(train)} images: not used")
        return filled
    notes += [*lines, f"the labels are those of {files}" + (", not the folders" if known else "")]
    return [labels.get(i) for i in range(len(names))]


def table_split(text):
    """What a cell or the name of a label file says: (split as in SPLIT_WORDS, its name), or None.
    0 is for training, and 1, 2 and 3 are held out."""
    if text in ("0", "1", "2", "3"):
        return int(text), f"split {text}"
    role = split_of(text)
    return role and (role[0], text)


def image_places(names):
    """{a name as a label file may write it: index of the image, None if it means several}."""
    folded = {}  # whatever the case
    places = {}
    whole = {}  # a whole name means itself
    for i, name in enumerate(names):
        name = unicodedata.normalize("NFC", name)
        for start in [0, *(match.end() for match in re.finditer("/", name))]:
            for form in {name[start:], os.path.splitext(name[start:])[0]}:
                places[form] = None if form in places else i
                form = form.casefold()
                folded[form] = None if folded.get(form, i) != i else i
        whole[name] = i
    return folded | places | whole


def find_image(places, table, name):
    """The index of the image that a label file means by a name, or None."""
    name = unicodedata.normalize("NFC", name.strip()).replace("\\", "/").removeprefix("./")
    folder = table[: table.rfind("/") + 1]
    inside = f"{table[: -len(suffix(table))]}/{name}"  # train.csv is about train/
    tails = [name[match.end() :] for match in re.finditer("/", name)]
    for form in (inside, folder + name, name, *tails):
        bare = form[: -len(suffix(form))] if is_image(form) else form
        for text in (form, bare, bare.casefold()):
            if places.get(text) is not None:
                return places[text]
    return None
