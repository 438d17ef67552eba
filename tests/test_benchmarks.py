"""The benchmarks run, at sizes that say nothing about speed."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_step(capsys):
    step = load("step")
    tiny = "--rounds 1 --steps 2 --width 4 --size 16 --batch 8 --device cpu --precision fp32"
    ratios = step.main(step.parse_args(tiny.split()))
    out = capsys.readouterr().out
    assert list(ratios) == list(step.BATCH) and "ours: fp32" in out and "round 1: textbook" in out
    assert all(ratio > 0 and f"ratio {ratio:.2f}" in out for ratio in ratios.values())


def test_step_refuses_zero_rounds(capsys):
    with pytest.raises(SystemExit) as stop:
        load("step").parse_args(["--rounds", "0"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
