"""What the test files share: the import path, fixtures and helpers. No test imports another."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"  # real data, where they lie next to the project
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As in the processes that tests start: bits can depend on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder: data/ and runs/ are made in it."""
    import datasets

    monkeypatch.chdir(tmp_path)
    datasets.say_once.cache_clear()  # as in a new program
    return tmp_path


@pytest.fixture
def tiny(here):
    """A current folder with tiny.npz: 100 labeled color images of 16x16 in three classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 4, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    labels = np.arange(100) % 3
    np.savez(here / "tiny.npz", images=images, labels=labels, classes=["a", "b", "c"])
    return here


@pytest.fixture
def no_plots(monkeypatch):
    """Runs end without report.py's pictures, which take longer than all steps of a tiny run."""
    import report

    monkeypatch.setattr(report, "report", lambda *_, **__: [])


@pytest.fixture
def real(here, tmp_path_factory):
    """real("cats64.zip"): the path of a real data file. Skips the test where it is absent.

    All tests of a session share what is prepared from it.
    """

    def path(name):
        if not (REAL / name).exists():
            pytest.skip("the real data are not next to the project")
        return REAL / name

    base = tmp_path_factory.getbasetemp()
    prepared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prepared"
    prepared.mkdir(exist_ok=True)
    (here / "data").symlink_to(prepared)
    return path


@pytest.fixture(scope="session")
def oracle():
    """pytorch-fid's own network with random weights: (network, state dict)."""
    pytorch_fid = pytest.importorskip("pytorch_fid.inception")
    torch.manual_seed(0)
    network = pytorch_fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
        # BatchNorm that does something, and keeps the signal alive through 94 layers
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(layer.weight, 0.8, 1.2)
            torch.nn.init.normal_(layer.bias, 0, 0.1)
    state = network.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: state)
        return pytorch_fid.InceptionV3([0, 1, 2, 3]).eval(), state


@pytest.fixture(scope="session")
def random_weights(oracle, tmp_path_factory):
    """A file with the oracle's weights."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(oracle[1], path)
    return path


@pytest.fixture(scope="session")
def small_weights(oracle, tmp_path_factory):
    """The first seven layers only: features of 64 and 192, which take a moment."""
    import inception

    layers = inception.STAGES[64] + inception.STAGES[192]
    state = {key: value for key, value in oracle[1].items() if key.split(".")[0] in layers}
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(state, path)
    return path


def picture(seed, size=(20, 16), mode="RGB"):
    """A smooth random PIL picture."""
    rng = np.random.default_rng(seed)
    low = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return low.resize(size, Image.Resampling.BICUBIC).convert(mode)


def make_folder(root, names, **options):
    """Save a picture under each of the names, in folders made as needed."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, **options).save(path)
    return root


def make_zip(folder, path):
    """Pack all files of a folder."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def shifted_plainly(images):
    """training.shifted: pixels of a padded image, cut out one by one."""
    n, _, size, _ = images.shape
    reach = size // 8
    down = torch.randint(-reach, reach + 1, (n, 1))
    right = torch.randint(-reach, reach + 1, (n, 1))
    padded = torch.nn.functional.pad(images, [reach] * 4)
    first = [(reach + a.item(), reach + b.item()) for a, b in zip(down, right, strict=True)]
    pieces = [x[:, a : a + size, b : b + size] for x, (a, b) in zip(padded, first, strict=True)]
    return torch.stack(pieces)


def program(folder, *arguments, **environment):
    """Run `python arguments...` in a folder, in a process of its own with one thread."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def at_step(monkeypatch, step, action):
    """Call action() when a run has counted this step."""
    import training

    count = training.Run.count

    def counted(self, **losses):
        count(self, **losses)
        if self.step == step:
            action()

    monkeypatch.setattr(training.Run, "count", counted)
