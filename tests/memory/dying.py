"""A process that changes a table without end, and says before each change what it will do and after it that it is done."""

from __future__ import annotations

import random
from multiprocessing.connection import Connection
from typing import Any

import torch

from softlookup.memory import SoftTable

WIDTH, VALUES, SHARD = 4, 3, 50


def row(i: int, version: int) -> tuple[list[float], list[float], Any]:
    """Key, value and payload of a row's version."""
    draw = random.Random(i * 1000 + version)
    key = [round(draw.uniform(-1, 1) * 64) / 64 for _ in range(WIDTH)]
    return key, [float(i), float(version), sum(key)], f"{i} {version} {'é' * draw.randrange(200)}".encode()


def rows(ids: list[int], version: int) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """The same of several."""
    keys, values, payloads = zip(*(row(i, version) for i in ids), strict=True)
    return torch.tensor(keys), torch.tensor(values), list(payloads)


def change(folder: str, seed: int, out: Connection) -> None:
    """Until it is killed."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    with SoftTable.open(folder, write=True) as table:
        versions = {int(i): int(v) for i, v, _ in table.get().values.tolist()} if len(table) else {}
        fresh = seed * 10_000  # floats of 32 bits say it exactly
        while True:
            kind = draw.choices(("add", "update", "delete", "compact"), (4, 4, 4, 1))[0]
            if kind == "add":
                ids, version = list(range(fresh, fresh + draw.randrange(1, 30))), 0
                fresh += len(ids)
            else:
                ids = draw.sample(sorted(versions), min(len(versions), draw.randrange(1, 40)))
                version = max((versions[i] for i in ids), default=0) + 1
            out.send((kind, ids, version))
            if kind == "add":
                table.add(*rows(ids, version), ids=ids)
            elif kind == "update":
                table.update(ids, *rows(ids, version)) if ids else None
            elif kind == "delete":
                table.delete(ids)
            else:
                table.compact()
            out.send("done")
            applied(versions, kind, ids, version)


def applied(versions: dict[int, int], kind: str, ids: list[int], version: int) -> None:
    """A change, to what is known of the rows."""
    for i in ids:
        if kind == "delete":
            del versions[i]
        elif kind != "compact":
            versions[i] = version
