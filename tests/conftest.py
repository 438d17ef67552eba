import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
REAL = ROOT.parent / "shared" / "data"  # real data, where they lie beside the project; tests skip without them


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder: data/ and runs/ are made in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def real(here, tmp_path_factory):
    """real("cats64.zip"): the path of a real data file; what is prepared of it is shared by all tests of a session."""

    def path(name):
        if not (REAL / name).exists():
            pytest.skip("the real data are not beside the project")
        return REAL / name

    base = tmp_path_factory.getbasetemp()
    prepared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prepared"
    prepared.mkdir(exist_ok=True)
    (here / "data").symlink_to(prepared)
    return path


@pytest.fixture(scope="session")
def oracle():
    """pytorch-fid's own network with random weights: (network, state dict)."""
    import torch

    pytorch_fid = pytest.importorskip("pytorch_fid.inception")
    torch.manual_seed(0)
    source = pytorch_fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    for layer in source.modules():  # BatchNorm that does something, and keeps the signal alive through 94 layers
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(layer.weight, 0.8, 1.2)
            torch.nn.init.normal_(layer.bias, 0, 0.1)
    state = source.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *args, **kwargs: state)
        return pytorch_fid.InceptionV3([0, 1, 2, 3]).eval(), state


@pytest.fixture(scope="session")
def random_weights(oracle, tmp_path_factory):
    import torch

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(oracle[1], path)
    return path


@pytest.fixture(scope="session")
def small_weights(oracle, tmp_path_factory):
    """The first seven layers only: features of 64 and 192, which take a moment."""
    import torch

    import metrics

    names = metrics.STAGES[64] + metrics.STAGES[192]
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save({key: value for key, value in oracle[1].items() if key.split(".")[0] in names}, path)
    return path


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As the processes that tests start: bits can depend on the number. Two tests at once use two cores better."""
    import torch

    torch.set_num_threads(1)
