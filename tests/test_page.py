"""page.py: report.html and comparison.html, as files and in a real Chromium."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import datasets
import page
import report
import training
from sources import InputError

SIZE = 16
HOSTILE = "<script>alert(1)</script>"
PROTOCOL = "768-d features (w.pth; fp32), resized; 90 images against 90 held-out ones"
VALUES = [
    {"name": "FID-768", "value": 12.5, "real": 1.25, "protocol": f"{PROTOCOL}; covariances N-1"},
    {"name": "KID-768", "value": 0.01, "real": 0.0, "protocol": f"{PROTOCOL}; cubic kernel"},
    {"name": "FID", "value": None, "reason": "no weights for 2048"},
]


def make_run(folder, steps=range(0, 101, 20), classes=(), script="dcgan", rows=range(5, 101, 5)):
    """A run directory. The samples of step s are grey, s (modulo 256); log.csv has these rows."""
    (folder / "samples").mkdir(parents=True)
    about = {"name": "toy", "size": SIZE, "channels": 3, "count": 90, "fingerprint": "x"}
    about |= {"classes": list(classes), "counts": [30 + i for i in range(len(classes))]}
    flags = {"data": "toy.zip", "batch": 8, "preset": None}
    args = {"script": script, "preset": None, "steps_per_epoch": 10, "data": about, "flags": flags}
    (folder / "args.json").write_text(json.dumps(args), encoding="utf-8")
    for step in steps:
        count = 8 * min(16, len(classes)) or 16
        images = torch.full((count, 3, SIZE, SIZE), step % 256, dtype=torch.uint8)
        datasets.save_picture(datasets.grid(images, 8), folder / "samples" / f"{step:06d}.png")
    lines = ["step,epoch,seconds,img_per_s,loss_d,loss_g,fid_768"]
    lines += [f"{s},{s / 10},{60 * s},9,{1 / s},{s},{s / 2 if s % 50 == 0 else ''}" for s in rows]
    (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


class Elements(HTMLParser):
    """Elements of a page: [(tag, attributes)], its text without scripts, and each whole script."""

    def __init__(self, source):
        super().__init__()
        self.elements = []
        self.scripts = []
        self.words = ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script" and data.strip():
            self.scripts.append(data)
        else:
            self.words += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder):
    """report.html of a run: (its text, its elements)."""
    source = report.draw_page(page, folder, report.read_run(folder)).decode("utf-8")
    return source, Elements(source)


# --------------------------------------------------------------------------------- report.html


def test_a_whole_run(tmp_path, capsys):
    run = make_run(tmp_path / "run", classes=["cat", "dog"], script="cgan")
    (run / "last.pt").touch()
    (run / "metrics.json").write_text(
        json.dumps(
            {"values": VALUES, "report": {"FID-768": 9.5, "protocol": "theirs"}, "step": 100}
        )
    )
    for name in ("strip", "neighbours"):
        Image.new("RGB", (200, 40), "red").save(run / f"{name}.png")
    source, found = page_of(run)
    assert capsys.readouterr() == ("", "")
    assert found.all("h1") and found.all("title") and found.all("html")[0]["lang"] == "en"
    for words in (
        "cgan.py", "toy, 90 images of 16 pixels", "cat 30", "dog 31", "100 steps of 8 images",
        "10.0 epochs", "100.0 minutes", "python cgan.py --data=toy.zip", "12.50 (report: 9.5)",
        "1.25", "not measured", "no weights for 2048", "real images", "lowest: 25 at step 50",
        page.MEANINGS["FID"], page.MEANINGS["KID"], page.PICTURES["neighbours"],
        f"python report.py {run} OTHER", f"--resume {run} --steps 200",
    ):  # fmt: skip
        assert words in found.words, words
    shared = found.words.index("FID-768, KID-768 x 10^3" + PROTOCOL)
    assert found.words.count(PROTOCOL) == 1 and shared < found.words.index("cubic kernel")
    alts = [image["alt"] for image in found.all("img")]
    assert len(alts) == 6 + 2 and all(alts)
    assert all(control.get("aria-label") for control in found.all("input") + found.all("button"))
    assert "extremes.png" not in source and "--extremes" in found.words


def test_the_page_names_programs_that_are_there(tmp_path, monkeypatch):
    """page.py may lie next to a copied script without the other tools."""
    run = make_run(tmp_path / "run", classes=["cat", "dog"], script="cgan")
    (run / "last.pt").touch()
    for name in ("cgan.py", "report.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr(page, "__file__", str(tmp_path / "page.py"))
    monkeypatch.setattr(page, "page", lambda name, parts, data: parts[-1])
    _, found = page_of(run)
    assert set(re.findall(r"python (\w+\.py)", found.words)) == {"cgan.py", "report.py"}


def commands():
    """Scripts with the flags of a run: every preset, and some presets changed."""
    for path in sorted(ROOT.glob("*.py")):
        if "\nPRESETS = {" in path.read_text(encoding="utf-8"):
            for preset in training.load_script(path.stem).PRESETS:
                yield path.stem, [f"--preset={preset}"]
    yield "dcgan", ["--width=32"]
    yield "dcgan", ["--preset=shapes", "--data=photos/"]
    yield "dcgan", ["--preset=shapes", "--lr=0.001"]  # the preset's rate, without its --lr-d
    yield "dcgan", ["--preset=food-noise", "--epochs=50"]  # the default, but the preset has steps
    yield "dcgan", ["--preset=best", "--no-flip", "--lr-d=0.001"]
    yield "cgan", ["--preset=animals", "--lr=0.001"]  # what --preset shapes has
    yield "ddpm", ["--data=photos/", "--dims", "64", "768"]


@pytest.mark.parametrize("stem, words", list(commands()), ids=str)
def test_the_command_trains_such_a_run(stem, words):
    def flags(words):
        parsed = dict(vars(training.load_script(stem).parse_args([*words, "--dry-run"])[0]))
        return {name: parsed[name] for name in parsed.keys() - {"defaults", "dry_run", "resume"}}

    run = flags(words)
    program, script, *shown = shlex.split(page.command({"script": stem, "flags": run}))
    assert (program, script) == ("python", f"{stem}.py")
    assert flags(shown) == run
    if words == ["--preset=shapes"]:
        assert not shown
    elif len(words) == 1:
        assert shown == words


def test_the_command_of_a_script_that_is_gone():
    flags = vars(training.load_script("cgan").parse_args(["--condition=auxiliary", "--dry-run"])[0])
    flags = {name: flag for name, flag in flags.items() if name not in ("defaults", "resume")}
    _, script, *shown = shlex.split(page.command({"script": "gone", "flags": flags}))
    assert script == "gone.py" and "--dry-run" not in shown
    again = vars(training.load_script("cgan").parse_args([*shown, "--dry-run"])[0])
    assert {name: again[name] for name in flags} == flags


def test_nothing_comes_from_elsewhere(tmp_path):
    source, found = page_of(make_run(tmp_path / "run"))
    addresses = []
    for _, attributes in found.elements:
        assert not {"onclick", "onload", "onerror", "srcset"} & attributes.keys()
        addresses += [attributes[key] for key in ("src", "href", "data") if key in attributes]
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert not re.search(r"https?:|url\(|@import", source)


def test_every_frame_is_there(tmp_path):
    source, found = page_of(make_run(tmp_path / "run", steps=range(0, 101, 20)))
    frames = [image for image in found.all("img") if "data-step" in image]
    assert [frame["data-step"] for frame in frames] == ["0", "20", "40", "60", "80", "100"]
    assert ["hidden" in frame for frame in frames] == [True] * 5 + [False]
    assert "run: samples at step 100 (epoch 10)" in [frame["alt"] for frame in frames]
    assert "6 of 6 pictures" in found.words


def test_the_frame_of_a_step_shows_its_samples(tmp_path):
    run = make_run(tmp_path / "run", steps=(0, 128, 250))
    frames = page.frames_within(
        [(step, page.open_picture(path, 800)) for step, path in report.read_samples(run)], 10**6
    )
    assert [step for step, _ in frames] == [0, 128, 250]
    for step, data in frames:
        (run / "frame.jpg").write_bytes(data)
        assert abs(int(np.asarray(Image.open(run / "frame.jpg"))[8, 8, 0]) - step) < 4


def test_of_many_samples_some_are_shown_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FRAMES", 7)
    _, found = page_of(make_run(tmp_path / "run", steps=range(0, 401, 4)))
    steps = [int(image["data-step"]) for image in found.all("img")]
    assert steps[0] == 0 and steps[-1] == 400 and len(steps) == 7
    assert np.ptp(np.diff(steps)) <= 4 and "7 of 101 pictures" in found.words


def test_a_page_is_limited_in_size(tmp_path):
    """Noise, which no JPEG makes small: 30 grids of 64 images of 64 pixels, and large pictures."""
    run = make_run(tmp_path / "run", steps=[])
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (526, 526, 3), dtype=np.uint8))
    noise.save(run / "samples/000000.png", compress_level=0)
    for step in range(1, 30):
        shutil.copy(run / "samples/000000.png", run / f"samples/{step:06d}.png")
    for name in page.PICTURES:
        shutil.copy(run / "samples/000000.png", run / f"{name}.png")
    source, found = page_of(run)
    assert 1_500_000 < len(source) < 3_000_000
    steps = [int(image["data-step"]) for image in found.all("img") if "data-step" in image]
    assert len(steps) >= 6 and steps[0] == 0 and steps[-1] == 29
    assert f"{len(steps)} of 30 pictures" in found.words
    assert len(found.all("img")) == len(steps) + len(page.PICTURES)


@pytest.mark.parametrize("count", [2, 20])
def test_rows_of_classes_have_their_names(tmp_path, count):
    """Of many classes, training.class_rows draws 16."""
    classes = [f"class {i}" for i in range(count)]
    source, _ = page_of(make_run(tmp_path / "run", [0], classes, "cgan"))
    names = re.search('<ol class="names">(.*?)</ol>', source).group(1)
    assert re.findall("<span>(.*?)</span>", names) == classes[:16]
    others = [make_run(tmp_path / "plain", [0], classes, "dcgan")]
    others.append(make_run(tmp_path / "other", [0], classes, "cgan"))  # a script draws other rows
    shutil.copy(
        make_run(tmp_path / "wide", [0], "abc") / "samples/000000.png", others[1] / "samples"
    )
    for other in others if count < 16 else others[:1]:
        assert '<ol class="names">' not in page_of(other)[0]


def test_what_the_script_knows_of_the_curves(tmp_path):
    """Values of log.csv; of a long log a thousand rows, and every FID."""
    _, found = page_of(make_run(tmp_path / "run"))
    data = json.loads(found.scripts[0])
    assert (data["first"], data["last"], data["per_epoch"]) == (5, 100, 10)
    loss_d, loss_g, fid = (plot["curves"][0] for plot in data["plots"])
    assert loss_d["step"] == loss_g["step"] == loss_g["y"] == list(range(5, 101, 5))
    assert np.allclose(loss_d["y"], 1 / np.arange(5, 101, 5), rtol=1e-4)
    assert fid == {"step": [50, 100], "y": [25, 50]}
    _, found = page_of(make_run(tmp_path / "long", rows=range(1, 3001)))
    *_, loss_g, fid = (plot["curves"][0] for plot in json.loads(found.scripts[0])["plots"])
    assert len(loss_g["step"]) == 1000 and loss_g["step"][::999] == [1, 3000]
    assert fid["step"] == list(range(50, 3001, 50))


def test_curves_are_drawn_where_their_values_are():
    steps = np.array([0, 50, 100])
    curve = page.Curve("a", steps, np.array([0.0, 1.0, 1.0]), None)
    curve = curve._replace(mean=curve.values)
    content, known = page.plot("a", [("a", 0, curve)], (0, 100), (50, 1))
    margin = 0.06  # of the range, below and above
    assert np.isclose(known["low"], -margin) and np.isclose(known["high"], 1 + margin)
    path = re.findall('<path class="c0 d0" d="M(.*?)"/>', content)[-1]  # the first is the legend's
    assert content.count("h0") == 3  # a dot for each
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    top = 300 * margin / (1 + 2 * margin)
    expected = [(0, 300 - top), (500, top), (1000, top)]
    assert np.allclose(points, expected, atol=0.1)
    assert 'class="ring" style="left:50.00%;bottom:94.64%"' in content


@pytest.mark.parametrize(
    "low, high", [(0, 1), (-3.2, 7.1), (0.0701, 0.0912), (1e-9, 2e-9), (5, 600_000)]
)
def test_ticks_are_round_and_inside(low, high):
    ticks = page.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6 and low <= ticks[0] and ticks[-1] <= high * (1 + 1e-9)
    step = f"{ticks[1] - ticks[0]:.1e}"
    assert step[:3] in ("1.0", "2.0", "5.0") and np.allclose(np.diff(ticks), float(step))


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [0.0, 0.0, 0.0], [-1e30, 1e30]])
def test_odd_curves(values):
    """One row, constant columns, and far apart ones."""
    values = np.array(values)
    curve = page.Curve("a", np.arange(len(values)), values, values)
    ends = page.span(curve.steps)
    content, known = page.plot("a", [("a", 0, curve)], ends)
    assert "nan" not in content and known["low"] < values.min() and values.max() < known["high"]


# ------------------------------------------------------------------------------------- escaping


@pytest.fixture
def hostile(tmp_path):
    """A run whose names are HTML, JavaScript, and the marks of the template."""
    name = "it's \"<b>&amp;<!--data-->"
    run = make_run(tmp_path / name, classes=[HOSTILE, "<!--body-->", "a\x1b[31m"], script="cgan")
    args = json.loads((run / "args.json").read_text())
    args["data"]["name"] = "<i onload=x>"
    args["flags"]["data"] = "$(rm -r ~) </script>"
    (run / "args.json").write_text(json.dumps(args))
    text = (run / "log.csv").read_text().replace("loss_g", "loss_</script><b>x")
    (run / "log.csv").write_text(text)
    value = {"name": f"FID of {HOSTILE}", "value": 1.0, "real": None, "protocol": "<p onclick=x>"}
    result = {"values": [value], "report": {"protocol": "</dd><u>"}, "step": 100}
    (run / "metrics.json").write_text(json.dumps(result))
    return run


def test_names_stay_text(hostile):
    source, found = page_of(hostile)
    _, usual = page_of(make_run(hostile.parent / "usual", classes=["a", "b", "c"], script="cgan"))
    assert {tag for tag, _ in found.elements} - {"details"} <= {
        tag for tag, _ in usual.elements
    } | {"table", "dl", "dt", "dd", "small"}
    assert len(found.all("script")) == len(found.scripts) == 2 == len(usual.scripts)
    assert found.scripts[1] == usual.scripts[1]  # page.html's own
    json.loads(found.scripts[0])
    template = (ROOT / "page.html").read_text(encoding="utf-8")
    assert source.count("<!--") == template.count("<!-- Only")
    for words in (HOSTILE, "<!--body-->", hostile.name, "<i onload=x>", "<p onclick=x>", "</dd><u>",
                  "a\\x1b[31m", "'--data=$(rm -r ~) </script>'"):  # fmt: skip
        assert words in found.words, words
    assert "\x1b" not in source


# --------------------------------------------------------------------------------- what is missing


def test_no_next_step_loses_what_another_has_measured(tmp_path):
    """The search for copies replaces the file of an earlier measurement: it has the floor, too."""
    run = make_run(tmp_path / "run")
    (run / "last.pt").touch()
    _, found = page_of(run)
    assert f"python metrics.py toy.zip {run} --floor --neighbours" in found.words


def test_an_empty_run(tmp_path):
    run = make_run(tmp_path / "run", steps=[])
    (run / "log.csv").unlink()
    _, found = page_of(run)
    assert "There are none yet" in found.words and "log.csv holds none yet" in found.words
    assert "python sample.py" not in found.words  # there is no checkpoint to sample
    assert not found.all("img") and not found.all("input")


def test_a_damaged_picture_is_left_out_and_counted(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "samples/000100.png").write_bytes(b"none")
    (run / "strip.png").write_bytes(b"none")
    _, found = page_of(run)
    assert [image["data-step"] for image in found.all("img")] == ["0", "20", "40", "60", "80"]
    assert "5 of 6 pictures; 1 damaged" in found.words
    for path in run.glob("samples/*.png"):
        path.write_bytes(b"none")
    _, found = page_of(run)
    assert "The pictures in samples/ of run are damaged" in found.words


def test_a_damaged_metrics_json_costs_its_numbers(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "metrics.json").write_text("{")
    _, found = page_of(run)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no numbers in report.html: " in error
    assert "Numbers" not in found.words and len(found.all("img")) == 6


def test_without_page(tmp_path, monkeypatch, capsys):
    """A copy of report.py alone makes its pictures, and the comparison without its page."""
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    monkeypatch.setattr(training, "tool", lambda name: None if name == "page" else report)
    for name in ("draw_losses", "draw_interpolation", "draw_progress", "draw_overlay"):
        monkeypatch.setattr(report, name, lambda *_: b"drawn")
    assert "report.html" not in [path.name for path in report.report(tmp_path / "a")]
    monkeypatch.setattr(report, "comparison_table", lambda *_: ([["", "a", "b"]], []))
    report.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert (tmp_path / "comparison.md").exists() and not (tmp_path / "comparison.html").exists()
    assert "no report.html" not in capsys.readouterr().err


def test_without_the_template(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "__file__", str(tmp_path / "page.py"))
    with pytest.raises(InputError, match="it needs page.html next to page.py"):
        page_of(make_run(tmp_path / "run"))


def test_a_page_that_fails_costs_one_line(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(page, "run_page", lambda *_: 1 / 0)
    for name in ("draw_losses", "draw_weights", "draw_interpolation", "draw_progress"):
        monkeypatch.setattr(report, name, lambda *_: b"drawn")
    written = [path.name for path in report.report(run)]
    assert "strip.png" in written and "report.html" not in written
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no report.html: " in error


# --------------------------------------------------------------------------------- comparison.html


def compare(*folders):
    runs = []
    for folder in folders:
        args = report.read_run(folder)
        runs.append(report.run_for_page(page, folder, args, folder.name))
    rows = [["", *(run.name for run in runs), "real images"], ["FID-768", "1.5", "2.5", "0.5"]]
    notes = [("FID-768 of a", "shared; 90 images"), ("FID-768 of b", "shared; 80 images")]
    return page.comparison_page(runs, rows, notes)


def test_comparison(tmp_path):
    a = make_run(tmp_path / "a", rows=range(5, 101, 5))
    b = make_run(tmp_path / "b", steps=(0, 50, 100), rows=range(10, 61, 10))
    log = (b / "log.csv").read_text().replace("loss_g", "loss_critic")
    (b / "log.csv").write_text(log)
    found = Elements(compare(a, b))
    assert len(found.all("input")) == 2  # one for the samples of both, one for the curves
    alts = [image["alt"] for image in found.all("img")]
    assert len(alts) == 6 + 3 and "b: samples at step 50 (epoch 5)" in alts
    data = json.loads(found.scripts[0])
    assert (data["first"], data["last"]) == (5, 100)
    assert [len(plot["curves"]) for plot in data["plots"]] == [2, 1, 2, 1]  # d, g, FID, critic
    assert found.words.count("shared") == 1 and "FID-768 of a, FID-768 of bshared" in found.words
    assert found.words.count(page.MEANINGS["FID"]) == 1
    assert len(found.all("table")) == 1
    source = compare(a, b)
    critic = source[source.index("critic") :]
    assert 'class="c1 d0"' in critic and 'class="c0 d0"' not in critic  # b keeps its color


# --------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium():
    """A Chromium by playwright: its own, or the system's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((path for name in names if (path := shutil.which(name))), None)
    with playwright.sync_playwright() as driver:
        try:
            options = {"executable_path": path, "args": ["--no-sandbox"], "timeout": 60_000}
            browser = driver.chromium.launch(**options)
        except playwright.Error:
            pytest.skip("no Chromium: playwright install chromium")
        yield browser
        browser.close()


def test_the_pages_in_a_browser(hostile, chromium):
    """Sliders move by keyboard, curves are read, nothing overflows, runs, or asks the network."""
    problems = []
    (hostile / "report.html").write_text(page_of(hostile)[0], encoding="utf-8")
    other = make_run(hostile.parent / "other", steps=(0, 100))
    (hostile.parent / "comparison.html").write_text(compare(hostile, other), encoding="utf-8")
    tab = chromium.new_page(has_touch=True)
    tab.set_default_timeout(60_000)
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("dialog", lambda dialog: problems.append(dialog.message))
    tab.on("request", lambda request: problems.append(request.url[:50])
           if not request.url.startswith(("file:", "data:")) else None)  # fmt: skip
    for path in (hostile / "report.html", hostile.parent / "comparison.html"):
        tab.goto(path.as_uri())
        for width in (400, 1600):
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        slider = tab.locator("#films input")
        images = tab.locator("#films img:visible")
        slider.focus()
        steps = []
        for key in ("End", "ArrowLeft", "ArrowLeft", "Home", "ArrowRight"):
            tab.keyboard.press(key)
            steps.append(images.first.get_attribute("data-step"))
        assert steps == ["100", "80", "60", "0", "20"]
        assert slider.get_attribute("aria-valuetext") == "step 20"
        captions = tab.locator(".film figcaption").all_inner_texts()
        assert captions[0] == f"{hostile.name}: samples at step 20 (epoch 2)"
        reader = tab.locator("#curves input")
        assert reader.get_attribute("aria-valuetext").startswith("step 20")  # it follows
        reader.focus()
        tab.keyboard.press("ArrowRight")
        assert tab.locator(".legend b").first.inner_text() == "0.04"  # 1 / 25
        assert tab.locator("#curves output").inner_text().startswith("step 25")
    assert captions[1] == "other: samples at step 0 (epoch 0)"  # it has none of step 20 itself
    tab.goto((hostile / "report.html").as_uri())
    tab.locator(".axes svg").first.scroll_into_view_if_needed()
    box = tab.locator(".axes svg").first.bounding_box()
    tab.mouse.move(box["x"] + 1, box["y"] + 9)
    assert tab.locator("#curves output").inner_text() == "step 5, epoch 0.5"
    fid = tab.locator(".plot").nth(2).locator("b")
    assert fid.inner_text() == "-"  # not measured yet
    tab.mouse.move(box["x"] + box["width"] * (60 - 5) / 95, box["y"] + 9)
    assert fid.inner_text() == "25 at 50"
    tab.touchscreen.tap(box["x"] + box["width"] - 1, box["y"] + 9)
    assert fid.inner_text() == "50"
    click = "button => { button.click(); return button.getAttribute('aria-label') }"
    button = tab.locator("#films button")
    assert [button.evaluate(click) for _ in range(2)] == ["stop", "play"]
    assert tab.locator("#films output").inner_text() in ("step 0", "step 20")  # from the start
    assert button.evaluate(click) == "stop"
    tab.locator("#films output", has_text="step 100").wait_for()
    tab.locator("#films button[aria-label=play]").wait_for()  # it stops at the end by itself
    assert tab.locator(".names span").first.inner_text() == HOSTILE
    assert tab.locator("script").count() == 2 and problems == []
    tab.close()
