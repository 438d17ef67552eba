"""downloads.py: where the named data sets come from.

When somebody asks for a named set that is not prepared yet, datasets.py imports this file and calls
`named_source`. Downloads go to data/downloads:

    name                            source                            how a file is verified
    cats64                          3 archives, in a git repository   by its git blob id
    food64                          Food-101, an archive of 5 GB      by its MD5
    mnist, fashion-mnist, cifar10   the archives torchvision knows    by their MD5
    artbench10, up to 32 pixels     an archive in CIFAR-10's format   by the MD5 of each file in it
    artbench10, above               a .tar of 256x256 images          all 60,000 images are there
    animals                         Kaggle, behind a login            not at all: you download it

If a connection breaks, the download continues where it stopped, at once or in a later call. You can
also download an archive yourself and put it where the error message says.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import shutil
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST, Food101
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from folders import MAX_FILE, from_files, is_image
from sources import InputError, Source, array_source, locked, short, writing

DOWNLOADS = Path("data") / "downloads"

# Sets that no program can fetch: where to get them, and where to put them.
BY_HAND = {
    "animals": "get the zip of 'antobenedetti/animals' from Kaggle (a login is needed) and put it "
    "at data/downloads/animals.zip, or its folder at data/downloads/animals",
}


def named_source(name, size):
    """The Source of a named set, downloaded if it is not there yet.

    size: the side of the images in pixels; only artbench10 has files of more than one size.
    Raises InputError if the download fails or the files are damaged. Its one line says what to do.
    """
    if name in BY_HAND:
        raise InputError(f"'{name}' cannot be downloaded by this program: {BY_HAND[name]}")
    if name == "cats64":
        return cats64_source()
    if name == "food64":
        return food101_source()
    if name == "artbench10" and size > 32:
        return artbench_source()
    return torchvision_source(name)


# ------------------------------------------------------------------------------------- downloading


def fetch(urls, path, check):
    """Download the file `path` from the first of `urls` that serves it, unless it is there already.

    check(path) -> bool tells whether a file is the right one. Only a complete file that passes gets
    the name `path`; until then <path>.part keeps what has arrived, and a later call continues it.
    Returns path. Raises InputError, which says where to put a file that you download yourself.
    """
    by_hand = f"download {urls[0]} yourself and put it at {path}"
    partial = Path(f"{path}.part")

    def is_there():
        if path.exists() and not check(path):
            raise InputError(
                f"{path} is damaged or another version (wrong checksum): delete it, or {by_hand}"
            )
        return path.exists()

    if is_there():  # checked before anything is written: the folder may be read-only
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"another process is downloading {path.name}; waiting for it"
    with locked(f"{path}.lock", wait=waiting):
        if is_there():
            return path
        error = receive_from_any(urls, partial, check)
        if error is not None:
            kept = ""
            if partial.exists():
                kept = f"; {partial.stat().st_size:,} bytes are kept for the next try"
            raise InputError(f"could not download {path.name} ({short(error)}{kept}): {by_hand}")
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    return path


def receive_from_any(urls, partial, check):
    """Try one address after the other until a file passes the check.

    Returns None, or the error of the first address if none of them has the right file.
    """
    first_error = None
    for url in urls:
        try:
            receive(url, partial)
        except (OSError, http.client.HTTPException) as error:
            first_error = first_error or error
            continue
        if check(partial):
            return None
        partial.unlink()
        first_error = first_error or OSError("the file that came has a wrong checksum")
    return first_error


def receive(url, partial, patience=3):
    """Append to the file `partial` what it still lacks of `url`.

    If the connection breaks, connect again and continue. Give up when `patience` attempts in a row
    have brought nothing new. Raises OSError or http.client.HTTPException.
    """
    failures = 0  # attempts in a row
    furthest = 0  # the largest size that was reached, in bytes
    announced = False
    while True:
        size = partial.stat().st_size if partial.exists() else 0
        total = None  # the size of the whole file, if the server tells it
        complete = False
        headers = {"Range": f"bytes={size}-"} if size else {}
        try:
            reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
        except OSError as error:
            status = getattr(error, "code", 500)  # no answer may pass, like a server in trouble
            if status == 416 and size:  # nothing lies beyond: the file is complete, or not ours
                return
            if status < 500 or not size:
                raise
        else:
            with reply:
                if reply.headers.get_content_type() == "text/html":
                    raise OSError("a web page came instead of the file: a network's login page?")
                if reply.status != 206:  # this server cannot start in the middle
                    size = 0
                length = reply.headers.get("Content-Length")
                if length:
                    total = size + int(length)
                if not announced:
                    megabytes = f" ({total / 1e6:,.1f} MB)" if total else ""
                    print(f"downloading {partial.stem}{megabytes}", file=sys.stderr)
                    announced = True
                size, complete = append(reply, partial, size, total)
        if complete:
            return
        failures = 0 if size > furthest else failures + 1
        furthest = max(furthest, size)
        if failures == patience:
            expected = f" of {total:,}" if total else ""
            raise OSError(f"the connection broke after {size:,}{expected} bytes")
        time.sleep(failures)


def append(reply, partial, start, total):
    """Write the body of an HTTP reply to the file `partial`, from byte `start` on.

    total: the size of the whole file in bytes, or None. Returns (the size reached, whether the file
    is complete). A broken connection is no error here, so an OSError is the disk's.
    """
    mode = "ab" if start else "wb"
    name = partial.stem
    bar = tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True, disable=None)
    with writing(partial), open(partial, mode) as file, bar:
        while True:
            try:
                chunk = reply.read1(2**16)
            except (OSError, http.client.HTTPException):
                return file.tell(), False
            if not chunk:
                return file.tell(), total in (None, file.tell())
            file.write(chunk)
            file.flush()  # so that kill -9 loses nothing
            bar.update(len(chunk))


def md5_check(md5):
    """A check for `fetch`: the file has this MD5 (in hex). None accepts any file."""
    return lambda path: check_integrity(str(path), md5)


def git_blob_check(blob):
    """A check for `fetch`: git stores the file under this id."""
    return lambda path: git_blob(path) == blob


def git_blob(path):
    """The id that git gives a file: SHA-1 of "blob SIZE", a zero byte and the content, in hex."""
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# ------------------------------------------------------------------------------------------ cats64

CATS64_URL = (
    "https://raw.githubusercontent.com/fferlito/Cat-faces-dataset/"
    "c1bd9976b1b9fd31ce53de42b422febf60503aac/"
)
CATS64_BLOBS = {  # archive -> its git blob id
    "dataset-part1.tar.gz": "d7c478c476f83df2408b02d34ba32cff8a06dbdf",
    "dataset-part2.tar.gz": "7acb443f4d5bb64a8ba2273764b249e5d21251e8",
    "dataset-part3.tar.gz": "0defae414292f0fbc9714515a88d5683be62a9b3",
}


def cats64_source():
    """29,843 cat faces in three archives, as published: about a fifth are exact duplicates."""
    names = []
    contents = []  # the bytes of each image file: archives are read in memory, never unpacked
    for archive_name, blob in CATS64_BLOBS.items():
        path = DOWNLOADS / "cats64" / archive_name
        fetch([CATS64_URL + archive_name], path, git_blob_check(blob))
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name  # the folders mean nothing: all are of one class
                if member.isfile() and is_image(name) and member.size <= MAX_FILE:
                    names.append(name)
                    contents.append(archive.extractfile(member).read())
    return from_files(names, lambda i: Image.open(io.BytesIO(contents[i])), "cats64")


# ------------------------------------------------------------------------------------------ food64

FOOD101_URL = "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"
FOOD101_MD5 = "85eeb15f3717b99a5da872d97d918f87"


def food101_source():
    """Food-101 (Bossard et al. 2014): 1,000 photographs of each of 101 dishes.

    The split is not the published one (750 and 250 of each class) but that of the report which we
    reproduce: 20 random images of each class are for testing (2,020 together), all others for
    training. It depends on the names of the files only.
    """
    folder = DOWNLOADS / "food-101"
    by_hand = (
        f"unpack food-101.tar.gz into {DOWNLOADS}, so that {folder / 'images'} and "
        f"{folder / 'meta'} are there"
    )
    names = set()
    try:
        unpack_food101(folder)
        for part in ("train", "test"):
            # {"apple_pie": ["apple_pie/1005649", ...], ...}
            names_by_class = json.loads((folder / "meta" / f"{part}.json").read_text("utf-8"))
            for class_names in names_by_class.values():
                names.update(f"{name}.jpg" for name in class_names)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"'food64' cannot be read from {folder} ({short(error)}): delete it, or {by_hand}"
        ) from None
    names = sorted(names)  # the order in the lists must not matter
    files = [folder / "images" / name for name in names]
    missing = sum(not file.exists() for file in files)
    if missing or not names:  # kill -9 during unpacking leaves such a folder
        raise InputError(
            f"{folder} lacks {missing} of its {len(names)} images: delete it and try again, "
            f"or {by_hand}"
        )
    class_of = [name.split("/")[0] for name in names]
    classes = sorted(set(class_of))
    labels = [classes.index(name) for name in class_of]
    split = held_out_of_each_class(labels, 20)
    return Source(names, lambda i: Image.open(files[i]), labels, classes, split)


def unpack_food101(folder):
    """Fetch Food-101 and let torchvision unpack it into `folder`, unless that is there already."""
    if not folder.exists():
        fetch([FOOD101_URL], DOWNLOADS / "food-101.tar.gz", md5_check(FOOD101_MD5))
    waiting = "another process is unpacking food-101; waiting for it"
    with locked(DOWNLOADS / "food-101.lock", wait=waiting):
        if folder.exists():
            return
        print("unpacking food-101.tar.gz", file=sys.stderr)
        try:
            Food101(DOWNLOADS, download=True)
        except BaseException:  # Ctrl-C too: torchvision believes any folder, complete or not
            shutil.rmtree(folder, ignore_errors=True)
            raise


def held_out_of_each_class(labels, count):
    """Hold out `count` random images of each class, but leave each class one for training.

    labels: list of ints. Returns the split as a list: 0 (train) or 1 (test) for each image.
    """
    labels = torch.tensor(labels)
    split = torch.zeros_like(labels)
    for label in labels.unique().tolist():
        indices = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(label))
        chosen = order[: min(count, len(indices) - 1)]
        split[indices[chosen]] = 1
    return split.tolist()


# -------------------------------------------------------------------------------------- artbench10

ARTBENCH_URL = "https://artbench.eecs.berkeley.edu/files/"
ARTBENCH_IMAGES = 60_000


class ArtBench10(CIFAR10):
    """ArtBench-10 (Liao et al. 2022, github.com/liaopeiyuan/artbench) in CIFAR-10's format, 32x32.

    tgz_md5 is None because two versions of the archive are in circulation. Both hold the same
    files, whose MD5s are below.
    """

    base_folder = "artbench-10-batches-py"
    filename = "artbench-10-python.tar.gz"
    url = ARTBENCH_URL + filename
    tgz_md5 = None
    train_list = [
        ["data_batch_1", "c2e02a78dcea81fe6fead5f1540e542f"],
        ["data_batch_2", "1102a4dcf41d4dd63e20c10691193448"],
        ["data_batch_3", "177fc43579af15ecc80eb506953ec26f"],
        ["data_batch_4", "566b2a02ccfbafa026fbb2bcec856ff6"],
        ["data_batch_5", "faa6a572469542010a1c8a2a9a7bf436"],
    ]
    test_list = [["test_batch", "fa44530c8b8158467e00899609c19e52"]]
    meta = {"filename": "meta", "key": "styles", "md5": "5bdcafa7398aa6b75d569baaec5cd4aa"}


def artbench_source():
    """ArtBench-10 at 256x256: one .tar of folders train/ and test/, which is never unpacked.

    No checksum of it is published, so the right file is one in which all the images are there.
    """
    path = DOWNLOADS / "artbench-10-imagefolder-split.tar"
    url = ARTBENCH_URL + path.name
    fetch([url], path, lambda path: len(images_in_tar(path)) == ARTBENCH_IMAGES)
    members = images_in_tar(path)

    def read(i):  # several threads call it at once, so each call opens the file itself
        with open(path, "rb") as file:
            file.seek(members[i].offset_data)
            content = file.read(members[i].size)
        return Image.open(io.BytesIO(content))

    return from_files([member.name for member in members], read, path)


def images_in_tar(path):
    """The image files in an uncompressed .tar, sorted by name; [] if it is damaged or cut short."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive if member.isfile() and is_image(member.name)]
    except tarfile.TarError:
        return []
    return sorted(members, key=lambda member: member.name)


# ----------------------------------------------------------------------------- torchvision's sets

TORCHVISION = {
    "mnist": MNIST,
    "fashion-mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "artbench10": ArtBench10,
}
# What torchvision's readers raise for files that are missing or damaged.
FILE_ERRORS = (OSError, RuntimeError, EOFError, ValueError, AssertionError, tarfile.TarError)


def torchvision_source(name):
    """A set whose archives torchvision knows and reads.

    `fetch` downloads them, because torchvision itself cannot continue a broken download.
    """
    dataset_class = TORCHVISION[name]
    is_mnist = hasattr(dataset_class, "resources")  # or Fashion-MNIST
    archives = archives_of(dataset_class)
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    waiting = f"another process is fetching {name}; waiting for it"
    with locked(DOWNLOADS / f"{name}.lock", wait=waiting):
        try:
            # Use files that are unpacked already. Those of CIFAR-10 have checksums. Those of MNIST
            # do not, so we trust them only if their archives are missing: then somebody put them
            # there by hand, and kill -9 cannot have cut short the unpacking.
            if not is_mnist or not any(path.exists() for path, _, _ in archives):
                with contextlib.suppress(*FILE_ERRORS):
                    return read_torchvision(dataset_class, download=False)
            for path, urls, md5 in archives:
                fetch(urls, path, md5_check(md5))
                if is_mnist:
                    path.with_suffix("").unlink(missing_ok=True)  # the next line unpacks it again
            return read_torchvision(dataset_class, download=True)
        except FILE_ERRORS as error:
            place = archives[0][0].parent if is_mnist else archives[0][0]
            raise InputError(
                f"'{name}' cannot be read from {place} ({short(error)}): delete it and try again"
            ) from None


def archives_of(dataset_class):
    """The archives of a torchvision data set: a list of (path, addresses, MD5)."""
    if not hasattr(dataset_class, "resources"):  # CIFAR-10 and its kin have one
        path = DOWNLOADS / dataset_class.filename
        return [(path, [dataset_class.url], dataset_class.tgz_md5)]
    folder = DOWNLOADS / dataset_class.__name__ / "raw"
    archives = []
    for file, md5 in dataset_class.resources:
        urls = [mirror + file for mirror in dataset_class.mirrors]
        archives.append((folder / file, urls, md5))
    return archives


def read_torchvision(dataset_class, download):
    """Read the training and the test part of a torchvision data set -> Source.

    download: unpack the archives, which `fetch` has put in place; otherwise the unpacked files must
    be there. Raises one of FILE_ERRORS if files are missing or damaged.
    """
    train = dataset_class(DOWNLOADS, train=True, download=download)
    test = dataset_class(DOWNLOADS, train=False, download=download)
    images = np.concatenate([np.asarray(train.data), np.asarray(test.data)])
    labels = [int(label) for label in [*train.targets, *test.targets]]
    split = [0] * len(train.data) + [1] * len(test.data)
    return array_source(images, labels, [str(name) for name in train.classes], split)
