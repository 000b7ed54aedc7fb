"""Runs a claim's experiment, with the mechanism and without, and says where the numbers lie beside the prediction."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf, nan
from pathlib import Path
from typing import Any

import torch

from ..errors import SoftlookupError, UnsupportedError
from ..inspection.writing import finite
from .claim import Claim
from .extra import extra
from .records import Records
from .verdict import Measured, Verdict, together

Say = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Given:
    """What an experiment is given. seed: of all that is random. quick: small, seconds in all. control: without the mechanism
    that the claim is about. records: of trainings, which a quick run may read too."""

    seed: int
    quick: bool
    control: bool
    records: Records

    def record(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, or what it returned when it was kept: for trainings of minutes. key: the training in words, seed
        and sizes included. A quick run, whose trainings are smaller, makes them."""
        return make() if self.quick else self.records.get(key, make)


@dataclass(frozen=True)
class Result:
    """found, control: what `measure` returned for each seed, with the mechanism and without."""

    claim: Claim
    quick: bool
    seconds: float
    found: list[dict[str, Any]]
    control: list[dict[str, Any]]

    @property
    def command(self) -> str:
        """What makes it."""
        return f"softlookup lab run {self.claim.name}{' --quick' * self.quick}"

    def measured(self, name: str, control: bool = False) -> Measured:
        """A quantity over seeds."""
        values = (each[name] for each in (self.control if control else self.found))
        return Measured.of([nan if value is None else value for value in values])

    def verdict(self, control: bool = False) -> Verdict:
        """Of all predictions together."""
        return together(self.measured(q.name, control).verdict(q.low, q.high) for q in self.claim.quantities)

    @property
    def flips(self) -> bool:
        """Is a prediction that is confirmed with the mechanism refuted without it?"""
        verdicts = [[self.measured(q.name, x).verdict(q.low, q.high) for q in self.claim.quantities] for x in (False, True)]
        return (Verdict.CONFIRMED, Verdict.REFUTED) in zip(*verdicts, strict=True)

    def rows(self) -> list[dict[str, Any]]:
        """One for each prediction, as JSON: infinite bounds are null."""
        rows = []
        for q in self.claim.quantities:
            with_it, without = self.measured(q.name), self.measured(q.name, control=True)
            rows.append(
                {
                    "name": f"{self.claim.name}/{q.name}",
                    "quick": self.quick,
                    "prediction": q.meaning,
                    "interval": [None if abs(bound) == inf else bound for bound in (q.low, q.high)],
                    "measured": asdict(with_it),
                    "verdict": with_it.verdict(q.low, q.high),
                    "control": asdict(without) | {"verdict": without.verdict(q.low, q.high)},
                }
            )
        return rows

    def to_json(self) -> str:
        """found and control a line for each seed, null where there is no number."""
        plain = {"name": self.claim.name, "quick": self.quick, "seconds": round(self.seconds, 1)}
        lists = (
            f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(finite(each)) for each in some) + "\n]"
            for key, some in (("found", self.found), ("control", self.control))
        )
        return json.dumps(plain)[:-1] + ",\n" + ",\n".join(lists) + "}\n"

    @classmethod
    def read(cls, claim: Claim, path: Path) -> Result:
        """From a file as `to_json` has it."""
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            result = cls(claim, said["quick"], float(said["seconds"]), said["found"], said["control"])
            if said["name"] != claim.name or not result.rows():
                raise KeyError
        except UnsupportedError:  # a ValueError too, and no fault of the file
            raise
        except (ValueError, TypeError, KeyError):
            raise SoftlookupError(f"{path}: expected a result of {claim.name}, found something else") from None
        return result


def committed(claim: Claim) -> Result | None:
    """The full result that the package brings."""
    path = claim.folder / "result.json"
    return Result.read(claim, path) if path.exists() else None


def run(claim: Claim, quick: bool = False, retrain: Path | None = None, say: Say = lambda stage, share: None) -> Result:
    """quick: seconds, few seeds, small sizes. retrain: make the trainings again and keep their records below this folder; those
    that are there already are taken."""
    new = None if retrain is None else retrain / claim.name / "records.json"
    kept = claim.folder / "records.json" if retrain is None else None
    records, start, threads = Records(kept, new), time.perf_counter(), torch.get_num_threads()
    seeds = range(claim.quick_seeds if quick else claim.seeds)
    both: list[list[dict[str, Any]]] = []
    torch.set_num_threads(1)  # small tensors, for which a second one is in the way
    try:
        for control in (False, True):
            both.append([])
            for seed in seeds:
                done = (control * len(seeds) + seed) / (2 * len(seeds))
                say(f"{claim.name}{', control' if control else ''}, seed {seed}", done)
                with extra():
                    both[-1].append(claim.experiment.measure(Given(seed, quick, control, records)))
    finally:
        torch.set_num_threads(threads)
    return Result(claim, quick, time.perf_counter() - start, *both)
