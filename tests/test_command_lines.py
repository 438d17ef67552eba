"""Every program: numbers that no machine holds, empty names, pipes, early Ctrl-C, in one line."""

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_folder, make_zip

import sources
import training

SCRIPTS = ["dcgan", "vae_mlp", "cvae", "gan_resnet", "cgan", "wgan_gp", "ddpm"]
TOOLS = ["sample", "metrics", "augment", "report", "datasets"]
BENCHMARKS = ["distances", "prepare", "step", "which_fid"]
GROUPS = ["data:", "model:", "training:", "run:", "evaluation:"]
NASTY = ["nan", "inf", "-inf", "-1", "1e24", "1" + 30 * "0", 5000 * "9", "", " ", "\u0663", " 5"]
NASTY += ["5 ", "5\n", "0x10", "1e-400", "1_0", "one", "\x1b[31m", "1e", "."]


@pytest.fixture
def parser_of(monkeypatch, capsys):
    """parser_of("dcgan"): the ArgumentParser of a program."""

    def parser_of(name):
        if (ROOT / "benchmarks" / f"{name}.py").exists():
            monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        module = importlib.import_module(name)
        parsers = []

        def new_parser(*given):
            parsers.append(sources.new_parser(*given))
            return parsers[0]

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(module, "new_parser", new_parser)
            patch.setattr(sys, "argv", [name, "--help"])
            getattr(module, "parse_args", getattr(module, "main", None))()
        assert stop.value.code == 0
        capsys.readouterr()
        return parsers[0]

    return parser_of


@pytest.mark.parametrize("name", SCRIPTS + TOOLS)
def test_help(name, parser_of):
    """At most 80 columns, every default, and flags in groups of the same names."""
    parser = parser_of(name)
    text = parser.format_help()
    assert max(map(len, text.splitlines())) <= 80
    examples = text[text.index("\nexamples:\n") :]
    assert f"  python {name}.py" in examples
    assert examples.endswith(f"\nMore at the top of {name}.py.\n")
    words = " ".join(text.split())
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and action.default is not None:
            shown = action.default
            if isinstance(shown, list):
                shown = " ".join(map(str, shown))
            flag = text[text.index(f"\n  {action.option_strings[-1]} ") :].split("\n  --")[1]
            assert f"[{shown}]" in " ".join(flag.split()), action.dest
    if name in SCRIPTS:
        headings = [line for line in text.splitlines() if line in GROUPS]
        assert headings == GROUPS
        for own in ("--width", "--latent-dim") if "--latent-dim" in text else ("--width",):
            assert text.index("\nmodel:") < text.index(f"\n  {own} ") < text.index("\ntraining:")
        assert "those of --preset shapes: --data=shapes --size=" in words
        own = {a.dest for group in parser.groups.values() for a in group._group_actions}
        assert own == {action.dest for action in parser._actions} - {"help"}  # none in no group


def refused(parse, argv, capsys, words=""):
    """Exit code 2, and one printable line on stderr."""
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == "", argv
    assert error.count("\n") == 1 and error[:-1].isprintable() and len(error) < 500, (argv, error)
    assert "error: " in error and words in error, (argv, error)


def required(parser):
    """Something for each positional argument."""
    names = [action.dest for action in parser._actions if not action.option_strings]
    return names[: -1 if names == ["data"] else None]  # that of datasets.py may be absent


def is_number(action):
    return action.type in (int, float) or "number" in getattr(action.type, "__qualname__", "")


@pytest.mark.parametrize("name", SCRIPTS + TOOLS + BENCHMARKS)
def test_numbers(name, parser_of, capsys):
    parser = parser_of(name)
    flags = [action.option_strings[0] for action in parser._actions if is_number(action)]
    assert flags or name == "report"
    for flag in flags:
        for value in NASTY:
            argv = [*required(parser), f"{flag}={value}"]
            refused(parser.parse_args, argv, capsys, f"argument {flag}: ")


@pytest.mark.parametrize("name", SCRIPTS + TOOLS + BENCHMARKS)
def test_empty_names(name, parser_of, capsys):
    """--out "$OUT" where OUT is not set. --resume= does not mean the newest run."""
    parser = parser_of(name)
    for action in parser._actions:
        takes_text = action.type is None and action.nargs != 0 and action.choices is None
        for value in ("", "  ", "\0") if takes_text else ():
            if action.option_strings:
                argv = [*required(parser), f"{action.option_strings[0]}={value}"]
            else:
                argv = [value if n == action.dest else n for n in required(parser) or ["data"]]
            refused(parser.parse_args, argv, capsys, "is empty")


def test_kinds_of_sampling_flags():
    """Those that sample.py takes over from a script."""
    for _, kind, _ in importlib.import_module("ddpm").SAMPLING.values():
        for value in NASTY if kind is not str else ():
            with pytest.raises(sources.argparse.ArgumentTypeError):
                kind(value)


@pytest.mark.parametrize("name", SCRIPTS)
def test_more_than_memory_holds(name, tiny, parser_of, capsys):
    """A number that passes the command line, but nothing of this size can be made."""
    parser = parser_of(name)
    module = importlib.import_module(name)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    number = 2**20 - 4 if name == "ddpm" else 2**31 - 4
    more = ["--data=tiny.npz", "--size=16", "--batch=8", "--device=cpu", "--out=r"]
    for flag in flags & {"--width", "--latent-dim"}:

        def main(argv):
            sources.run_program(lambda: module.main(argv))

        refused(main, [*more, f"{flag}={number}"], capsys, "not enough memory")
    assert not (tiny / "r").exists()


def documented():
    """{program: [(page, its command line), ...]} of the README and of docs/."""
    commands = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall("^    .*", text, re.MULTILINE)
        spans = re.findall("`([^`]+)`", re.sub("^    .*", "", text, flags=re.MULTILINE))
        for code in [*blocks, *(span.replace("\n", " ") for span in spans)]:
            for program, line in re.findall(r"python ([\w/]+)\.py(.*?)(?=&&|;|$)", code):
                commands.setdefault(program, []).append((path.name, line))
    return commands


DOCUMENTED = documented()


@pytest.mark.parametrize("program", sorted(DOCUMENTED))
def test_documented_commands(program, parser_of, here, capsys):
    """Each parses: its flags exist, and the scripts have nothing to say against them."""
    assert (ROOT / f"{program}.py").exists()
    name = program.removeprefix("benchmarks/")
    if name.startswith("tests/"):
        return
    parser = parser_of(name)
    (here / "WEIGHTS").touch()
    for flag, (_, kind, _) in importlib.import_module("ddpm").SAMPLING.items():
        if name == "sample":  # the model says which of these it has
            parser.add_argument(f"--{flag.replace('_', '-')}", type=kind)
    for page, line in DOCUMENTED[program]:
        argv = ["1" if word == "N" else word for word in shlex.split(line, comments=True)]
        parse = parser.parse_args
        if name in SCRIPTS and "--resume" not in argv:
            parse = importlib.import_module(name).parse_args
        try:
            args = parse(argv)
        except (SystemExit, sources.InputError) as problem:
            if "--help" not in argv:
                error = capsys.readouterr().err
                pytest.fail(f"{page}: python {program}.py{line}\n{error or problem}")
            capsys.readouterr()
        if name == "augment":
            flags = shlex.split(args.generator_flags)
            importlib.import_module(args.generator).parse_args([*flags, "--dry-run"])
        assert capsys.readouterr() == ("", ""), (page, line)


def test_commands_are_found_on_the_pages():
    """In blocks, with `\\` at the end of a line, in text, and over two lines of it."""
    pages = {name: [page for page, _ in lines] for name, lines in DOCUMENTED.items()}
    assert set(SCRIPTS + TOOLS) <= set(pages) and "README.md" in pages["dcgan"]
    assert any("--generator-flags=" in line for _, line in DOCUMENTED["augment"])
    assert sum(map(len, DOCUMENTED.values())) > 100


TINY = "--size 16 --width 8 --batch 4 --steps 2 --device cpu"
BRIEFLY = dict.fromkeys(SCRIPTS, f"{TINY} --eval-images 0")
BRIEFLY["metrics"] = "--dims 64 --device cpu --no-classes --weights"
BRIEFLY["sample"] = "--count 8"
BRIEFLY["augment"] = "--per-class 5 --add 2 --seeds 3 --generator-flags=--steps=2 "
BRIEFLY["augment"] += BRIEFLY["ddpm"]


def test_commands_of_the_readme_run(here, no_plots, small_weights, capsys):
    """In the order of the page, on a folder of 24 photos, at a tiny size. RUN is a cgan's."""
    names = [f"{animal}/{k}.png" for animal in ("lion", "horse") for k in range(12)]
    for folder in ("photos", "real"):
        make_folder(here / folder, names)
    make_zip(here / "photos", here / "cats64.zip")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall("(?:^    |`)python (\\w+)\\.py([^`\n#]*)", text, re.MULTILINE)
    assert len(commands) > 18
    for name, line in commands:
        line = line.replace("RUN-B", "runs/dcgan-photos-best-1")
        line = line.replace("real/ generated/", "real/ photos/")  # another one is made below
        argv = shlex.split(re.sub("RUN(-A)?", "runs/cgan-photos-best-1", line))
        if argv == ["--resume"]:
            argv.append("--steps=3")
        elif argv != ["--help"]:
            argv += shlex.split(BRIEFLY.get(name, ""))
        if name == "metrics":
            argv.append(str(small_weights))
        try:
            code = importlib.import_module(name).main(argv)
        except (SystemExit, sources.InputError) as problem:
            code = "" if argv == ["--help"] else problem
        assert not code, (name, argv, code, capsys.readouterr().err)
    assert len(list((here / "lions/lion").iterdir())) == 8


PIPES = """
SCRIPT --data pipe
SCRIPT --resume pipe
SCRIPT --weights pipe --eval-every 5
SCRIPT --resume run
SCRIPT --out pipe
sample pipe
sample pipe.pt
sample run
metrics pipe tiny.npz
metrics tiny.npz pipe
metrics tiny.npz pipe.pt
metrics tiny.npz run
metrics tiny.npz tiny.npz --weights pipe
augment --data pipe
augment --data tiny.npz --per-class 5 --generator pipe.pt
augment --data tiny.npz --out pipe
report pipe
report run
datasets pipe
datasets tiny.npz --show pipe.png
datasets absent --svd tiny.npz/x.png"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("line", PIPES.split("\n")[1:])
def test_pipes(line, tiny, capsys, monkeypatch):
    """A named pipe in place of a file or folder is refused; nothing waits for somebody to write."""
    for name in ("pipe", "pipe.pt", "pipe.png"):
        os.mkfifo(name)
    (tiny / "run").mkdir()
    os.mkfifo("run/last.pt")
    os.mkfifo("run/args.json")
    name, *argv = line.split()
    before = sorted(tiny.glob("**/*"))

    def too_long(*_):
        raise AssertionError("it waits for the pipe")

    monkeypatch.setattr(sys, "argv", [name])
    alarm = signal.signal(signal.SIGALRM, too_long)
    for script in SCRIPTS if name == "SCRIPT" else [name]:
        module = importlib.import_module(script)
        signal.alarm(30)
        try:
            refused(lambda argv, m=module: sources.run_program(lambda: m.main(argv)), argv, capsys)
        finally:
            signal.alarm(0)
    signal.signal(signal.SIGALRM, alarm)
    made = set(tiny.glob("**/*")) - set(before)
    assert {path.parts[len(tiny.parts)] for path in made} <= {"data"}  # prepared images


def test_outputs_are_checked_before_the_data(here, capsys, monkeypatch):
    """In every program that writes: the data do not exist, but the line is about the output."""
    (here / "taken").mkdir()
    (here / "taken/mine.txt").write_text("mine")
    (here / "file").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["x.py"])
    for name in [*SCRIPTS, "augment"]:
        module = importlib.import_module(name)
        for out, words in (("taken", "not empty"), ("file", "not empty"), ("file/r", "is a file")):
            argv = ["--data=absent", f"--out={out}"]
            main = module.main
            refused(lambda argv, m=main: sources.run_program(lambda: m(argv)), argv, capsys, words)
    datasets = importlib.import_module("datasets")
    for flag in ("--show", "--svd"):
        for out, words in (("file/x.png", "is a file"), ("a.jpg", "must end in .png")):
            argv = ["absent", f"{flag}={out}"]
            refused(
                lambda argv: sources.run_program(lambda: datasets.main(argv)), argv, capsys, words
            )


@pytest.mark.parametrize(
    "name, folder",
    [("photos 2024 (1)", "photos 2024 (1)"), ("größe", "größe"), ("v1.0", "v1.0"), ("..", ".."),
     ("a/b\\c", "a_b_c"), ("\x1b[31m\n", "__31m_"), ("$(rm x)`y`'z\"", "_(rm x)_y__z_"),
     ("<|>?*:", "______"), ("caf\udce9", "caf_"), (300 * "猫", 50 * "猫")],
)  # fmt: skip
def test_run_directories_have_harmless_names(name, folder):
    args = types.SimpleNamespace(preset="cats")
    run = types.SimpleNamespace(script="dcgan", about={"name": name}, args=args)
    assert training.default_out(run) == Path("runs") / f"dcgan-{folder}-cats"


def test_the_newest_run_is_meant_by_a_bare_resume_only(here, capsys):
    dcgan = importlib.import_module("dcgan")
    np.savez("x.npz", images=np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8))
    flags = "--data x.npz --size 16 --width 4 --batch 8 --steps 1 --device cpu --precision fp32"
    dcgan.main([*flags.split(), "--eval-images=0"])
    args, _ = dcgan.parse_args(["--resume", "--steps", "2"])
    assert args.resume.name == "dcgan-x-1"
    capsys.readouterr()
    refused(dcgan.parse_args, ["--resume=", "--steps", "2"], capsys, "--resume: is empty")
    refused(dcgan.parse_args, ["--resume", "", "--steps", "2"], capsys, "--resume: is empty")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for another process there")
def test_ctrl_c_inside_of_a_destructor_is_not_lost(here):
    """There, Python drops it with a traceback; the program went on."""
    code = """
import signal, sys, time
sys.path.insert(0, sys.argv[1])
import sources
class Thing:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def main():
    Thing()
    time.sleep(20)
signal.signal(signal.SIGINT, signal.SIG_DFL)
sources.run_program(main)
"""
    command = [sys.executable, "-c", code, str(ROOT)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 130 and process.stderr == "-c: interrupted\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for another process there")
@pytest.mark.parametrize("name, seconds", [("dcgan", 0.3), ("metrics", 0.8), ("datasets", 0.6)])
def test_ctrl_c_during_the_imports(name, seconds, here):
    """No traceback. A SIGINT before Python has read the first line is Python's own."""
    command = [sys.executable, str(ROOT / f"{name}.py"), "shapes", "shapes"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130, 2) and "Traceback" not in error
