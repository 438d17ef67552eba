"""notebooks/quickstart.ipynb, executed at tiny length in an empty folder."""

import json
import shutil

import pytest
from conftest import ROOT, make_folder, make_zip

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
FILES = "dcgan wgan_gp sample metrics report page neighbours inception training datasets "
FILES += "sources folders"
TINY = {
    "FIRST": "--size 16 --width 4 --batch 8 --steps 2 --device cpu",
    "OWN": "--size 16 --width 4 --batch 8 --steps 2 --device cpu",
    "OTHER": "--size 16 --width 4 --batch 8 --steps 2 --device cpu",
}


def test_the_notebook_is_clean_and_holds_no_code_of_the_scripts():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    lines = {line.strip() for cell in cells for line in cell["source"]}
    for path in ROOT.glob("*.py"):
        own = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
        assert not {line for line in lines & own if len(line) > 40}, path.name
    assert not any(line.startswith(("import torch", "from torch")) for line in lines)


def test_the_notebook_runs(here, small_weights, monkeypatch):
    """From a zip of the project and a zip of photos to the comparison of two runs."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    (here / "project").mkdir()
    for name in FILES.split():
        shutil.copy(ROOT / f"{name}.py", here / "project")
    shutil.copy(ROOT / "page.html", here / "project")
    shutil.make_archive(str(here / "plaingen"), "zip", here, "project")
    make_zip(make_folder(here / "photos", [f"{i}.png" for i in range(30)]), here / "photos.zip")
    values = TINY | {"DATA": "photos.zip", "SOURCE": "plaingen.zip"}
    values["MEASURE"] = f"--eval-images 10 --dims 64 --weights {small_weights}"
    notebook = nbformat.read(NOTEBOOK, 4)
    [parameters] = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())
    ]
    assert all(f"\n{name} = " in f"\n{parameters.source}" for name in values)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(here / "ipython"))
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.execute(cwd=str(here))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert ": error: " not in text and "Traceback" not in text, text
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 6
    runs = here / "plaingen" / "project" / "runs"
    assert all((runs / name / "last.pt").is_file() for name in ("first", "own", "other"))
    assert (runs / "own" / "metrics-last-photos.json").is_file()
    assert "near training (features 64)" in text and (runs / "comparison.html").is_file()
