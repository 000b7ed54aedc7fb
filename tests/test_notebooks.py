"""The notebooks are true: each runs top to bottom in a fresh kernel and an empty folder, its own assertions included, and what
is stored is such a run."""

from __future__ import annotations

import base64
import importlib.util
import re
from pathlib import Path

import pytest

from softlookup.inspection import bundled

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MODELS = {"inside_a_language_model": "smollm2"}
"""The bundled model that a notebook looks into."""


def by_name(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def command():
    """docs/notebooks/run.py, which stores them."""
    spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"first_steps", "inside_a_language_model", "watch_and_rescue"}


def by_length(path: Path):
    return pytest.param(path, id=path.stem, marks=() if path.stem == "first_steps" else pytest.mark.experiment)


@pytest.mark.slow
@pytest.mark.parametrize("path", map(by_length, NOTEBOOKS))
def test_runs_top_to_bottom(path, command, tmp_path):
    if path.stem in MODELS and bundled.installed(MODELS[path.stem]) is None:
        pytest.skip(f"needs {MODELS[path.stem]}")
    notebook = command.run(path, tmp_path)
    said = [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert not said, "a warning, or what else comes on standard error"
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_stored_as_run(path, command):
    notebook = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert outputs(notebook) and not any(output.output_type == "error" for output in outputs(notebook))
    assert not any(output.get("name") == "stderr" for output in outputs(notebook))
    assert notebook == command.bare(nbformat.read(path, as_version=4)), "stored by docs/notebooks/run.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_figures_are_small(path):
    images = [
        base64.b64decode(output.data["image/png"])
        for output in outputs(nbformat.read(path, as_version=4))
        if "image/png" in output.get("data", {})
    ]
    assert images, "a notebook shows something"
    assert max(map(len, images)) < 60_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_links_exist(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for target in re.findall(r"\]\((?!http)([^)#]+)", cell.source if cell.cell_type == "markdown" else ""):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
