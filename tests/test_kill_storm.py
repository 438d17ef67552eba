"""kill_storm.py in a short form. In full: python tests/kill_storm.py"""

import os

import pytest
from conftest import ROOT, program


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill_storm.py forks")
def test_runs_that_are_killed_end_like_one_that_is_not(tmp_path):
    command = [ROOT / "tests/kill_storm.py", "--kills", "4", "--scripts", "vae_mlp", "--seed", "3"]
    result = program(tmp_path, *command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "vae_mlp: 4 kills" in result.stdout and "0 problems" in result.stdout
