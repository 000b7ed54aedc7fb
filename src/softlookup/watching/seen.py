"""Everything that a watch has seen, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import SoftlookupError
from .call import Call
from .frame import load_pandas
from .layer import LayerSeen
from .sampling import Sample
from .table import Table, table_of

if TYPE_CHECKING:
    from ..summary import Stats


class Seen:
    """What `watch` yields: per layer and head, the moments and quantiles of each statistic. No per-token tensor is kept
    unless keep="rows" or "graph" asks for those of the last call.
    """

    def __init__(self, stats: Sequence[str], keep: str = "heads"):
        if keep not in ("heads", "rows", "graph"):
            raise SoftlookupError(f'keep: expected "heads", "rows" or "graph", got {keep!r}')
        self.stats = tuple(stats)
        self.keep = keep
        self.layers: dict[str, LayerSeen] = {}

    def record(self, call: Call, stats: Stats, sample: Sample | None = None) -> None:
        """Fold in one call with the statistics that `attend` gave for it (`visible` among them); sample: how its query
        positions were chosen, None where they are all.
        """
        heads = call.query.shape[-3]
        self._layer(call.layer, heads, call.cross).add(stats, call.rows, sample)

    def clear(self) -> None:
        """Forget what was seen; what follows is of the calls from now on, as of one step of training."""
        for layer in self.layers.values():
            layer.clear()

    def gathered(self, group: Any = None) -> Seen:
        """What all processes of a `torch.distributed` group have seen together, the same on each, in one exchange. Every
        process of the group has to call it; what it was called on stays as it was.
        """
        import torch.distributed as dist

        each: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(each, self, group)
        together: Seen = each[0]
        for seen in each[1:]:
            for name, layer in seen.layers.items():
                if name in together.layers:
                    together.layers[name].merge(layer)
                else:
                    together.layers[name] = layer
        return together

    def _layer(self, name: str, heads: int, cross: bool) -> LayerSeen:
        """The layer called `name`; a module that attends in two ways (self and cross, say) is two layers."""
        variant = name
        for suffix in ("", " (cross)" if cross else " (self)", f" ({heads} heads)"):
            variant += suffix
            layer = self.layers.get(variant)
            if layer is None:
                stats = tuple(s for s in self.stats if not (cross and s == "distance"))
                layer = self.layers[variant] = LayerSeen(variant, heads, cross, stats, self.keep)
            if (layer.heads, layer.cross) == (heads, cross):
                return layer
        raise AssertionError("unreachable: the last name determines heads and cross")

    def table(self, stats: str | Sequence[str] | None = None) -> Table:
        """A layer x head table of means that prints itself in 80 columns; `stats`, a name or several, picks others than
        the main ones."""
        return table_of(self, stats)

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row per layer and head: `count`; mean, std, stderr (of the mean), min, max and median
        of each statistic.

        `SoftlookupError` where pandas is not installed."""
        pandas = load_pandas()
        records = []
        for layer in self.layers.values():
            columns: dict[str, Any] = {"layer": layer.name, "head": range(layer.heads), "count": layer.counts.tolist()}
            for stat in layer.stats:
                for summary in ("mean", "std", "stderr", "min", "max"):
                    columns[f"{stat}_{summary}"] = getattr(layer, summary)(stat).tolist()
                columns[f"{stat}_median"] = layer.quantile(stat, 0.5).tolist()
            records.append(pandas.DataFrame(columns))
        return pandas.concat(records, ignore_index=True) if records else pandas.DataFrame()

    def __repr__(self) -> str:
        heads = sum(layer.heads for layer in self.layers.values())
        return f"Seen({len(self.layers)} layers, {heads} heads; .table() shows them)"
