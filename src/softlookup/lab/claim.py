"""A claim: what theory says, in numbers that were written down before the first measurement.

A folder for each: `README.md` (the claim, its source, what would refute it), `prediction.toml` (the intervals), `experiment.py`
(what measures them) and `result.json` (what was found in full).
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from math import inf
from pathlib import Path
from types import ModuleType

from ..errors import SoftlookupError

HOME = Path(__file__).parent


@dataclass(frozen=True)
class Quantity:
    """A number that an experiment measures for each seed, and the interval that theory gives for its mean."""

    name: str
    meaning: str
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Claim:
    """number, title: in the lab's list. control: what is taken away there, after which the prediction should fail. seeds,
    quick_seeds: how often it is measured."""

    name: str
    number: int
    title: str
    control: str
    seeds: int
    quick_seeds: int
    quantities: tuple[Quantity, ...]

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return HOME / self.name

    @property
    def text(self) -> str:
        """Its README."""
        return (self.folder / "README.md").read_text(encoding="utf-8")

    @property
    def experiment(self) -> ModuleType:
        """`measure(given) -> dict` and `draw(axes, found, control)`."""
        return import_module(f"{__package__}.{self.name}.experiment")


@cache
def claims() -> dict[str, Claim]:
    """All, by name, in the order of their numbers."""
    found = [_read(path) for path in HOME.glob("*/prediction.toml")]
    return {each.name: each for each in sorted(found, key=lambda claim: claim.number)}


def chosen(names: Sequence[str]) -> list[Claim]:
    """Claims by their names; "all" names all."""
    known = claims()
    for name in names:
        if name not in (*known, "all"):
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ", which `softlookup lab list` shows"
            raise SoftlookupError(f"{name}: expected all or the name of a claim{hint}")
    return list(known.values()) if "all" in names else [known[name] for name in dict.fromkeys(names)]


def _read(path: Path) -> Claim:
    said = tomllib.loads(path.read_text(encoding="utf-8"))
    quantities = tuple(
        Quantity(name, each["meaning"], each.get("low", -inf), each.get("high", inf), each["source"])
        for name, each in said.pop("quantity").items()
    )
    return Claim(path.parent.name, quantities=quantities, **said)
