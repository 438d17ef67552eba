"""downloads.py against a real HTTP server on the loopback address that makes all usual trouble."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, make_folder, make_zip, picture
from PIL import Image

import datasets
import downloads
from datasets import InputError, load

CONTENT = np.random.default_rng(0).bytes(3500)


class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files = {}  # path -> content
        self.asked = []  # the Range header of each request, or None
        self.cut = []  # after how many bytes of the body the next connections break
        self.failing = 0  # how many of the next requests with a Range get a 503
        self.moved = {}  # path -> the path to which it is redirected
        self.html = False  # answer everything with a login page
        self.ranges = True  # can start in the middle of a file
        self.chunked = False  # does not tell how long a file is
        self.reached = threading.Event()  # set at a cut...
        self.go_on = threading.Event()  # ...which waits for this
        self.go_on.set()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = self.headers["Range"]
        server.asked.append(asked)
        if self.path in server.moved:
            self.answer(302, b"", "text/plain", location=server.moved[self.path])
        elif server.html:
            self.answer(200, b"<html>Please log in</html>", "text/html; charset=utf-8")
        elif self.path not in server.files:
            self.answer(404, b"not here", "text/plain")
        elif server.failing and asked:
            server.failing -= 1
            self.answer(503, b"later", "text/plain")
        elif asked and server.ranges:
            rest = server.files[self.path][int(asked.removeprefix("bytes=").removesuffix("-")) :]
            self.answer(206 if rest else 416, rest, "application/octet-stream")
        else:
            self.answer(200, server.files[self.path], "application/octet-stream")

    def answer(self, status, content, kind, location=None):
        server = self.server
        # Taken before the client hears anything, because then the test may go on and change it.
        cut = server.cut.pop(0) if server.cut and not location else None
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if location:
            self.send_header("Location", location)
        if server.chunked and status in (200, 206):
            self.send_header("Transfer-Encoding", "chunked")
            chunks = [content[i : i + 1000] for i in range(0, len(content), 1000)]
            chunks.append(b"")  # the end
            content = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None and cut < len(content):
            self.wfile.flush()
            server.reached.set()
            server.go_on.wait(60)
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.files["/f.bin"] = CONTENT
        yield server
        server.go_on.set()
        server.shutdown()


@pytest.fixture
def target(here):
    return here / "d/f.bin"


def is_content(path):
    return path.read_bytes() == CONTENT


def fetched(server, target, *paths):
    """Fetch /f.bin, or what lies at `paths`, and check that it is complete."""
    urls = [server.url + path for path in paths or ["/f.bin"]]
    assert downloads.fetch(urls, target, is_content) == target
    assert is_content(target) and names(target.parent) == ["f.bin"]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def refused(url, target, words):
    """fetch() fails in one line with these words and says what to do. Returns what it has left."""
    with pytest.raises(InputError, match=words) as caught:
        downloads.fetch([url], target, is_content)
    assert "\n" not in str(caught.value)
    assert f"download {url} yourself and put it at {target}" in str(caught.value)
    return names(target.parent)


# -------------------------------------------------------------------------------------------- fetch


def test_a_file_comes_once(server, target, capsys):
    fetched(server, target)
    fetched(server, target)
    assert server.asked == [None]
    assert capsys.readouterr().err == "downloading f.bin (0.0 MB)\n"


def test_the_second_address_serves_where_the_first_does_not(server, target):
    server.moved["/old"] = "/f.bin"
    server.files["/other"] = b"of another version"
    fetched(server, target, "/gone", "/other", "/old")


def test_what_was_wrong_with_the_first_address_is_told(server, target):
    server.files["/other"] = b"of another version"
    urls = [f"{server.url}/gone", f"{server.url}/other"]
    with pytest.raises(InputError, match=f"404.*download {urls[0]} yourself"):
        downloads.fetch(urls, target, is_content)
    with pytest.raises(InputError, match=f"checksum.*download {urls[1]} yourself"):
        downloads.fetch(urls[::-1], target, is_content)


@pytest.mark.parametrize(
    "trouble, asked",
    [
        ({"cut": [1000, 700, 1]}, [None, "bytes=1000-", "bytes=1700-", "bytes=1701-"]),
        ({"cut": [1000, 500], "ranges": False}, [None, "bytes=1000-", "bytes=500-"]),
        ({"cut": [1000], "failing": 2}, [None, *["bytes=1000-"] * 3]),
        ({"cut": [1500, 1200, 0, 700], "chunked": True}, None),
        ({"cut": [], "chunked": True}, [None]),
    ],
)
def test_a_broken_download_continues(server, target, trouble, asked, capsys):
    vars(server).update(trouble)
    fetched(server, target)
    assert asked is None or server.asked == asked
    length = "" if server.chunked else " (0.0 MB)"  # where the server does not tell it
    assert capsys.readouterr().err == f"downloading f.bin{length}\n"


@pytest.mark.parametrize(
    "trouble, words",
    [
        ({"cut": [1000, 0, 0, 0]}, "1,000 of 3,500 bytes; 1,000 bytes are kept for the next try"),
        ({"cut": [1000] * 20, "ranges": False}, "1,000 of 3,500 bytes"),
        ({"cut": [1000], "failing": 3}, "1,000 bytes; 1,000 bytes are kept"),
        ({"cut": [1500, 0, 0, 0], "chunked": True}, "1,\\d+ bytes; 1,\\d+ bytes are kept"),
    ],
)
def test_a_server_that_always_breaks_is_given_up_and_a_later_call_continues(
    server, target, trouble, words
):
    vars(server).update(trouble)
    left = refused(f"{server.url}/f.bin", target, f"the connection broke after {words}")
    assert left == ["f.bin.part"] and len(server.asked) == 4
    size = (target.parent / "f.bin.part").stat().st_size
    server.cut = []
    fetched(server, target)
    assert server.asked[4:] == [f"bytes={size}-"]


def test_a_part_that_is_complete_needs_no_more(server, target):
    target.parent.mkdir()
    (target.parent / "f.bin.part").write_bytes(CONTENT)
    fetched(server, target)
    assert server.asked == ["bytes=3500-"]


@pytest.mark.parametrize("left", [b"of another version", bytes(9999)])
def test_a_part_of_something_else_is_thrown_away(server, target, left):
    target.parent.mkdir()
    (target.parent / "f.bin.part").write_bytes(left)
    assert refused(f"{server.url}/f.bin", target, "wrong checksum") == []
    fetched(server, target)


def test_a_wrong_checksum_leaves_nothing(server, target):
    server.files["/f.bin"] = CONTENT[:-1] + b"x"
    url = f"{server.url}/f.bin"
    assert refused(url, target, "wrong checksum") == []
    target.write_bytes(b"put by hand")
    assert refused(url, target, "damaged or another version .* delete it") == ["f.bin"]
    assert target.read_bytes() == b"put by hand"


def test_pages_instead_of_the_file(server, target):
    url = f"{server.url}/f.bin"
    assert refused(f"{server.url}/gone", target, "404") == []
    server.html = True  # the login page of a hotel's network
    assert refused(url, target, "a web page came instead of the file") == []
    server.moved["/f.bin"] = "/login"
    (target.parent / "f.bin.part").write_bytes(CONTENT[:1000])
    assert refused(url, target, "a web page .* 1,000 bytes are kept") == ["f.bin.part"]
    server.html = False
    server.moved.clear()
    fetched(server, target)


def test_nobody_answers(target):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/f.bin"
        assert refused(url, target, "could not download f.bin .*refused") == []


def test_a_full_disk_keeps_what_came(server, target):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        words = r"could not download f.bin \('.*f.bin.part' cannot be written \(File too large"
        left = refused(f"{server.url}/f.bin", target, words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left == ["f.bin.part"]
    fetched(server, target)
    assert server.asked[1:] == ["bytes=2000-"]


def test_two_at_once_fetch_once(server, target, capsys):
    server.cut = [1000]
    server.go_on.clear()  # the first connection stands still after 1,000 bytes
    threads = [threading.Thread(target=fetched, args=(server, target)) for _ in range(2)]
    threads[0].start()
    assert server.reached.wait(30)
    threads[1].start()
    printed = ""
    deadline = time.monotonic() + 30
    while "another process is downloading f.bin" not in printed:
        assert time.monotonic() < deadline, printed
        time.sleep(0.01)
        printed += capsys.readouterr().err
    server.go_on.set()
    for thread in threads:
        thread.join(30)
    assert is_content(target) and server.asked == [None, "bytes=1000-"]


def test_kill_in_the_middle(server, target):
    server.cut = [1000]
    server.go_on.clear()
    code = """if True:
        import pathlib, sys, downloads
        downloads.fetch([sys.argv[1]], pathlib.Path(sys.argv[2]), lambda path: True)"""
    command = [sys.executable, "-c", code, f"{server.url}/f.bin", target]
    process = subprocess.Popen(command, cwd=ROOT)
    assert server.reached.wait(60)
    part = target.parent / "f.bin.part"
    deadline = time.monotonic() + 30
    while not part.exists() or part.stat().st_size < 1000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.go_on.set()
    assert not target.exists() and part.read_bytes() == CONTENT[:1000]
    fetched(server, target)
    assert server.asked == [None, "bytes=1000-"]


def test_git_blob_is_what_git_says(here):
    (here / "f").write_bytes(b"some\0bytes\n")
    command = ["git", "hash-object", "f"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert downloads.git_blob("f") == said
    assert downloads.git_blob_check(said)(here / "f")
    assert not downloads.git_blob_check(said[::-1])(here / "f")


# ----------------------------------------------------------------------------------- the named sets


def test_every_known_set_has_a_source():
    assert tuple(downloads.BY_HAND) == datasets.BY_HAND
    sources = {"cats64", "food64", *downloads.TORCHVISION, *downloads.BY_HAND}
    assert set(datasets.KNOWN) - {"shapes"} == sources


def png_bytes(seed):
    buffer = io.BytesIO()
    picture(seed, (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def tar_bytes(files, mode):
    """files: name -> content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def packed(folder, mode):
    """A .tar of a folder, as bytes."""
    files = {}
    for path in folder.rglob("*.*"):
        files[path.relative_to(folder.parent).as_posix()] = path.read_bytes()
    return tar_bytes(files, mode)


def test_cats64(server, here, monkeypatch):
    monkeypatch.setattr(downloads, "CATS64_URL", f"{server.url}/")
    for k, archive_name in enumerate(downloads.CATS64_BLOBS):
        files = {f"part/../../{i}.png": png_bytes(10 * k + i) for i in range(4)}  # evil names
        content = tar_bytes(files, "w:gz")
        server.files[f"/{archive_name}"] = content
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        monkeypatch.setitem(downloads.CATS64_BLOBS, archive_name, blob)
    server.cut = [100]
    data = load("cats64", 64)
    assert data.images.shape == (12, 3, 64, 64) and data.labels is None and data.name == "cats64"
    assert np.array_equal(data.images[5].permute(1, 2, 0), picture(11, (64, 64)))
    assert len(server.asked) == 4
    server.files.clear()
    assert len(load("cats64", 64).images) == 12  # prepared once
    assert len(load("cats64", 32).images) == 12  # archives that are there are used
    assert names(here) == ["data"]  # nothing was unpacked anywhere
    folder = here / "data/downloads/cats64"
    assert names(folder) == sorted(downloads.CATS64_BLOBS)
    with open(folder / "dataset-part2.tar.gz", "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="dataset-part2.*wrong checksum"):
        load("cats64", 16)


def idx_gz(array):
    """The bytes of an .idx.gz file like MNIST's: two zeros, the type (8: bytes), the number of
    dimensions, the dimensions, the values."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(head + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist(server, here, name, monkeypatch, capsys):
    dataset_class = downloads.TORCHVISION[name]
    rng = np.random.default_rng(0)
    arrays = []
    for n in (50, 20):
        arrays += [rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)]
    resources = []
    for (file, _), array in zip(dataset_class.resources, arrays, strict=True):
        content = idx_gz(array)
        server.files[f"/{file}"] = content
        resources.append((file, hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(dataset_class, "resources", resources)
    monkeypatch.setattr(dataset_class, "mirrors", [f"{server.url}/"])
    train = load(name, 32)
    test = load(name, 32, "test")
    for data, images, labels in ((train, *arrays[:2]), (test, *arrays[2:])):
        assert np.array_equal(data.images[:, 0, 2:-2, 2:-2], images)
        assert data.labels.tolist() == labels.tolist()
    assert capsys.readouterr().out == "" and train.held_out and len(train.classes) == 10

    # kill -9 during unpacking: the file is unpacked again, from the archive with the right checksum
    raw = here / "data/downloads" / dataset_class.__name__ / "raw"
    images_file = raw / "train-images-idx3-ubyte"
    images_file.write_bytes(images_file.read_bytes()[:-784] + bytes(784))
    assert np.array_equal(load(name, 28).images[:, 0], arrays[0])
    # unpacked files that somebody put there
    server.files.clear()
    archives = {path: path.read_bytes() for path in raw.glob("*.gz")}
    for path in archives:
        path.unlink()
    assert load(name, 64).images.shape == (50, 1, 64, 64)
    images_file.write_bytes(b"")  # damaged: the archives are asked for
    with pytest.raises(InputError, match="could not download train-images-idx3-ubyte.gz"):
        load(name, 16)
    # a damaged archive
    for path, content in archives.items():
        path.write_bytes(content)
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte.gz is damaged .* delete it"):
        load(name, 16)


@pytest.mark.parametrize("name", ["cifar10", "artbench10"])
def test_cifar10_and_artbench10(server, here, name, monkeypatch):
    dataset_class = downloads.TORCHVISION[name]
    file = dataset_class.filename
    rng = np.random.default_rng(0)
    images, labels, files = [], [], {}
    for batch in [f"data_batch_{i}" for i in (1, 2, 3, 4, 5)] + ["test_batch"]:  # six images each
        values = rng.integers(0, 256, (6, 3072), np.uint8)
        classes = rng.integers(0, 3, 6).tolist()
        images.append(values.reshape(6, 3, 32, 32))
        labels += classes
        content = pickle.dumps({"data": values, "labels": classes})
        files[f"{dataset_class.base_folder}/{batch}"] = content
    meta = dataset_class.meta
    content = pickle.dumps({meta["key"]: ["a", "b", "c"]})
    files[f"{dataset_class.base_folder}/{meta['filename']}"] = content
    archive = tar_bytes(files, "w:gz")
    server.files[f"/{file}"] = archive
    monkeypatch.setattr(dataset_class, "url", f"{server.url}/{file}")
    # These are not the published files. For CIFAR-10 the checksum of the archive tells, for
    # ArtBench-10 those of the files in it.
    words = "wrong checksum|'artbench10' cannot be read from .*python.tar.gz .*: delete it and try"
    with pytest.raises(InputError, match=words):
        load(name, 32)
    assert not list((here / "data").glob("*.npy"))

    monkeypatch.setattr(dataset_class, "tgz_md5", hashlib.md5(archive).hexdigest())
    exists = lambda path, md5: Path(path).exists()  # noqa: E731
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", exists)
    train = load(name, 32)
    test = load(name, 32, "test")
    assert np.array_equal(torch.cat([train.images, test.images]), np.concatenate(images))
    assert train.labels.tolist() + test.labels.tolist() == labels and len(test.images) == 6
    assert train.classes == ["a", "b", "c"]
    server.files.clear()
    (here / "data/downloads" / file).unlink()
    assert torch.equal(load(name, 16).labels, train.labels)  # from unpacked files, put by hand


def test_artbench10_above_32_pixels(server, here, monkeypatch):
    monkeypatch.setattr(downloads, "ARTBENCH_URL", f"{server.url}/")
    monkeypatch.setattr(downloads, "ARTBENCH_IMAGES", 8)
    files = []
    for folder in ("train/baroque", "train/ukiyo_e", "test/baroque", "test/ukiyo_e"):
        files += [f"{folder}/0.jpg", f"{folder}/1.jpg"]
    folder = make_folder(here / "artbench-10-imagefolder-split", files, size=(256, 256))
    archive = packed(folder, "w")
    path = "/artbench-10-imagefolder-split.tar"
    blocks = len(archive) // 3 // 512
    for broken in (archive[: len(archive) // 2], archive[: 512 * blocks], b"", b"no tar"):
        server.files[path] = broken
        with pytest.raises(InputError, match="wrong checksum|could not download"):
            load("artbench10", 64)
    server.files[path] = archive
    by_name = load("artbench10", 64)
    by_path = load(folder, 64)
    assert torch.equal(by_name.images, by_path.images) and len(by_name.images) == 4
    assert torch.equal(by_name.labels, by_path.labels) and by_name.held_out
    assert by_name.classes == ["baroque", "ukiyo_e"]
    assert load("artbench10", 256, "all").images.shape == (8, 3, 256, 256)
    assert names(here / "data/downloads") == [path[1:]]  # nothing is unpacked


def test_animals_put_by_hand(here, capsys):
    words = "cannot be downloaded.*Kaggle.*put it at data/downloads/animals.zip"
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            load("animals", 16)
    files = []
    for folder in ("train/cat", "train/dog", "val/cat", "val/dog", "other"):
        files += [f"animals/{folder}/0.png", f"animals/{folder}/1.png"]
    folder = make_folder(here / "x", files)
    (here / "data/downloads").mkdir(parents=True)
    path = make_zip(folder, here / "data/downloads/animals.zip")
    train = load("animals", 16)
    test = load("animals", 16, "test")
    assert "2 images outside train/ and val/ are not used" in capsys.readouterr().err
    assert len(train.images) == len(test.images) == 4 and train.held_out
    assert train.classes == ["cat", "dog"] and train.name == "animals"
    path.unlink()
    assert torch.equal(load("animals", 16).images, train.images)  # what is prepared stays
    with pytest.raises(InputError, match="cannot be downloaded"):
        load("animals", 32)
    make_zip(make_folder(here / "y", ["p/1.png", "q/1.png"]), path)
    assert load("animals", 16).classes == ["p", "q"]  # another file: prepared again
    (folder / "animals").rename(here / "data/downloads/animals")  # unpacked
    assert torch.equal(load("animals", 16).images, train.images)


def make_food(folder):
    """A small food-101: the later images of each class are in the published test part."""
    lists = {"train": {}, "test": {}}
    for name, count in (("apple_pie", 25), ("baklava", 24), ("churros", 3)):
        files = [f"{name}/{1000 + i}" for i in range(count)]
        make_folder(folder / "images", [f"{file}.jpg" for file in files], size=(64, 48))
        lists["train"][name] = files[: count * 3 // 4]
        lists["test"][name] = files[count * 3 // 4 :]
    (folder / "meta").mkdir()
    for part, names_by_class in lists.items():
        (folder / f"meta/{part}.json").write_text(json.dumps(names_by_class))
    return folder


def test_food64_put_by_hand(here):
    folder = make_food(here / "data/downloads/food-101")
    source = downloads.named_source("food64", 64)
    labels = torch.tensor(source.labels)
    split = torch.tensor(source.split)
    assert source.classes == ["apple_pie", "baklava", "churros"] and len(set(source.names)) == 52
    assert torch.bincount(labels[split == 0]).tolist() == [5, 4, 1]  # one stays for training
    assert torch.bincount(labels[split == 1]).tolist() == [20, 20, 2]
    assert source.read(25) == Image.open(folder / "images/baklava/1000.jpg") and labels[25] == 1
    assert len(load("food64", 16).images) == 10 and len(load("food64", 16, "test").images) == 42
    # neither the order in the lists nor the published split matters
    lists = [json.loads((folder / f"meta/{part}.json").read_text()) for part in ("test", "train")]
    for part, names_by_class in zip(("train", "test"), lists, strict=True):
        mixed = {name: names_by_class[name][::-1] for name in reversed(names_by_class)}
        (folder / f"meta/{part}.json").write_text(json.dumps(mixed))
    assert downloads.named_source("food64", 64).split == source.split


def test_classes_of_one_size_hold_out_images_at_other_places():
    split = downloads.held_out_of_each_class([0] * 25 + [1] * 25, 20)
    assert split[:25] != split[25:] and sum(split[:25]) == sum(split[25:]) == 20


def test_food64(server, here, monkeypatch, capsys):
    archive = packed(make_food(here / "food-101"), "w:gz")
    md5 = hashlib.md5(archive).hexdigest()
    monkeypatch.setattr(downloads, "FOOD101_URL", f"{server.url}/food-101.tar.gz")
    monkeypatch.setattr(downloads, "FOOD101_MD5", md5)
    monkeypatch.setattr(torchvision.datasets.Food101, "_MD5", md5)
    folder = here / "data/downloads/food-101"
    words = "could not download food-101.tar.gz .*404.*yourself and put it at data/downloads/food-"
    with pytest.raises(InputError, match=words):
        load("food64", 64)
    server.files["/food-101.tar.gz"] = archive
    server.cut = [5000, 0, 0, 0]
    with pytest.raises(InputError, match="broke after 5,000 of"):
        load("food64", 64)
    assert not folder.exists()

    extractall = tarfile.TarFile.extractall

    def interrupted(self, *args, **kwargs):
        members = [member for member in self if "baklava" not in member.name]
        extractall(self, *args, members=members, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tarfile.TarFile, "extractall", interrupted)
        load("food64", 64)
    assert server.asked[-1] == "bytes=5000-"
    assert not folder.exists() and not list((here / "data").glob("food64*.np*"))
    server.files.clear()
    assert len(load("food64", 64, "all").images) == 52 and folder.exists()
    assert capsys.readouterr().out == ""

    (folder / "images/apple_pie/1007.jpg").unlink()  # as kill -9 during unpacking leaves it
    with pytest.raises(InputError, match="lacks 1 of its 52 images: delete it and try again"):
        load("food64", 32)
    (folder / "meta/test.json").write_text("{")
    with pytest.raises(InputError, match="delete it, or unpack food-101.tar.gz into") as caught:
        load("food64", 32)
    assert "\n" not in str(caught.value) and not list((here / "data").glob("food64-32.np*"))


# --------------------------------------------------------------------------------- hostile archives


def test_names_that_leave_the_folder_do_nothing(here, monkeypatch):
    """Archives are read in memory, so a name is never used as a path."""
    with zipfile.ZipFile("x.zip", "w") as archive:
        for name in ("../evil.png", "a/../../evil.png", "good.png"):
            archive.writestr(name, png_bytes(0))
    before = sorted(here.parent.rglob("*"))
    (here / "inside").mkdir()
    monkeypatch.chdir("inside")
    assert len(load("../x.zip", 16).images) == 1
    shutil.rmtree(here / "inside")
    assert sorted(here.parent.rglob("*")) == before


def test_a_bomb_of_pixels_is_skipped(here):
    """A small PNG that says it has 65,000 x 65,000 pixels."""
    folder = make_folder(here / "d", [f"{i:03d}.png" for i in range(120)], size=(8, 8))
    content = bytearray((folder / "000.png").read_bytes())
    content[16:24] = struct.pack(">2I", 65000, 65000)  # width and height, in the chunk IHDR...
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))  # ...and its checksum
    (folder / "000.png").write_bytes(content)
    assert len(load(folder, 8).images) == 119
    info = json.loads(next((here / "data").glob("d-*.json")).read_text())
    assert "decompression bomb" in info["skipped"][0]
