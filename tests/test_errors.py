"""Bad input to the operator: one exception type, one line, what was expected and what was got, before anything is computed."""

from __future__ import annotations

import math
import time

import pytest
import torch

import softlookup as sl
from tests.cases import H, L, S, tensors


def refused(call) -> str:
    """The message of the refusal: one line that says what was expected and what was got."""
    with pytest.raises(sl.SoftlookupError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "got" in message and len(message) < 300, message
    return message


def attend(q=None, k=None, v=None, **more):
    """`attend` with good inputs, save for what is replaced."""
    query, key, value = tensors()
    return sl.attend(*(good if new is None else new for new, good in ((q, query), (k, key), (v, value))), **more)


def double(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


INPUTS = {
    "query is no tensor": (lambda: attend(q=[1.0]), "query: expected a torch tensor, got list"),
    "key is missing": (lambda: sl.attend(double(2, 2), None, double(2, 2)), "key: expected a torch tensor, got NoneType"),
    "integers": (lambda: attend(q=torch.ones(2, 4, 9, 5).long()), "query: expected float64, float32, bfloat16 or float16"),
    "complex": (lambda: attend(q=torch.ones(2, 4, 9, 5).cfloat()), "query: expected float64, float32"),
    "one dimension": (lambda: attend(v=double(13)), "value: expected at least 2 dimensions"),
    "widths": (lambda: attend(k=double(2, 2, 13, 4)), "ScaledDot: expected queries and keys of the same width, got 5 and 4"),
    "lengths": (lambda: attend(v=double(2, 2, 12, 3)), "value: expected as many rows as there are keys, 13, got 12"),
    "heads": (
        lambda: attend(k=double(2, 3, 13, 5), v=double(2, 3, 13, 3)),
        "key: expected a number of heads that divides the query's 4, got 3",
    ),
    "heads of the value": (lambda: attend(v=double(2, 4, 13, 3)), "value: expected the key's 2 heads, got 4"),
    "batch": (lambda: attend(k=double(3, 2, 13, 5)), "query, key, value: expected leading dimensions that broadcast"),
    "no heads": (lambda: attend(q=double(9, 5)), "query: expected"),
    "dtype of the key": (lambda: attend(k=double(2, 2, 13, 5).float()), "key: expected the query's dtype torch.float64"),
    "dtype of the value": (lambda: attend(v=double(2, 2, 13, 3).half()), "value: expected the query's dtype torch.float64"),
    "device": (lambda: attend(k=double(2, 2, 13, 5).to("meta")), "key: expected the query's device cpu, got meta"),
    "d = 0": (lambda: attend(q=double(2, 4, 9, 0), k=double(2, 2, 13, 0)), "query: expected every dimension to be at least 1"),
    "n = 0, queries": (lambda: attend(q=double(2, 4, 0, 5)), "query: expected every dimension to be at least 1"),
    "n = 0, keys": (
        lambda: attend(k=double(2, 2, 0, 5), v=double(2, 2, 0, 3)),
        "key: expected every dimension to be at least 1, got shape (2, 2, 0, 5)",
    ),
    "no batch": (lambda: attend(q=double(0, 4, 9, 5)), "query: expected every dimension to be at least 1"),
    "no value width": (lambda: attend(v=double(2, 2, 13, 0)), "value: expected every dimension to be at least 1"),
}

ARGUMENTS = {
    "score": (lambda: attend(score="dot"), "score: expected a Score, such as ScaledDot(), got str"),
    "score class": (lambda: attend(score=sl.Dot), "score: expected a Score, such as ScaledDot(), got the class Dot itself"),
    "softcap": (lambda: sl.ScaledDot(softcap=0.0), "softcap: expected a finite number > 0, got 0.0"),
    "softcap text": (lambda: sl.ScaledDot(softcap="a"), "softcap: expected a finite number > 0, got 'a'"),  # type: ignore
    "bandwidth text": (lambda: sl.Gaussian("a"), "Gaussian: expected a finite bandwidth > 0, got 'a'"),  # type: ignore
    "dropout text": (lambda: attend(dropout_p="a"), "dropout_p: expected a probability between 0 and 1, got 'a'"),
    "seed": (lambda: attend(dropout_p=0.1, seed="a"), "seed: expected a whole number, got 'a'"),
    "seed of k-means": (lambda: sl.sparse.route(*tensors(), clusters=2, seed=0.5), "seed: expected a whole number, got 0.5"),
    "query_offset text": (lambda: attend(query_offset="a"), "query_offset: expected a whole number, got 'a'"),
    "query_offset between": (lambda: attend(query_offset=1.5), "query_offset: expected a whole number, got 1.5"),
    "softcap NaN": (lambda: sl.ScaledDot(softcap=math.nan), "softcap: expected a finite number > 0, got nan"),
    "ssmax": (lambda: attend(score=sl.ScaledDot(ssmax=torch.ones(3))), "ssmax: expected a number or a tensor of shape (4,)"),
    "bandwidth": (lambda: sl.Gaussian(0.0), "Gaussian: expected a finite bandwidth > 0, got 0.0"),
    "bandwidth without a square": (lambda: attend(score=sl.Gaussian(1e-170)), "Gaussian: expected bandwidths h with finite"),
    "bandwidth tensor": (lambda: attend(score=sl.Gaussian(double(3))), "Gaussian: expected a bandwidth of shape"),
    "bilinear": (lambda: attend(score=sl.Bilinear(double(5, 4))), "Bilinear: expected w of shape (5, 5)"),
    "additive": (lambda: sl.Additive(double(4, 6), double(4, 5, 5), double(4, 6, 5)), "Additive: expected u (H, A)"),
    "additive width": (
        lambda: attend(score=sl.Additive(double(4, 6), double(4, 6, 5), double(4, 6, 7))),
        "Additive: expected w_k of shape (4, 6, 5), got (4, 6, 7)",
    ),
    "additive heads": (
        lambda: attend(score=sl.Additive(double(3, 6), double(4, 6, 5), double(4, 6, 5))),
        "Additive: expected u for 4 heads, got (3, 6)",
    ),
    "normalizer": (lambda: attend(normalizer="softmax"), "normalizer: expected a Normalizer, such as Softmax(), got str"),
    "temperature below 0": (
        lambda: attend(normalizer=sl.Softmax(temperature=-0.1)),
        "temperature: expected a finite number >= 0, got -0.1",
    ),
    "temperature NaN": (lambda: attend(normalizer=sl.Softmax(temperature=math.nan)), "temperature: expected a finite number"),
    "temperature inf": (lambda: attend(normalizer=sl.Softmax(temperature=math.inf)), "temperature: expected a finite number"),
    "temperature tensor of 0": (
        lambda: attend(normalizer=sl.Softmax(temperature=torch.tensor([1.0, 1.0, 0.0, 1.0]))),
        "temperature: expected every entry of the tensor > 0 and finite, got 0.0",
    ),
    "temperature tensor NaN": (
        lambda: attend(normalizer=sl.Softmax(temperature=torch.tensor([1.0, 1.0, math.nan, 1.0]))),
        "temperature: expected every entry of the tensor > 0 and finite, got nan",
    ),
    "temperature tensor inf": (
        lambda: attend(normalizer=sl.Softmax(temperature=torch.tensor(math.inf))),
        "temperature: expected",
    ),
    "temperature of wrong shape": (
        lambda: attend(normalizer=sl.Softmax(temperature=torch.ones(3))),
        "temperature: expected shape (), (4,) or one that broadcasts to (2, 4, 9), got (3,)",
    ),
    "temperature text": (lambda: attend(normalizer=sl.Softmax(temperature="hot")), "temperature: expected"),  # type: ignore
    "sink of wrong shape": (
        lambda: attend(normalizer=sl.Softmax(sink=torch.ones(3))),
        "sink: expected a number or a tensor of shape (4,), got (3,)",
    ),
    "sink text": (lambda: attend(normalizer=sl.Softmax(sink="x")), "sink: expected"),  # type: ignore
    "sink and temperature 0": (
        lambda: attend(normalizer=sl.Softmax(temperature=0, sink=1.0)),
        "temperature: expected > 0 where there is a sink",
    ),
    "scale NaN": (lambda: attend(scale=math.nan), "scale: expected a finite number, got nan"),
    "scale of wrong shape": (lambda: attend(scale=torch.ones(3)), "scale: expected a number or a tensor of shape (4,)"),
    "scale text": (lambda: attend(scale="x"), "scale: expected"),
    "scale of a distance": (lambda: attend(score=sl.Gaussian(), scale=2.0), "scale: expected None, as Gaussian has no"),
    "dropout above 1": (lambda: attend(dropout_p=1.1), "dropout_p: expected a probability between 0 and 1, got 1.1"),
    "dropout below 0": (lambda: attend(dropout_p=-0.1), "dropout_p: expected a probability between 0 and 1, got -0.1"),
    "dropout NaN": (lambda: attend(dropout_p=math.nan), "dropout_p: expected a probability between 0 and 1, got nan"),
    "unknown statistic": (lambda: attend(stats=("entropy", "colision")), "stats: expected names among"),
    "statistic of wrong type": (lambda: attend(stats=(3,)), "stats: expected names among"),
    "sinks": (lambda: attend(sinks=0), "sinks: expected a number of keys of at least 1, got 0"),
    "query_offset": (lambda: attend(query_offset=torch.arange(3)), "query_offset: expected an int or int (9,)"),
    "distance in cross attention": (
        lambda: attend(q=double(2, 4, 14, 5), stats="distance"),
        "distance: expected self-attention, got 14 queries and 13 keys",
    ),
    "engine": (lambda: sl.engine("fast").__enter__(), "engine: expected one of native, streaming, reference, got 'fast'"),
    "received of a lookup": (lambda: sl.lookup(*tensors(), stats="received"), "received: expected softlookup.received"),
    "divergence of widths": (
        lambda: sl.divergence((double(2, 4, 9, 5), double(2, 2, 13, 5)), (double(2, 4, 9, 5), double(2, 2, 12, 5))),
        "divergence: expected the same dtype, batch, heads, queries and keys",
    ),
    "divergence at 0": (
        lambda: sl.divergence(*([tensors()[:2]] * 2), normalizer=sl.Softmax(temperature=0)),
        "divergence: expected temperature > 0, got 0",
    ),
}

MASKS = {
    "integers": (lambda: attend(mask=torch.ones(L, S).long()), "mask: expected a Mask, a boolean tensor (True = visible)"),
    "text": (lambda: attend(mask="causal"), "mask: expected a Mask"),
    "shape": (lambda: attend(mask=torch.ones(L, S - 1).bool()), "mask: expected a shape that broadcasts to (B, H, L, S)"),
    "float shape": (lambda: attend(mask=double(3, 1, L, S)), "bias: expected a shape that broadcasts to (B, H, L, S)"),
    "dimensions": (lambda: attend(mask=torch.ones(2, 2, H, L, S).bool()), "mask: expected"),
    "padding": (lambda: attend(mask=sl.Padding(torch.ones(2, S + 1).bool())), "Padding: expected shape (2, 13), got (2, 14)"),
    "lengths": (lambda: attend(mask=sl.Lengths(torch.ones(3).long())), "Lengths: expected 2 lengths, one per batch entry"),
    "documents": (lambda: attend(mask=sl.Documents(torch.ones(S - 1).long())), "Documents: expected ids of shape (2, 13)"),
    "documents of queries": (
        lambda: attend(mask=sl.Documents(torch.ones(S).long(), torch.ones(L + 1).long())),
        "Documents: expected query_ids of shape (2, 9)",
    ),
    "part of an expression": (
        lambda: attend(mask=sl.Causal() | ~sl.Padding(torch.ones(2, 3).bool())),
        "Padding: expected shape (2, 13), got (2, 3)",
    ),
    "function of other shape": (
        lambda: attend(mask=lambda b, h, i, j: torch.ones(5, 7).bool()),
        "mask function: expected",
    ),
    "function of floats": (lambda: attend(mask=lambda b, h, i, j: (i - j) * 1.0), "mask function: expected a boolean result"),
    "function that does not broadcast": (
        lambda: attend(mask=lambda b, h, i, j: (torch.arange(5) > 1) & (i > j)),
        "mask function: expected tensor operations that broadcast",
    ),
    "bias shape": (lambda: attend(bias=double(L, S + 1)), "bias: expected a shape that broadcasts to (B, H, L, S)"),
    "bias type": (lambda: attend(bias=torch.ones(L, S).bool()), "bias: expected a float tensor, ALiBi or RelativeTable"),
    "slopes": (lambda: attend(bias=sl.ALiBi(torch.ones(3))), "ALiBi: expected slopes of shape (4,), got (3,)"),
    "table": (lambda: attend(bias=sl.RelativeTable(torch.ones(8, 3))), "RelativeTable: expected w of shape (buckets, 4)"),
    "table of one dimension": (lambda: sl.RelativeTable(torch.ones(8)), "RelativeTable: expected w of shape (buckets, H)"),
    "mask on another device": (lambda: attend(mask=torch.ones(L, S).bool().to("meta")), "mask: expected"),
    "bias on another device": (lambda: attend(bias=double(L, S).to("meta")), "bias: expected"),
}

ALL = {f"{kind}: {name}": case for kind, group in (("input", INPUTS), ("argument", ARGUMENTS), ("mask", MASKS))
       for name, case in group.items()}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_one_clear_line(name):
    call, start = ALL[name]
    assert refused(call).startswith(start)


def test_more_than_two_to_the_31_elements_are_refused_before_anything_is_computed():
    one = torch.randn(1, 1, 1, 1)
    for shapes in (
        [(2**10, 2**5, 2**10, 2**6), (1, 1, 4, 2**6), (1, 1, 4, 1)],
        [(1, 1, 4, 8), (1, 1, 2**28, 8), (1, 1, 2**28, 1)],
        [(1, 1, 4, 1), (1, 1, 2**28, 1), (1, 1, 2**28, 8)],
    ):
        q, k, v = (one.expand(shape) for shape in shapes)
        start = time.perf_counter()
        assert "expected fewer than 2^31 elements, got 2147483648" in refused(lambda t=(q, k, v): sl.attend(*t))
        assert time.perf_counter() - start < 0.1


def test_a_batch_that_only_broadcasting_makes_too_large():
    """No input has 2^31 elements, but together they do."""
    one = torch.randn(1, 1, 1, 1)
    q, k, v = one.expand(2**16, 1, 1, 1, 2**10), one.expand(1, 2**16, 1, 1, 2**10), one.expand(1, 1, 1, 1, 4)
    assert "2^31" in refused(lambda: sl.attend(q, k, v))


class Wrong(sl.Score):
    def block(self, q, k, i, j):
        return (q @ k.mT)[..., :-1]


class Closure(sl.Score):
    """Its parameter is kept where no one can find it."""

    def __init__(self, w):
        self.get = lambda: w

    def block(self, q, k, i, j):
        return (q * self.get()) @ k.mT


class Neither(sl.Score):
    pass


def test_a_score_with_neither_lower_nor_block():
    assert refused(lambda: attend(score=Neither())) == "Neither: expected a Score with lower() or block(), got neither"


@pytest.mark.parametrize("which", ["streaming", "reference"])
def test_a_block_of_the_wrong_shape(which):
    with sl.engine(which):
        assert refused(lambda: attend(score=Wrong())).startswith("Wrong.block: expected scores of shape")


def test_a_parameter_that_would_get_no_gradient():
    w = torch.ones(5, dtype=torch.float64, requires_grad=True)
    assert refused(lambda: attend(score=Closure(w))).startswith(
        "Closure.block: expected its parameters as attributes of the score, got a tensor of shape (5,)"
    )
    with torch.no_grad():
        attend(score=Closure(w))
    attend(score=Closure(w.detach()))


def test_a_statistic_that_was_not_requested_names_the_keyword():
    stats = attend(stats=("entropy", "visible"))[1]
    for name in ("collision", "received"):
        with pytest.raises(AttributeError) as caught:
            getattr(stats, name)
        message = str(caught.value)
        assert message == f"{name} was not requested: expected stats=(…, {name!r}), got stats=(entropy, visible)"
    with pytest.raises(AttributeError, match="^entropie$"):
        stats.entropie  # noqa: B018
    assert list(stats) == ["entropy", "visible"] and torch.equal(stats["entropy"], stats.entropy)


def test_every_refusal_is_a_value_error():
    assert issubclass(sl.SoftlookupError, ValueError) and issubclass(sl.UnsupportedError, sl.SoftlookupError)
