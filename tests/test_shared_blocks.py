"""The plumbing that every model script repeats is the same, word for word, in all of them.

A shared block stands between `# --- shared: NAME ---` and `# --- end shared ---`, both at the left margin.
After a change in one script, spread it to the others that hold a block of the same name:

    python tests/test_shared_blocks.py                  # check, print what differs
    python tests/test_shared_blocks.py --fix dcgan.py   # dcgan.py's copies win
"""

import argparse
import ast
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("dcgan.py", "cgan.py", "wgan_gp.py", "vae_mlp.py", "cvae.py", "ddpm.py")
MAXIMUM_LINES = 120  # the budget is "fewer than this", all blocks together, markers included
BEGIN = re.compile(r"# --- shared: (\w[\w -]*?) ---")
END = "# --- end shared ---"
LOOKS_LIKE_A_MARKER = re.compile(r"\s*#\s*-+\s*(end )?shared\b", re.IGNORECASE)


class BlockError(Exception):
    """One line: which file, which line, what is wrong."""


def read_lines(path):
    """The lines of a file with their ends, which are left as they are (newline="")."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read().splitlines(keepends=True)
    except OSError as error:
        raise BlockError(f"cannot read {path}: {error.strerror}") from None


def find_blocks(path):
    """{name: (start, stop)}: the lines [start, stop) of each block, markers included, counted from 0."""
    blocks, name, start = {}, None, 0
    for number, line in enumerate(read_lines(path)):
        text, here = line.rstrip(), f"{Path(path).name}:{number + 1}"
        if begin := BEGIN.fullmatch(text):
            if name:
                raise BlockError(f"{here}: block '{begin[1]}' begins inside block '{name}' of line {start + 1}")
            name, start = begin[1], number
            if name in blocks:
                raise BlockError(f"{here}: block '{name}' stands a second time, first in line {blocks[name][0] + 1}")
        elif text == END:
            if not name:
                raise BlockError(f"{here}: a block ends that never began")
            blocks[name], name = (start, number + 1), None
        elif LOOKS_LIKE_A_MARKER.match(line):  # a typing error here would silently take a block out of the check
            raise BlockError(f"{here}: not a marker: write '# --- shared: NAME ---' or '{END}' at the left margin")
    if name:
        raise BlockError(f"{Path(path).name}:{start + 1}: block '{name}' never ends")
    return blocks


def read_blocks(path):
    """{name: the block's lines, markers included, without line ends}."""
    lines = [line.rstrip("\r\n") for line in read_lines(path)]
    return {name: lines[start:stop] for name, (start, stop) in find_blocks(path).items()}


def differences(paths):
    """One line for every copy that differs from the first copy of its block, with the first line that differs."""
    first, found = {}, []
    for path in paths:
        for name, block in read_blocks(path).items():
            origin, original = first.setdefault(name, (path, block))
            if block != original:
                # one more, unequal line on each side, so that a block that is only longer differs somewhere too
                pairs = enumerate(zip([*original, None], [*block, None], strict=False))
                index, (ours, theirs) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
                found.append(
                    f"block '{name}' differs, line {index + 1} of it: "
                    f"{Path(origin).name} has {ours!r}, {Path(path).name} has {theirs!r}"
                )
    return found


def count_lines(paths):
    """Lines of all distinct blocks together, markers included."""
    return sum(len(block) for block in {n: b for path in paths for n, b in read_blocks(path).items()}.values())


def fix(source, paths):
    """Put source's copy of each block into the other files that hold a block of that name; say what changed."""
    correct, changed = read_blocks(source), []
    # Every file is read and understood before the first one is written.
    for path, blocks in [(Path(p), find_blocks(p)) for p in paths if Path(p).resolve() != Path(source).resolve()]:
        lines = read_lines(path)
        end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
        # From the last block to the first, so that the places of those still to come stay valid.
        for name, (start, stop) in sorted(blocks.items(), key=lambda item: item[1], reverse=True):
            old = [line.rstrip("\r\n") for line in lines[start:stop]]
            if name in correct and old != correct[name]:
                lines[start:stop] = [line + end for line in correct[name]]
                changed.append(f"{path.name}: block '{name}' is now that of {Path(source).name}")
        text = "".join(lines)
        if text != "".join(read_lines(path)):
            temporary = path.with_name(path.name + ".tmp")
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            shutil.copymode(path, temporary)
            os.replace(temporary, path)
    return changed


def model_scripts(root=ROOT):
    return [root / name for name in SCRIPTS if (root / name).exists()]


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments=None, root=ROOT):
    parser = Parser(prog="test_shared_blocks.py", description="Check the shared blocks of the model scripts.")
    parser.add_argument("--fix", metavar="FROM.py", help="spread this script's blocks to the others that hold them")
    args = parser.parse_args(arguments)
    try:
        if args.fix:
            source = root / args.fix if (root / args.fix).exists() else Path(args.fix)
            print("\n".join(fix(source, model_scripts(root))) or "nothing to change")
            return 0
        found = differences(model_scripts(root))
        print("\n".join(found) or f"all copies agree, {count_lines(model_scripts(root))} lines")
        return 1 if found else 0
    except BlockError as error:
        parser.error(str(error))


# The scripts themselves


def test_copies_agree():
    assert differences(model_scripts()) == []


def test_blocks_stay_small():
    assert count_lines(model_scripts()) < MAXIMUM_LINES


@pytest.mark.parametrize("path", model_scripts(), ids=lambda path: path.name)
def test_no_script_imports_another(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert not imported & {Path(name).stem for name in SCRIPTS}


# The checker

SAVE = ["# --- shared: save ---", "def save(x):", "    return x", "# --- end shared ---"]
LOG = ["# --- shared: run log ---", "def log(x):", "    print(x)", "# --- end shared ---"]


def write(path, *parts, end="\n"):
    path.write_bytes(end.join(line for part in parts for line in part).encode() + end.encode())
    return path


def edited(block, line, text):
    return [*block[:line], text, *block[line + 1 :]]


def test_equal_copies_pass(tmp_path, capsys):
    write(tmp_path / "dcgan.py", ["import os"], SAVE, ["x = 1"], LOG)
    write(tmp_path / "cgan.py", ["import sys"], LOG, ["y = 2"], SAVE)
    write(tmp_path / "cvae.py", ["nothing shared here"])
    assert main([], tmp_path) == 0
    assert capsys.readouterr().out == "all copies agree, 8 lines\n"


def test_drift_is_named(tmp_path):
    a = write(tmp_path / "dcgan.py", SAVE, LOG)
    b = write(tmp_path / "cgan.py", SAVE, edited(LOG, 2, "    print(x, flush=True)"))
    (line,) = differences([a, b])
    assert "'run log'" in line and "line 3 of it" in line and "dcgan.py" in line and "cgan.py" in line
    assert "'    print(x, flush=True)'" in line


def test_a_longer_copy_is_drift(tmp_path):
    a = write(tmp_path / "dcgan.py", SAVE)
    b = write(tmp_path / "cgan.py", [*SAVE[:3], "    # a line more", SAVE[3]])
    assert len(differences([a, b])) == 1


def test_fix_repairs(tmp_path, capsys):
    write(tmp_path / "dcgan.py", ["import os"], SAVE, LOG)
    longer = edited(SAVE, 1, "def save(x):\r\n    # a line more")
    write(tmp_path / "cgan.py", ["before"], longer, ["between"], edited(LOG, 1, "def log():"), ["after"], end="\r\n")
    equal = write(tmp_path / "cvae.py", LOG)
    untouched = equal.stat().st_ino
    assert main(["--fix", "dcgan.py"], tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("cgan.py: block") == 2 and "cvae.py" not in out
    expected = write(tmp_path / "expected", ["before"], SAVE, ["between"], LOG, ["after"], end="\r\n")
    assert (tmp_path / "cgan.py").read_bytes() == expected.read_bytes()  # its own kind of line end stays
    assert equal.stat().st_ino == untouched  # an equal file is not written again
    assert not list(tmp_path.glob("*.tmp"))
    assert main(["--fix", "dcgan.py"], tmp_path) == 0
    assert capsys.readouterr().out == "nothing to change\n"


def test_fix_of_a_missing_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--fix", "dcgna.py"], tmp_path)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "dcgna.py" in error


@pytest.mark.parametrize(
    "lines, place, words",
    [
        (SAVE[:3], ":1:", "never ends"),
        ([*SAVE[:2], *LOG], ":3:", "begins inside"),
        ([*SAVE, *SAVE], ":5:", "a second time"),
        (["x = 1", SAVE[3]], ":2:", "never began"),
        (["# --- shared save ---", *SAVE[1:]], ":1:", "not a marker"),
        (["  " + SAVE[0], *SAVE[1:]], ":1:", "not a marker"),
    ],
)
def test_broken_markers_name_file_and_line(tmp_path, lines, place, words):
    path = write(tmp_path / "dcgan.py", lines)
    with pytest.raises(BlockError, match=f"dcgan.py{place}.*{words}"):
        find_blocks(path)


if __name__ == "__main__":
    sys.exit(main())
