"""The design's budgets: code lines, tokens a line, who imports whom, and what stands where."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).parent))

from count_lines import count  # noqa: E402

BUDGETS = {  # file: the most code lines
    "dcgan.py": 320,
    "vae_mlp.py": 320,
    "cvae.py": 375,
    "gan_resnet.py": 320,
    "cgan.py": 450,
    "wgan_gp.py": 482,
    "ddpm.py": 460,
    "training.py": 842,
    "datasets.py": 543,
    "sources.py": 718,
    "folders.py": 566,
    "downloads.py": 300,
    "analysis.py": 200,
    "metrics.py": 952,
    "inception.py": 260,
    "neighbours.py": 150,
    "sample.py": 248,
    "report.py": 800,
    "page.py": 420,
    "augment.py": 576,
}
TOKENS = 11  # a code line

SCRIPTS = ["dcgan", "vae_mlp", "cvae", "gan_resnet", "cgan", "wgan_gp", "ddpm"]
BASE = {"training", "datasets", "sources"}
ARROWS = {  # file: what it may import of ours
    "training": {"datasets", "sources"},
    "datasets": {"sources", "folders", "downloads", "analysis"},
    "downloads": {"sources", "folders"},
    "folders": {"sources"},
    "sources": set(),
    "analysis": set(),
    "inception": {"datasets", "sources"},
    "neighbours": BASE | {"inception", "sample"},
    "metrics": BASE | {"inception", "neighbours"},
    "sample": BASE,
    "report": BASE | {"metrics", "sample"},  # and page, by name
    "page": {"training", "sources"},
    "augment": BASE | {"metrics", "neighbours"},
    **dict.fromkeys(SCRIPTS, BASE),
}
# These are imported inside of functions only.
LAZY = {("datasets", name) for name in ("folders", "downloads", "analysis")}
LAZY |= {("metrics", "neighbours")}


def source(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_file_has_a_budget_and_arrows():
    files = {path.name for path in ROOT.glob("*.py")}
    assert files == set(BUDGETS) == {f"{name}.py" for name in ARROWS}


@pytest.mark.parametrize("name", BUDGETS)
def test_budget(name):
    lines, tokens = count(source(name))
    assert lines <= BUDGETS[name]
    assert tokens / lines <= TOKENS


def test_count():
    code = '"""Two\nlines."""\n\nx = 1  # one\n\n\ndef f(a):\n    """Doc."""\n    return f"{a} b"\n'
    assert count(code) == (3, 3 + 6 + 2)


@pytest.mark.parametrize("stem", ARROWS)
def test_arrows(stem):
    tree = ast.parse(source(f"{stem}.py"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in set(names) & set(ARROWS):
            assert name in ARROWS[stem], f"{stem} imports {name}"
            assert (stem, name) not in LAZY or id(node) not in top


@pytest.mark.parametrize("stem", ["training", "datasets", "sources", "downloads", "analysis"])
def test_the_base_knows_no_model(stem):
    """Nothing below the scripts compares with the name of a model or reads a flag of its own."""
    for node in ast.walk(ast.parse(source(f"{stem}.py"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value not in SCRIPTS


def test_functions_of_training_are_short():
    code = source("training.py")
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef):
            body = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            indent = re.match(" *", body).group()
            body = "\n".join(line.removeprefix(indent) for line in body.splitlines())
            assert count(body)[0] <= 45, node.name


def runnable():
    return [name for name in BUDGETS if '__name__ == "__main__"' in source(name)]


@pytest.mark.parametrize("name", runnable())
def test_inline_metadata_equals_the_requirements(name):
    """PEP 723, for `uv run dcgan.py`."""
    block = re.match(r"# /// script\n((?:# .*\n)*)# ///\n", source(name)).group(1)
    needed = re.search(r"dependencies = \[(.*)\]", block.replace("\n# ", " ")).group(1)
    wanted = source("requirements.txt").split()
    assert re.findall(r'"([^"]+)"', needed) == wanted
    assert 'requires-python = ">=3.10"' in block


@pytest.mark.parametrize("stem", SCRIPTS)
def test_the_loop_stands_in_the_script(stem):
    """main holds a while loop that draws, saves, logs, stops and sets the learning rate."""
    tree = ast.parse(source(f"{stem}.py"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    loops = [node for node in ast.walk(functions["main"]) if isinstance(node, ast.While)]
    assert len(loops) == 1
    text = ast.unparse(loops[0])
    for call in ("should_stop(", "set_lr(", "draw(", "run.save(", "write_log(", "keep_best("):
        assert call in text
