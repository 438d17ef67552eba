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


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As the processes that tests start: bits can depend on the number. Two tests at once use two cores better."""
    import torch

    torch.set_num_threads(1)
