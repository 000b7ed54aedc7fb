"""The docs are true: every python block of the README and of the pages runs, in order, page by page."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if "```python" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a block writes
    scope: dict[str, object] = {"__name__": "docs"}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, page.name, "exec"), scope)


def test_links_between_pages_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def public(module: ModuleType) -> dict[str, object]:
    """Names of functions, classes and constants; modules that a package brings stand for themselves."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = {name: getattr(module, name) for name in names}
    own = {name: x for name, x in found.items() if getattr(x, "__module__", "softlookup").startswith("softlookup")}
    return {f"{module.__name__}.{name}": x for name, x in own.items() if not isinstance(x, ModuleType)}


def test_every_public_name_stands_once_in_the_reference():
    packages = "geometry lab linear manifolds memory nn remedies seq2seq smoothing sparse training watching".split()
    modules = [import_module("softlookup"), *(import_module(f"softlookup.{name}") for name in packages)]
    listed = [
        name for page in (ROOT / "docs" / "api").glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    ]
    things = [getattr(import_module(module), attribute) for module, _, attribute in (name.rpartition(".") for name in listed)]
    assert len(listed) == len(set(map(id, things)))
    assert [name for module in modules for name, x in public(module).items() if all(x is not each for each in things)] == []
    assert [x for x in things if (isclass(x) or isfunction(x)) and not x.__doc__] == []
