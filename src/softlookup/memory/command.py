"""What `softlookup table` does; cli.py only says how it is called."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from typing import Any

import torch
from rich.cells import cell_len, set_cell_size
from torch import Tensor

from ..errors import SoftlookupError
from ..files import expanded
from .importing import read_array, read_rows
from .ledger import Committed
from .table import SoftTable

NUMBERS = 6
"""Of a value, on the screen."""
BEFORE = 35
"""Columns of the screen before a payload."""


def create(folder: str, key_width: int, value_width: int) -> str:
    with SoftTable.create(folder, key_width, value_width) as table:
        return f"Table: {table.folder} (keys of {key_width}, values of {value_width}, no rows)"


def add(folder: str, files: list[str], values: str | None) -> str:
    """All files or none."""
    if values is not None and len(files) > 1:
        raise SoftlookupError(f"--values: expected one file of keys beside it, got {len(files)}")
    read = [read_rows(file, values) for file in files]
    added = sum(len(rows.keys) for rows in read)
    with SoftTable.open(folder, write=True) as table:
        with suppress(Committed), table.together():
            for file, rows in zip(files, read, strict=True):
                try:
                    table.add(rows.keys, rows.values, rows.payloads, rows.ids)
                except SoftlookupError as error:
                    raise SoftlookupError(f"{file}: {error}") from error
        return f"Table: {table.folder} ({added:,} rows added, {len(table):,} in all)"


def build(folder: str, kind: str, cells: int | None) -> str:
    with SoftTable.open(folder, write=True) as table:
        with suppress(Committed):
            table.index(kind, cells)  # type: ignore[arg-type]
        return f"Table: {table.folder} ({', '.join(table.stats()['index'])})"


def compact(folder: str) -> str:
    with SoftTable.open(folder, write=True) as table:
        before = table.stats()
        with suppress(Committed):
            table.compact()
        after = table.stats()
        again = "; index is to be built again" if before["index"] else ""
        less = before["bytes"] - after["bytes"]
        return f"Table: {table.folder} ({before['deleted']:,} deleted rows gone, {less:,} bytes less{again})"


def delete(folder: str, ids: list[int]) -> str:
    with SoftTable.open(folder, write=True) as table:
        with suppress(Committed):
            table.delete(ids)
        return f"Table: {table.folder} ({len(ids):,} rows deleted, {len(table):,} left)"


def stats(folder: str) -> str:
    with SoftTable.open(folder) as table:
        found = table.stats()
    built = "; ".join(found.pop("index")) or "none"
    lines = [f"{name.replace('_', ' '):<12}{number:>16,}" for name, number in found.items()]
    return "\n".join([*lines, f"{'index':<12}{built:>16}"])


def verify(folder: str) -> tuple[str, list[str]]:
    """What to say where all is well, and what is not."""
    with SoftTable.open(folder) as table:
        wrong = table.verify()
        return f"Table: {table.folder} ({len(table):,} rows, every byte as it was written)" if not wrong else "", wrong


def query(folder: str, key: str, temperature: float, top_k: int, tolerance: float | None, as_json: bool) -> list[str]:
    """The lines of the answer: for each query its statistics and the best rows, with their share of the whole weight."""
    asked = _vectors(key)
    with SoftTable.open(folder) as table, table.reading():
        if asked.shape[1] != table.key_width:
            raise SoftlookupError(f"--key: expected {table.key_width} numbers, as keys have there, got {asked.shape[1]}")
        found = table.lookup(asked, temperature, tolerance=tolerance, top_k=None if tolerance is None else top_k)
        named = found if tolerance is not None else table.lookup(asked, temperature, top_k=top_k, stats="logsumexp")
        assert named.ids is not None and named.scores is not None and named.weights is not None
        shares = named.weights
        if temperature > 0:
            from_best = (named.scores - named.scores[:, :1]).double() / temperature
            shares = (from_best - found.summary.log_z.double()[:, None]).exp()
        all_ids = [i for i in named.ids.unique().tolist() if i >= 0]
        payloads, count, lines = dict(zip(all_ids, table.get(all_ids).payloads, strict=True)), len(table), []
        for n in range(len(asked)):
            best = zip(named.ids[n].tolist(), shares[n].tolist(), named.scores[n].tolist(), strict=True)
            rows = [{"id": i, "weight": w, "score": s, "payload": payloads[i]} for i, w, s in best if i >= 0]
            answer: dict[str, Any] = {
                "query": n,
                "value": None if found.value is None else found.value[n].tolist(),
                "entropy": float(found.stats.entropy[n]),
                "effective_rows": float(found.stats.effective_keys[n]),
                "rows_read": int(found.stats.visible[n]),
                "missed": float(found.missed[n]),
                "best_certified": bool(named.certified),
                "best": rows,
            }
            lines.append(_json(answer) if as_json else _shown(answer, count))
    return lines


def _shown(answer: dict[str, Any], count: int) -> str:
    read = "all" if answer["rows_read"] == count else f"{answer['rows_read']:,} of"
    lines = [
        f"query {answer['query']}: entropy {answer['entropy']:.2f} nats, {answer['effective_rows']:,.1f} effective rows; "
        f"read {read} {count:,}" + (f", missed at most {answer['missed']:.1e}" if answer["missed"] else "")
    ]
    if not answer["best_certified"]:
        lines.append("  best rows as the graph finds them, which may not be all")
    if answer["value"] is not None:
        more = " …" if len(answer["value"]) > NUMBERS else ""
        lines.append("  value  " + "  ".join(f"{x:.4g}" for x in answer["value"][:NUMBERS]) + more)
    room = max(20, shutil.get_terminal_size().columns - BEFORE)
    lines.append(f"  {'weight':>7}  {'score':>10}  {'id':>10}")
    for row in answer["best"]:
        payload = "" if row["payload"] is None else _text(row["payload"])
        score = f"{row['score']:.4f}" if abs(row["score"]) < 1e5 else f"{row['score']:.4g}"
        short = payload if cell_len(payload) <= room else set_cell_size(payload, room - 1).rstrip() + "…"
        lines.append(f"  {row['weight']:7.2%}  {score:>10}  {row['id']:>10}  {short}".rstrip())
    return "\n".join(lines)


def _text(payload: Any) -> str:
    if not isinstance(payload, str):
        payload = repr(payload) if isinstance(payload, bytes) else json.dumps(payload, ensure_ascii=False)
    return "".join(c if c.isprintable() else "·" for c in " ".join(payload.split()))


def _json(answer: dict[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False, default=lambda b: b.hex())


def _vectors(said: str) -> Tensor:
    """(n, d) from a .npy file, or from numbers: `[0.1, 0.2]`, `0.1,0.2`."""
    if said.endswith(".npy"):
        return read_array(expanded(said))
    try:
        found = torch.tensor([float(x) for x in said.strip("[] ").replace(",", " ").split()])
    except ValueError:
        found = torch.empty(0)
    if not len(found):
        raise SoftlookupError(f"--key: expected numbers like [0.1, 0.2], or a .npy file, got {said[:40]!r}")
    return found[None]
