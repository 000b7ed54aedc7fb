"""What kind of smoother each head is, by the keys that it read: how wide its kernel is among them, and what it believes of them
beforehand.

softmax(scale q·k) is Nadaraya and Watson's smoother with a Gaussian kernel of bandwidth h = 1/√scale, under the prior
exp(scale |k|² / 2) over keys. It stays what it is when all keys move by the same vector, so that it is that with the prior
exp(scale |k − c|² / 2) too, for every c, at the place q + c. Here c is where the prior is flattest, the centre of the sphere on
which the keys lie best: the least that keeps the head from being a smoother without a prior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..engines.reference import whole
from ..normalizers import Softmax
from ..running import canonical
from ..scores import Product, ScaledDot, SoftCap
from ..watching import Call, Probe


def probe(found: dict[str, dict[str, Tensor]]) -> Probe:
    """A probe for ``watch`` that puts two statistics, (H,) each, into ``found`` by layer name; none for a layer whose scores
    are not the products of queries and keys at one scale.

    bandwidth:    h over the root mean square distance of the keys from their mean
    prior_spread: standard deviation of scale |k − c|² / 2 over the keys; NaN where there are no more of them than fit a sphere
    """

    def look_at(call: Call) -> None:
        form = call.arguments.get("score", ScaledDot()).lower(call.query, call.key)
        temperature = call.arguments.get("normalizer", Softmax()).temperature
        if not isinstance(form, Product) or not _is_kernel(form) or (isinstance(temperature, Tensor) and temperature.ndim > 1):
            return
        given, real = call.arguments.get("scale"), real_keys(call)
        scale = _number(form.scale if given is None else given) / _number(temperature)
        spreads = [spreads_of(keys.flatten(0, 1) if real is None else keys[real]) for keys in form.key.unbind(1)]
        group = call.query.shape[1] // len(spreads)
        away, off = torch.tensor(spreads, dtype=torch.float64).repeat_interleave(group, 0).unbind(1)
        found[call.layer] = {"bandwidth": (scale.rsqrt() / away).float(), "prior_spread": (scale * off / 2).float()}

    return look_at


def spreads_of(keys: Tensor) -> tuple[float, float]:
    """Keys (n, E): the root mean square of their distance from their mean, and the standard deviation of |k − c|² for the c
    that leaves the least (|k|² − 2 c·k: a least-squares fit, which takes E + 1 degrees of freedom)."""
    count, width = keys.shape
    keys = keys.cpu().to(torch.promote_types(keys.dtype, torch.float32))
    keys = keys - keys.mean(0)
    squares = keys.square().sum(1)
    mean = float(squares.mean())
    if count <= width + 1 or not math.isfinite(mean):
        return math.sqrt(mean), math.nan
    squares = (squares - mean)[:, None]
    normal = (keys.mT @ torch.cat([keys, squares], 1)).double()
    twice_c = torch.linalg.lstsq(normal[:, :width], normal[:, width:]).solution.to(keys.dtype)
    rest = squares - keys @ twice_c
    return math.sqrt(mean), math.sqrt(float(rest.square().sum()) / (count - width - 1))


def real_keys(call: Call) -> Tensor | None:
    """(B, S) True for keys that are no padding; None: all of them."""
    batch, groups, keys, _ = call.key.shape
    if not call.cross and call.query.shape[2] == keys:
        return call.rows
    problem, _, _ = canonical(call.query, call.key, call.value, **call.arguments)
    visible = problem.mask.visible(whole(problem))  # broadcasts to (B Hkv, G, L, S)
    seen = visible[(None,) * (4 - visible.ndim)].any(2).any(1)
    return seen.expand(batch * groups, keys).reshape(batch, groups, keys).any(1)


def _is_kernel(form: Product) -> bool:
    """Whether the products are taken as they are or capped, with one scale for all queries and no bias of keys."""
    return form.key_bias is None and form.ssmax is None and isinstance(form.pointwise, SoftCap | None)


def _number(x: float | Tensor) -> Tensor:
    """() or (H,) in double precision, which not every device has."""
    return torch.as_tensor(x, device="cpu").double()
