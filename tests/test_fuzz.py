"""tests/fuzz.py in a short form: 15 damages of each kind, without report.py, which takes longer."""

import random

import fuzz
import pytest


@pytest.fixture(scope="module")
def originals():
    with fuzz.prepared_originals() as folder:
        yield folder


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damages_of(kind, originals):
    outcomes = [fuzz.one_damage(kind, seed, originals, quick=True) for seed in range(15)]
    assert not [outcome for outcome in outcomes if outcome not in fuzz.GOOD]


def test_the_fuzzer_sees_a_failure(originals, monkeypatch):
    """A traceback, many lines, a hang and a message of two lines, each with its seed."""

    def fails(path, rng):
        raise KeyError("labels")

    def talks(path, rng):
        print("\n".join("many lines"), file=fuzz.sys.stderr)

    def hangs(path, rng):
        while True:
            pass

    def waits(path, rng):
        fuzz.time.sleep(60)

    def wraps(path, rng):
        raise fuzz.InputError("two\nlines")

    def says(path, rng):
        raise fuzz.InputError("one line")

    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz, "LINES", 8)
    words = {fails: "KeyError", talks: "9 lines", wraps: "not one line", says: "one line"}
    if hasattr(fuzz.signal, "setitimer"):
        words[hangs] = words[waits] = "more than 0.2 seconds"
    for program, expected in words.items():
        monkeypatch.setitem(fuzz.KINDS, "zip", [(("photos.zip",), (program,))])
        outcome = fuzz.one_damage("zip", 7, originals)
        assert expected in outcome
        assert (outcome in fuzz.GOOD) == (program is says)
        assert program is says or outcome.startswith("--kinds zip --seed 7: ")


def test_damages_are_repeatable(originals):
    path = originals / "images.npz"
    before = path.read_bytes()
    results = []
    for _ in range(2):
        path.write_bytes(before)
        fuzz.damage(path, random.Random(5))
        results.append(path.read_bytes())
    path.write_bytes(before)
    assert results[0] == results[1] != before
