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


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))
