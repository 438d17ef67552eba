"""datasets.py fetches: from a real HTTP server on the loopback address, which misbehaves in all the usual ways."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import pickle
import signal
import socket
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
from conftest import ROOT
from test_datasets import food_tree, make_folder, make_zip, picture

import datasets
from datasets import InputError, fetch, load


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append((self.path, asked))
        if self.path in server.moved:
            self.send_response(302)
            self.send_header("Location", server.moved[self.path])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if server.html:
            return self.answer(200, b"<html>Please log in</html>", "text/html; charset=utf-8")
        if self.path not in server.files:
            return self.answer(404, b"not here", "text/plain")
        content = server.files[self.path]
        if server.failing and asked:
            server.failing -= 1
            return self.answer(503, b"later", "text/plain")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else None
        if start is not None and start >= len(content):
            return self.answer(416, b"", "text/plain")
        self.answer(200 if start is None else 206, content[start or 0 :], "application/octet-stream")

    def answer(self, status, content, kind):
        cut = self.server.cut.pop(0) if self.server.cut else None  # before the client, and so the test, hears anything
        self.send_response(status)
        self.send_header("Content-Type", kind)
        chunked = self.server.chunked and status in (200, 206)
        self.send_header(*("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(content))))
        self.end_headers()
        if chunked:  # its length is not said beforehand; the last chunk of 0 bytes is the end
            parts = [content[i : i + 1000] for i in range(0, len(content), 1000)]
            content = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
        self.wfile.write(content[:cut])
        if cut is not None and cut < len(content):
            self.wfile.flush()
            self.server.reached.set()
            self.server.go_on.wait(60)
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """files: path -> content. asked: [(path, Range header)]. cut: after how many bytes the next connections break.
    failing: how many of the next tries to go on get a 503."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.cut, server.moved, server.html, server.ranges = {}, [], [], {}, False, True
        server.failing, server.chunked = 0, False
        server.reached, server.go_on = threading.Event(), threading.Event()
        server.go_on.set()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
        yield server
        server.go_on.set()
        server.shutdown()


CONTENT = np.random.default_rng(0).bytes(3500)


def is_content(path):
    return path.read_bytes() == CONTENT


def ranges(server):
    return [asked for _, asked in server.asked]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def refused(server, here, words, urls=None, check=is_content):
    """fetch() ends in one line with these words and says what to do by hand; returns what it left."""
    with pytest.raises(InputError, match=words) as caught:
        fetch(urls or [f"{server.url}/f.bin"], here / "d/f.bin", check)
    assert "\n" not in str(caught.value) and f"yourself and put it at {here / 'd/f.bin'}" in str(caught.value)
    return names(here / "d")


def test_a_file_comes_once(server, here, capsys):
    server.files["/f.bin"] = CONTENT
    for _ in range(2):
        assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))
    assert ranges(server) == [None] and names(here / "d") == ["f.bin"]
    assert capsys.readouterr().err == "downloading f.bin (0.0 MB)\n"


def test_the_second_address_serves_where_the_first_does_not(server, here):
    server.files["/f.bin"], server.moved["/old"] = CONTENT, "/f.bin"
    server.files["/other"] = b"of another version"
    urls = [f"{server.url}/gone", f"{server.url}/other", f"{server.url}/old"]
    assert is_content(fetch(urls, here / "d/f.bin", is_content))


def test_a_cut_connection_is_taken_up_again(server, here):
    server.files["/f.bin"], server.cut = CONTENT, [1000, 700, 1]
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))
    assert ranges(server) == [None, "bytes=1000-", "bytes=1700-", "bytes=1701-"]


def test_a_later_call_goes_on(server, here):
    server.files["/f.bin"], server.cut = CONTENT, [1000, 0, 0, 0]
    left = refused(server, here, "broke after 1,000 of 3,500 bytes; 1,000 bytes are kept for the next try")
    assert left == ["f.bin.part"]
    server.asked.clear()
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))
    assert ranges(server) == ["bytes=1000-"] and names(here / "d") == ["f.bin"]


def test_a_server_that_cannot_begin_in_the_middle(server, here):
    server.files["/f.bin"], server.cut, server.ranges = CONTENT, [1000, 500], False
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))


@pytest.mark.parametrize("cut", [[], [1500], [1500, 1200, 0, 700]])
def test_a_reply_that_does_not_say_its_length(server, here, cut, capsys):
    server.files["/f.bin"], server.cut, server.chunked = CONTENT, cut, True
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))
    assert capsys.readouterr().err == "downloading f.bin\n"
    server.cut = [1500, 0, 0, 0]
    with pytest.raises(InputError, match="the connection broke after 1,\\d+ bytes; 1,\\d+ bytes are kept"):
        fetch([f"{server.url}/f.bin"], here / "d/g.bin", is_content)


def test_a_server_that_always_breaks_is_given_up(server, here):
    server.files["/f.bin"], server.cut, server.ranges = CONTENT, [1000] * 20, False
    refused(server, here, "broke after 1,000 of 3,500 bytes")
    assert len(server.asked) == 4


def test_a_server_in_trouble_is_asked_again(server, here):
    server.files["/f.bin"], server.cut, server.failing = CONTENT, [1000], 2
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))
    server.cut, server.failing = [1000], 3
    with pytest.raises(InputError, match="connection broke after 1,000 bytes"):
        fetch([f"{server.url}/f.bin"], here / "d/g.bin", is_content)


def test_a_part_that_is_whole_needs_no_more(server, here):
    server.files["/f.bin"] = CONTENT
    (here / "d").mkdir()
    (here / "d/f.bin.part").write_bytes(CONTENT)
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))
    assert ranges(server) == ["bytes=3500-"]


@pytest.mark.parametrize("left", [b"of another version", bytes(9999)])
def test_a_part_of_something_else_is_thrown_away(server, here, left):
    server.files["/f.bin"] = CONTENT
    (here / "d").mkdir()
    (here / "d/f.bin.part").write_bytes(left)
    assert refused(server, here, "wrong checksum") == []
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))


def test_a_wrong_checksum_leaves_nothing(server, here):
    server.files["/f.bin"] = CONTENT[:-1] + b"x"
    assert refused(server, here, "wrong checksum") == []
    (here / "d/f.bin").write_bytes(b"put by hand")
    assert refused(server, here, "damaged or another version .* delete it") == ["f.bin"]
    assert (here / "d/f.bin").read_bytes() == b"put by hand"


def test_pages_in_place_of_the_file(server, here):
    assert refused(server, here, "404") == []
    server.html = True  # the login page of a hotel's network
    assert refused(server, here, "a web page came instead of the file") == []
    server.moved["/f.bin"] = "/login"
    (here / "d/f.bin.part").write_bytes(CONTENT[:1000])
    assert refused(server, here, "a web page .* 1,000 bytes are kept") == ["f.bin.part"]
    server.html = False
    server.moved.clear()
    server.files["/f.bin"] = CONTENT
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))


def test_nobody_answers(server, here):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}/f.bin"
        assert refused(server, here, "could not download f.bin .*refused", [closed]) == []


def test_a_full_disk_keeps_what_came(server, here):
    resource = pytest.importorskip("resource")
    server.files["/f.bin"] = CONTENT
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        left = refused(server, here, "could not download f.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left == ["f.bin.part"]
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))
    assert ranges(server)[1:] == ["bytes=2000-"]


def test_two_at_once_fetch_once(server, here, capsys):
    server.files["/f.bin"], server.cut = CONTENT, [1000]
    server.go_on.clear()  # the first connection stands still after 1,000 bytes
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content)))
        for _ in "ab"
    ]
    threads[0].start()
    assert server.reached.wait(30)
    threads[1].start()
    said = ""
    for _ in range(3000):
        if "another process is downloading f.bin" in (said := said + capsys.readouterr().err):
            break
        time.sleep(0.01)
    else:
        pytest.fail(said)
    server.go_on.set()
    for thread in threads:
        thread.join(30)
    assert found == [here / "d/f.bin"] * 2 and ranges(server) == [None, "bytes=1000-"]


def test_kill_in_the_middle(server, here):
    server.files["/f.bin"], server.cut = CONTENT, [1000]
    server.go_on.clear()
    code = "import pathlib, sys, datasets; datasets.fetch(sys.argv[1:2], pathlib.Path(sys.argv[2]), lambda path: True)"
    command = [sys.executable, "-c", code, f"{server.url}/f.bin", here / "d/f.bin"]
    process = subprocess.Popen(command, cwd=ROOT)
    assert server.reached.wait(60)
    part = here / "d/f.bin.part"
    for _ in range(3000):
        if part.exists() and part.stat().st_size == 1000:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.go_on.set()
    assert not (here / "d/f.bin").exists() and part.read_bytes() == CONTENT[:1000]
    assert is_content(fetch([f"{server.url}/f.bin"], here / "d/f.bin", is_content))
    assert ranges(server) == [None, "bytes=1000-"]


# -------------------------------------------------------------------------------------------------- the named sets


def packed(folder, mode):
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode=mode) as archive:
        for file in sorted(folder.rglob("*")):
            archive.add(file, file.relative_to(folder.parent), recursive=False)
    return buffer.getvalue()


def test_cats64(server, here, monkeypatch):
    monkeypatch.setattr(datasets, "CATS64", f"{server.url}/")
    for i, file in enumerate(datasets.CATS64_BLOBS):
        folder = make_folder(here / f"part{i}", [f"{k}.png" for k in range(3)], size=(64, 64))
        content = server.files[f"/{file}"] = packed(folder, "w:gz")
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        monkeypatch.setitem(datasets.CATS64_BLOBS, file, blob)
    server.cut = [100]
    data = load("cats64", 64)
    assert data.images.shape == (9, 3, 64, 64) and data.labels is None and len(server.asked) == 4
    assert torch.equal(data.images[0], torch.from_numpy(np.array(picture(0, (64, 64)))).permute(2, 0, 1))
    server.files.clear()
    assert len(load("cats64", 64).images) == 9  # prepared once
    assert len(load("cats64", 32).images) == 9  # downloaded once


def idx(array):
    """The bytes of an .idx.gz file, as MNIST's: two zeros, the type (8: bytes), the dimensions, the values."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(head + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist(server, here, name, monkeypatch, capsys):
    make = {"mnist": torchvision.datasets.MNIST, "fashion-mnist": torchvision.datasets.FashionMNIST}[name]
    rng, arrays = np.random.default_rng(0), []
    for n in (50, 20):
        arrays += [rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)]
    resources = []
    for (file, _), array in zip(make.resources, arrays, strict=True):
        server.files[f"/{file}"] = idx(array)
        resources.append((file, hashlib.md5(server.files[f"/{file}"]).hexdigest()))
    monkeypatch.setattr(make, "resources", resources)
    monkeypatch.setattr(make, "mirrors", [f"{server.url}/"])
    train, test = load(name, 32), load(name, 32, "test")
    for data, images, labels in (train, *arrays[:2]), (test, *arrays[2:]):
        assert np.array_equal(data.images[:, 0, 2:-2, 2:-2], images) and data.labels.tolist() == labels.tolist()
    assert capsys.readouterr().out == "" and train.held_out and len(train.classes) == 10

    # kill -9 while a file was unpacked: it is unpacked again, from the archive whose checksum is right
    raw = here / "data/downloads" / make.__name__ / "raw"
    whole = (raw / "train-images-idx3-ubyte").read_bytes()
    (raw / "train-images-idx3-ubyte").write_bytes(whole[:-784] + bytes(784))
    assert np.array_equal(load(name, 28).images[:, 0], arrays[0])
    server.files.clear()
    for path in raw.glob("*.gz"):
        path.rename(path.with_suffix(".away"))
    assert np.array_equal(load(name, 64).images.shape, (50, 1, 64, 64))  # unpacked files, put there by hand
    for path in raw.glob("*.away"):
        path.rename(path.with_suffix(".gz"))
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte.gz is damaged .* delete it"):
        load(name, 16)


def cifar_archive(folder, batches, meta, key, rng):
    """A .tar.gz in the format of CIFAR-10, with six images in each batch; returns it, the images, the labels."""
    parts = []
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:gz") as archive:

        def add(name, content):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        for name in batches:
            images, labels = rng.integers(0, 256, (6, 3072), np.uint8), rng.integers(0, 3, 6).tolist()
            parts.append((images.reshape(6, 3, 32, 32), labels))
            add(name, pickle.dumps({"data": images, "labels": labels}))
        add(meta, pickle.dumps({key: ["a", "b", "c"]}))
    return buffer.getvalue(), np.concatenate([p[0] for p in parts]), sum((p[1] for p in parts), [])


@pytest.mark.parametrize("name", ["cifar10", "artbench10"])
def test_cifar10_and_artbench10(server, here, name, monkeypatch):
    cifar = torchvision.datasets.CIFAR10
    settings = (cifar.base_folder, "batches.meta", "label_names")
    if name == "artbench10":
        monkeypatch.setattr(datasets, "ARTBENCH", f"{server.url}/")
        settings = ("artbench-10-batches-py", "meta", "styles")
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    archive, images, labels = cifar_archive(settings[0], batches, *settings[1:], np.random.default_rng(0))
    file = {"cifar10": cifar.filename, "artbench10": "artbench-10-python.tar.gz"}[name]
    server.files[f"/{file}"] = archive
    monkeypatch.setattr(cifar, "url", f"{server.url}/{file}")
    words = {
        "cifar10": "wrong checksum",
        "artbench10": "cannot be read from .*python.tar.gz .*delete it and",
    }
    with pytest.raises(InputError, match=words[name]):  # these files are not those of the published sums
        load(name, 32)
    assert not list((here / "data").glob("*.npy"))
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5: Path(path).exists())
    train, test = load(name, 32), load(name, 32, "test")
    assert np.array_equal(torch.cat([train.images, test.images]), images) and train.classes == ["a", "b", "c"]
    assert train.labels.tolist() + test.labels.tolist() == labels and len(test.images) == 6
    server.files.clear()
    (here / "data/downloads" / file).unlink()
    assert torch.equal(load(name, 16).labels, train.labels)  # from the unpacked files, put there by hand


def test_artbench10_at_256(server, here, monkeypatch):
    monkeypatch.setattr(datasets, "ARTBENCH", f"{server.url}/")
    original = datasets.artbench_source
    monkeypatch.setattr(datasets, "artbench_source", lambda: original(images=8))
    files = [f"{part}/{style}/{k}.jpg" for part in ("train", "test") for style in ("baroque", "ukiyo_e") for k in "ab"]
    folder = make_folder(here / "artbench-10-imagefolder-split", files, size=(256, 256))
    archive = packed(folder, "w")
    for broken in (archive[: len(archive) // 2], archive[: len(archive) // 3 // 512 * 512], b"", b"no tar"):
        server.files["/artbench-10-imagefolder-split.tar"] = broken
        with pytest.raises(InputError, match="wrong checksum|could not download"):
            load("artbench10", 64)
    server.files["/artbench-10-imagefolder-split.tar"] = archive
    by_name, by_path = load("artbench10", 64), load(folder, 64)
    assert torch.equal(by_name.images, by_path.images) and torch.equal(by_name.labels, by_path.labels)
    assert by_name.classes == ["baroque", "ukiyo_e"] and by_name.held_out and len(by_name.images) == 4
    assert load("artbench10", 256, "all").images.shape == (8, 3, 256, 256)
    assert names(here / "data/downloads") == ["artbench-10-imagefolder-split.tar"]  # nothing is unpacked


def test_animals_put_by_hand(here, capsys):
    for _ in "ab":
        with pytest.raises(InputError, match="cannot be downloaded.*Kaggle.*put it at data/downloads/animals.zip"):
            load("animals", 16)
    inside = [f"animals/{part}/{kind}/{k}.png" for part in ("train", "val") for kind in ("cat", "dog") for k in "abc"]
    folder = make_folder(here / "x", [*inside, "animals/inf/1.png", "animals/inf/2.png"])
    (here / "data/downloads").mkdir(parents=True)
    path = make_zip(folder, here / "data/downloads/animals.zip")
    train, test = load("animals", 16), load("animals", 16, "test")
    assert "2 images outside train/ and val/ are not used" in capsys.readouterr().err
    assert (len(train.images), len(test.images), train.classes) == (6, 6, ["cat", "dog"]) and train.held_out
    assert train.name == "animals"
    path.unlink()
    assert torch.equal(load("animals", 16).images, train.images)  # what is prepared stays
    with pytest.raises(InputError, match="cannot be downloaded"):
        load("animals", 32)
    make_zip(make_folder(here / "y", [f"{kind}/{k}.png" for kind in "pq" for k in "ab"]), path)
    assert load("animals", 16).classes == ["p", "q"]  # another file: prepared anew


@pytest.fixture
def food(server, here, monkeypatch):
    """food-101.tar.gz on the server, small."""
    folder = food_tree(here / "food-101")
    archive = packed(folder, "w:gz")
    server.files["/food-101.tar.gz"] = archive
    md5 = hashlib.md5(archive).hexdigest()
    monkeypatch.setattr(datasets, "FOOD101", (f"{server.url}/food-101.tar.gz", md5))
    monkeypatch.setattr(torchvision.datasets.Food101, "_MD5", md5)
    return here / "data/downloads/food-101"


def test_food64(server, here, food, monkeypatch, capsys):
    archive = server.files.pop("/food-101.tar.gz")
    words = "could not download food-101.tar.gz .*404.* download http.*yourself and put it at data/downloads/food-101"
    with pytest.raises(InputError, match=words):
        load("food64", 64)
    server.files["/food-101.tar.gz"], server.cut = archive, [5000, 0, 0, 0]
    with pytest.raises(InputError, match="broke after 5,000 of"):
        load("food64", 64)
    assert not food.exists()

    extract = tarfile.TarFile.extractall

    def part_only(self, *args, **kwargs):
        extract(self, *args, members=[m for m in self if "baklava" not in m.name], **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extractall", part_only)
    with pytest.raises(KeyboardInterrupt):
        load("food64", 64)
    assert ranges(server)[-1] == "bytes=5000-"
    assert not food.exists() and not list((here / "data").glob("food64*.np*"))
    monkeypatch.setattr(tarfile.TarFile, "extractall", extract)
    server.files.clear()
    assert len(load("food64", 64, "all").images) == 52 and food.exists()
    assert capsys.readouterr().out == ""

    (food / "images/apple_pie/1007.jpg").unlink()  # kill -9 while it was unpacked leaves such a folder
    with pytest.raises(InputError, match="lacks 1 of its 52 images: delete it and try again") as caught:
        load("food64", 32)
    assert "\n" not in str(caught.value) and not list((here / "data").glob("food64-32.np*"))
    (food / "meta/test.json").write_text("{")
    with pytest.raises(InputError, match="delete it, or unpack food-101.tar.gz into") as caught:
        load("food64", 32)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- hostile archives


def test_paths_that_leave_the_folder_are_no_images(here, monkeypatch):
    """Archives are read in memory; such names are not even looked at."""
    (here / "inside").mkdir()
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    with zipfile.ZipFile(here / "x.zip", "w") as archive:
        for name in ("../evil.png", "a/../../evil.png", "/evil/.hidden.png"):
            archive.writestr(name, buffer.getvalue())
        archive.writestr("good.png", buffer.getvalue())
    before = {path for path in here.parent.rglob("*") if "data" not in path.relative_to(here.parent).parts}
    monkeypatch.chdir(here / "inside")
    assert len(load("../x.zip", 16).images) == 1
    after = {path for path in here.parent.rglob("*") if "data" not in path.relative_to(here.parent).parts}
    assert after == before


def test_a_bomb_of_pixels_is_skipped(here):
    """A small PNG that says it has 65,000 x 65,000 pixels."""
    folder = make_folder(here / "d", [f"{i:03d}.png" for i in range(120)], size=(8, 8))
    content = bytearray((folder / "000.png").read_bytes())
    content[16:24] = np.array([65000, 65000], ">u4").tobytes()
    content[29:33] = np.array([zlib.crc32(content[12:29])], ">u4").tobytes()
    (folder / "000.png").write_bytes(content)
    assert len(load(folder, 8).images) == 119
    info = json.loads(next((here / "data").glob("d-*.json")).read_text())
    assert "decompression bomb" in info["skipped"][0]
