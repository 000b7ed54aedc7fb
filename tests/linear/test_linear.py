"""Laws of attention without all pairs: however it is cut it is the same, and in the limit it is what it approximates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import softlookup as sl
from softlookup import linear

H, L, E = 4, 37, 8
MAPS = {
    "elu": lambda: linear.EluPlusOne(),
    "relu": lambda: linear.ReLU(),
    "positive": lambda: linear.RandomFeatures(E, 24),
    "trigonometric": lambda: linear.RandomFeatures(E, 512, kind="trigonometric"),
    "hedgehog": lambda: linear.Hedgehog(E, H).double(),
    "cosformer": lambda: linear.CosFormer(64),
}


def tensors(kv: int = 2, length: int = L) -> list[Tensor]:
    make = torch.Generator().manual_seed(0)
    shapes = (2, H, length, E), (2, kv, length, E), (2, kv, length, 5)
    return [torch.randn(shape, generator=make, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.fixture(params=MAPS)
def features(request):
    made = MAPS[request.param]()
    return made.double()


def by_pairs(q, k, v, features, causal, keep=None) -> Tensor:
    """The definition: all weights, materialized."""
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    weights = features.query(q) @ features.key(k).mT
    if keep is not None:
        weights = weights * keep[:, None, None]
    if causal:
        weights = weights.tril()
    total = weights.sum(-1, keepdim=True)
    return torch.where(total == 0, 0, weights @ v / torch.where(total == 0, 1, total))


# ---- features ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 16, 37, 128])
def test_causal_chunks_are_all_pairs_with_gradients(features, chunk):
    q, k, v = tensors()
    got, want = linear.attend(q, k, v, features=features, causal=True, chunk=chunk), by_pairs(q, k, v, features, True)
    torch.testing.assert_close(got, want)
    leaves = [q, k, v, *features.parameters()]
    torch.testing.assert_close(torch.autograd.grad(got.cos().sum(), leaves), torch.autograd.grad(want.cos().sum(), leaves))


def test_all_keys_are_all_pairs_in_any_order(features):
    q, k, v = tensors()
    got = linear.attend(q, k, v, features=features)
    torch.testing.assert_close(got, by_pairs(q, k, v, features, False))
    if not isinstance(features, linear.CosFormer):
        order = torch.randperm(L)
        torch.testing.assert_close(linear.attend(q, k[:, :, order], v[:, :, order], features=features), got)
    leaves = [q, k, v, *features.parameters()]
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), leaves))


@pytest.mark.parametrize("cuts", [range(1, L), [1], [20], [5, 6, 30]])
def test_steps_and_parts_are_the_whole(features, cuts):
    q, k, v = tensors()
    whole = linear.attend(q, k, v, features=features, causal=True)
    state, out = None, []
    for start, end in zip([0, *cuts], [*cuts, L], strict=True):
        some = slice(start, end)
        value, state = linear.advance(q[:, :, some], k[:, :, some], v[:, :, some], state, features=features, chunk=8)
        out.append(value)
    torch.testing.assert_close(torch.cat(out, 2), whole)
    assert state.position == L and state.sums.shape[-1] == 6
    leaves = [q, k, v, *features.parameters()]
    grads = torch.autograd.grad(torch.cat(out, 2).cos().sum(), leaves), torch.autograd.grad(whole.cos().sum(), leaves)
    torch.testing.assert_close(*grads)


def test_single_precision_loses_only_its_rounding(features):
    q, k, v = (x.detach() for x in tensors())
    single = [x.float() for x in (q, k, v)]
    want = linear.attend(q, k, v, features=features, causal=True)
    features = features.float()
    for chunk in (1, 16, 64):
        got = linear.attend(*single, features=features, causal=True, chunk=chunk)
        torch.testing.assert_close(
            got.double(), want, rtol=1e-3 if "trig" in getattr(features, "kind", "") else 2e-5, atol=2e-5
        )
    half = linear.attend(*(x.bfloat16() for x in (q, k, v)), features=features, causal=True)
    assert half.dtype == torch.bfloat16
    if getattr(features, "kind", "") != "trigonometric":  # whose weights may nearly cancel
        assert (half.double() - want).abs().max() < 0.2


def test_keys_that_are_not_real_weigh_nothing(features):
    q, k, v = tensors()
    keep = torch.rand(2, L) > 0.3
    keep[:, 0] = True
    for causal in (False, True):
        got = linear.attend(q, k, v, features=features, causal=causal, keep=keep)
        torch.testing.assert_close(got, by_pairs(q, k, v, features, causal, keep))
    nothing = linear.attend(q, k, v, features=features, causal=True, keep=torch.zeros(L, dtype=torch.bool))
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_more_features_are_nearer_to_softmax():
    q, k, v = (x.detach() for x in tensors(kv=H))
    q, k, errors = q / 2, k / 2, []
    for count in (64, 512, 4096):
        by = linear.RandomFeatures(E, count).double()
        errors.append(linear.error_against_exact(lambda *x, by=by: linear.attend(*x, features=by), q, k, v).relative)
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.05
    exact = linear.error_against_exact(sl.attend, q, k, v)
    assert exact.relative == 0 and exact.explained == 1 and exact.cosine == pytest.approx(1)
    assert "relative error 0.000" in str(exact)


@pytest.mark.parametrize(("x", "y"), [((0.5, 0.2), (0.3, -0.1)), ((1.0, 0.0), (-0.8, 0.3)), ((0.4, 0.4), (0.3, 0.5))])
@pytest.mark.parametrize("kind", ["positive", "trigonometric"])
def test_the_variance_of_random_features_is_the_formulas(kind, x, y):
    """Choromanski et al. 2021, Lemma 2, within 3 %, and the mean within its standard error; rows independent of each other."""
    x, y = (torch.tensor(a, dtype=torch.float64) for a in (x, y))
    m, draws = 4, 400_000
    by = linear.RandomFeatures(2, m * draws, kind=kind, orthogonal=False, scale=1.0, seed=1).double()
    products = by(x[None]) * by(y[None])
    if kind == "trigonometric":
        products = products[..., : m * draws] + products[..., m * draws :]
    estimates = products.view(draws, m).sum(1) * draws
    similarity = math.exp(x @ y)
    if kind == "positive":
        z = float((x + y).square().sum())
        variance = math.exp(z) * similarity**2 * (1 - math.exp(-z)) / m
    else:
        z = float((x - y).square().sum())
        variance = math.exp(float(x.square().sum() + y.square().sum())) * (1 - math.exp(-z)) ** 2 / (2 * m)
    assert abs(float(estimates.mean()) - similarity) < 4 * math.sqrt(variance / draws)
    assert float(estimates.var()) == pytest.approx(variance, rel=0.03)


def test_orthogonal_features_vary_less():
    x, y = torch.full((1, 16), 0.2, dtype=torch.float64), torch.full((1, 16), 0.15, dtype=torch.float64)
    variances = []
    for orthogonal in (False, True):
        drawn = [linear.RandomFeatures(16, 16, orthogonal=orthogonal, scale=1.0, seed=s).double() for s in range(3000)]
        variances.append(torch.stack([(by(x) * by(y)).sum() for by in drawn]).var())
    assert variances[1] < 0.8 * variances[0]
    w = linear.RandomFeatures(16, 40).w.double()
    for rows in w.split(16):
        apart = normalize(rows, dim=1) @ normalize(rows, dim=1).T
        torch.testing.assert_close(apart, torch.eye(len(rows), dtype=torch.float64), atol=1e-6, rtol=0)


def test_elu_plus_one_has_digits_however_small():
    """Against float64, with gradients; below -87 float32 has few or none, but for a query, of which a factor cancels."""
    x = torch.cat([torch.linspace(-87, 40, 500, dtype=torch.float64), torch.zeros(1)])[:, None].requires_grad_()
    want = torch.where(x > 0, x + 1, x.clamp(max=0).exp())
    single = x.detach().float().requires_grad_()
    got = linear.EluPlusOne()(single)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)  # of inputs rounded to 4e-6
    grads = torch.autograd.grad(got.sum(), single)[0].double(), torch.autograd.grad(want.sum(), x)[0]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=0)
    assert grads[0][-1] == 1

    q, k, v = (x.detach() for x in tensors())
    for causal in (False, True):
        want = linear.attend(q - 200, k - 60, v, causal=causal)
        assert want.any(-1).all()
        got = linear.attend((q - 200).float(), (k - 60).float(), v.float(), causal=causal)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)  # of queries rounded to 1e-5
        torch.testing.assert_close(want, by_pairs((q - 200).exp(), (k - 60).exp(), v, Same(), causal))


def test_cosformer_weights_fall_with_distance():
    x = torch.ones(1, 1, 40, 3)
    by = linear.CosFormer(40)
    weights = (by.query(x) @ by.key(x).mT)[0, 0]
    apart = torch.arange(40)[:, None] - torch.arange(40)
    torch.testing.assert_close(weights, 3 * torch.cos(math.pi / 2 * apart / 40), atol=1e-5, rtol=1e-5)


def both_softmaxes(x, w):
    """(softmax(y), softmax(-y)) of rows y = x W, W of each head."""
    up = (x @ w).exp()
    return torch.cat([up / up.sum(-1, keepdim=True), 1 / up / (1 / up).sum(-1, keepdim=True)], -1)


def turned_by_place(x, _):
    turn = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * math.pi / 128  # of a length of 64
    return torch.cat([x.clamp(min=0) * turn.cos(), x.clamp(min=0) * turn.sin()], -1)


def waves(x, w):
    turns = x @ w.mT / E**0.25
    return torch.cat([turns.sin(), turns.cos()], -1) * (x.square().sum(-1, keepdim=True) / E**0.5 / 2).exp()


DEFINED = {
    "elu": lambda x, _: torch.where(x > 0, x + 1, x.exp()),
    "relu": lambda x, _: torch.where(x > 0, x, 0) + 1e-3,
    "positive": lambda x, w: (x @ w.mT / E**0.25 - x.square().sum(-1, keepdim=True) / E**0.5 / 2).exp(),
    "trigonometric": waves,
    "hedgehog": both_softmaxes,
    "cosformer": turned_by_place,
}


class Written(linear.FeatureMap):
    def __init__(self, phi, of_query, of_key):
        super().__init__()
        self.phi, self.of_query, self.of_key = phi, of_query, of_key

    def query(self, x, first=0):
        return self.phi(x, self.of_query)

    def key(self, x, first=0):
        return self.phi(x, self.of_key)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_each_map_is_its_definition_written_out(name, causal):
    """With other matrices than a map begins with, those of queries and of keys apart."""
    (q, k, v), features, make = tensors(), MAPS[name]().double(), torch.Generator().manual_seed(1)
    for learned in features.parameters():
        torch.nn.init.normal_(learned, generator=make)
    held = [*features.parameters()] or 2 * [*features.buffers()] or [None, None]
    got = linear.attend(q, k, v, features=features, causal=causal)
    torch.testing.assert_close(got, by_pairs(q, k, v, Written(DEFINED[name], *held), causal))


# ---- recurrences -------------------------------------------------------------------------------------------------------


def step_by_step(q, k, v, log_gate, rate, state):
    out = []
    for t in range(q.shape[2]):
        if log_gate is not None:
            gate = log_gate[:, :, t, None] if log_gate.ndim == 3 else log_gate[:, :, t]  # (B, H, 1 or E)
            state = state * gate[..., None].exp()
        new = v[:, :, t]
        if rate is not None:
            new = rate[:, :, t, None] * (new - torch.einsum("bhe,bhev->bhv", k[:, :, t], state))
        state = state + k[:, :, t, :, None] * new[:, :, None]
        out.append(torch.einsum("bhe,bhev->bhv", q[:, :, t], state))
    return torch.stack(out, 2), state


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
@pytest.mark.parametrize("gated", [(), (L,), (L, E)], ids=["ungated", "gated", "each dimension"])
@pytest.mark.parametrize("delta", [False, True])
def test_chunks_are_the_recurrence_with_gradients(delta, gated, chunk):
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, L, n, generator=make, dtype=torch.float64).requires_grad_() for n in (E, E, 5))
    log_gate = (-3 * torch.rand(2, 3, *gated, generator=make).double()).requires_grad_() if gated else None
    rate = torch.rand(2, 3, L, generator=make).double().requires_grad_() if delta else None
    state = torch.randn(2, 3, E, 5, generator=make, dtype=torch.float64).requires_grad_()
    keys = normalize(k, dim=-1)
    got, after = linear.recur(q, keys, v, log_gate=log_gate, rate=rate, state=state, chunk=chunk)
    want, want_after = step_by_step(q, keys, v, log_gate, rate, state)
    torch.testing.assert_close((got, after), (want, want_after), rtol=1e-10, atol=1e-11)
    leaves = [x for x in (q, k, v, state, log_gate, rate) if x is not None]
    torch.testing.assert_close(
        torch.autograd.grad(got.cos().sum() + after.sin().sum(), leaves, retain_graph=True),
        torch.autograd.grad(want.cos().sum() + want_after.sin().sum(), leaves),
        rtol=1e-10,
        atol=1e-10,
    )
    first, middle = linear.recur(
        *(x[:, :, :20] for x in (q, keys, v)),
        log_gate=None if log_gate is None else log_gate[:, :, :20],
        rate=None if rate is None else rate[:, :, :20],
        state=state,
    )
    second, _ = linear.recur(
        *(x[:, :, 20:] for x in (q, keys, v)),
        log_gate=None if log_gate is None else log_gate[:, :, 20:],
        rate=None if rate is None else rate[:, :, 20:],
        state=middle,
    )
    torch.testing.assert_close(torch.cat([first, second], 2), want)
    single = linear.recur(
        *(None if x is None else x.float() for x in (q, keys, v)),
        chunk=chunk,
        **{name: None if x is None else x.float() for name, x in (("log_gate", log_gate), ("rate", rate), ("state", state))},
    )[0]
    torch.testing.assert_close(single.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gated", [(5,), (5, 2)], ids=["gated", "each dimension"])
def test_the_gradients_of_a_recurrence_are_differences(gated):
    make = torch.Generator().manual_seed(3)
    q, k, v, state = (torch.randn(1, 2, *n, generator=make, dtype=torch.float64) for n in ((5, 2), (5, 2), (5, 1), (2, 1)))
    log_gate, rate = (-torch.rand(1, 2, *n, generator=make, dtype=torch.float64) for n in (gated, (5,)))

    def act(q, k, v, log_gate, rate, state):
        return linear.recur(q, k, v, log_gate=log_gate, rate=rate, state=state, chunk=3)

    assert torch.autograd.gradcheck(act, [x.requires_grad_() for x in (q, k, v, log_gate, -rate, state)])


def test_strong_gates_do_not_overflow():
    q, k, v = (torch.randn(1, 1, 100, 4) for _ in range(3))
    out, state = linear.recur(q, k, v, log_gate=torch.full((1, 1, 100), -80.0))
    torch.testing.assert_close(out, (q * k).sum(-1, keepdim=True) * v)
    assert state.isfinite().all()


def test_the_delta_rule_replaces_what_was_at_a_key():
    """After a key was written again, its new value alone is read; a sum would give both."""
    key = torch.eye(3, dtype=torch.float64)[None, None]
    keys, values = torch.cat([key, key[:, :, :1]], 2), torch.tensor([[1.0], [2], [3], [9]], dtype=torch.float64)[None, None]
    ones = torch.ones(1, 1, 4, dtype=torch.float64)
    _, state = linear.recur(keys, keys, values, rate=ones)
    assert (key @ state).flatten().tolist() == [9, 2, 3]
    _, added = linear.recur(keys, keys, values)
    assert (key @ added).flatten().tolist() == [10, 2, 3]


class Flat(linear.FeatureMap):
    def forward(self, x, first=0):
        return x[:, 0]


class Same(linear.FeatureMap):
    def forward(self, x, first=0):
        return x


class Made(linear.FeatureMap):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, x, first=0):
        return self.made


class Unmade(linear.FeatureMap):
    pass


def unplaced():
    class Own(linear.FeatureMap):
        def forward(self, x):
            return x


def goes_on(q, k, v, features=linear.EluPlusOne(), by=linear.EluPlusOne()):  # noqa: B008
    """A state made in float64 by one map, handed to another."""
    state = linear.advance(*(x.detach()[:, :, :3].double() for x in tensors()), None, features=features)[1]
    return linear.advance(q, k, v, state, features=by)


WRONG = {
    "features: expected a FeatureMap": lambda q, k, v: linear.attend(q, k, v, features=torch.relu),
    "causal: expected as many keys as queries, 36, got 37": lambda q, k, v: linear.attend(q[:, :, 1:], k, v, causal=True),
    "keep: expected a boolean tensor that broadcasts to (2, 37) on cpu, got a float64 tensor": lambda q, k, v: linear.attend(
        q, k, v, keep=torch.ones(2, 37, dtype=torch.float64)
    ),
    "attend: expected chunk of at least 1, got 0": lambda q, k, v: linear.attend(q, k, v, causal=True, chunk=0),
    "value: expected as many rows": lambda q, k, v: linear.attend(q, k, v[:, :, 1:]),
    "CosFormer: expected at most 10 positions, got 37": lambda q, k, v: linear.attend(q, k, v, features=linear.CosFormer(10)),
    "RandomFeatures: expected kind": lambda q, k, v: linear.RandomFeatures(8, kind="sine"),
    "RandomFeatures: expected width of at least 1": lambda q, k, v: linear.RandomFeatures(0),
    "attend: expected chunk of at least 1, got 2.5": lambda q, k, v: linear.attend(q, k, v, chunk=2.5),
    "recur: expected query and key (B, H, L, E)": lambda q, k, v: linear.recur(q, k, v),
    "rate: expected shape (2, 2, 37) on cpu, got": lambda q, k, v: linear.recur(k, k, v, rate=torch.ones(2, 37)),
    "log_gate: expected logs of at most 0, got 0.5": lambda q, k, v: linear.recur(k, k, v, log_gate=0 * v[..., 0] + 0.5),
    "log_gate: expected shape (2, 2, 37) or (2, 2, 37, 8) on cpu, got": lambda q, k, v: linear.recur(k, k, v, log_gate=[]),
    "recur: expected chunk of at least 1, got 2.5": lambda q, k, v: linear.recur(k, k, v, chunk=2.5),
    "query: expected 4 dimensions (B, H, L, width), got a float64 tensor": lambda q, k, v: linear.recur(k[0], k[0], v[0]),
    "key: expected 4 dimensions (B, H, L, width), got list": lambda q, k, v: linear.advance(q, [1], v, None),
    "causal: expected as many values as queries, 37, got 36": lambda q, k, v: linear.advance(q, k, v[:, :, 1:], None),
    "causal: expected as many keys as queries, 0, got 1": lambda q, k, v: linear.advance(q[:, :, :0], k[:, :, :1], v, None),
    "key: expected a number of heads that divides the query's 4, got 3": lambda q, k, v: linear.advance(
        q, q[:, :3], q[:, :3], None
    ),
    "value: expected the key's 2 heads, got 1": lambda q, k, v: linear.advance(q, k, v[:, :1], None),
    "value: expected the query's dtype": lambda q, k, v: linear.advance(q, k, v.float(), None),
    "keep: expected a boolean tensor that broadcasts to (2, 37) on cpu, got a bool tensor of shape (3, 37)": lambda q, k, v: (
        linear.attend(q, k, v, keep=torch.ones(3, 37, dtype=torch.bool))
    ),
    "keep: expected a boolean tensor that broadcasts to (2, 37) on cpu, got a bool tensor of shape (2, 1, 3": lambda q, k, v: (
        linear.advance(q, k, v, None, keep=torch.ones(2, 1, 37, dtype=torch.bool))
    ),
    "keep: expected a boolean tensor that broadcasts to (2, 37) on cpu, got a bool tensor of shape (2, 36)": lambda q, k, v: (
        linear.advance(q, k, v, None, keep=torch.ones(2, 36, dtype=torch.bool))
    ),
    "state: expected None or a State that advance returned, got a float64 tensor": lambda q, k, v: linear.advance(q, k, v, v),
    "state: expected torch.float32 on cpu, got torch.float64 on cpu": lambda q, k, v: goes_on(q.float(), k.float(), v.float()),
    "state: expected sums of shape (1, 4, 8, 6), got (2, 4, 8, 6)": lambda q, k, v: goes_on(q[:1], k[:1], v[:1]),
    "state: expected one of ReLU(0.001), got one of EluPlusOne()": lambda q, k, v: goes_on(q, k, v, by=linear.ReLU()),
    "state: expected one of RandomFeatures(8, 8, kind='positive', scale=0.35355339059327": lambda q, k, v: goes_on(
        q, k, v, linear.RandomFeatures(8), linear.RandomFeatures(8, seed=1)
    ),
    "features: expected a tensor in torch.float64, in which they are summed, got NoneType": lambda q, k, v: linear.attend(
        q, k, v, features=Made(None)
    ),
    "features: expected a tensor in torch.float64, in which they are summed, got a float16 tensor": lambda q, k, v: (
        linear.attend(q, k, v, causal=True, features=Made(k.half()))
    ),
    "Unmade: expected forward(x, first), or query and key, got neither": lambda q, k, v: linear.attend(
        q, k, v, features=Unmade()
    ),
    "causal: expected as many values as queries, 0, got 1": lambda q, k, v: linear.attend(
        q[:, :, :0], k[:, :, :0], v[:, :, :1], causal=True
    ),
    "key: expected every dimension to be at least 1, got shape (2, 2, 0, 8)": lambda q, k, v: linear.attend(
        q, k[:, :, :0], v[:, :, :0]
    ),
    "features: expected (B, H, L, F) of queries": lambda q, k, v: linear.attend(q, k, v, features=Flat()),
    "features: expected as many of queries as of keys, got 8 and 4": lambda q, k, v: linear.attend(q, k[..., :4], v),
    "Own.forward: expected (self, x, first), got (self, x)": lambda q, k, v: unplaced(),
    "Hedgehog: expected 1 heads of width 8, got 4 of 8": lambda q, k, v: linear.attend(q, k, v, features=linear.Hedgehog(8, 1)),
    "Hedgehog: expected 4 heads of width 6, got 4 of 8": lambda q, k, v: linear.attend(q, k, v, features=linear.Hedgehog(6, 4)),
    "RandomFeatures: expected rows of width 6, got 8": lambda q, k, v: linear.RandomFeatures(6)(q),
    "RandomFeatures: expected a finite scale above 0, got -1": lambda q, k, v: linear.RandomFeatures(8, scale=-1),
    "RandomFeatures: expected a finite scale above 0, got x": lambda q, k, v: linear.RandomFeatures(8, scale="x"),
    "RandomFeatures: expected a whole number as seed, got None": lambda q, k, v: linear.RandomFeatures(8, seed=None),
    "ReLU: expected a finite offset of at least 0, got -1": lambda q, k, v: linear.ReLU(-1),
    "ReLU: expected a finite offset of at least 0, got None": lambda q, k, v: linear.ReLU(None),
    "CosFormer: expected length of at least 1, got 2.5": lambda q, k, v: linear.CosFormer(2.5),
    "features: expected queries and keys with a feature in common": lambda q, k, v: linear.attend(
        300 * q, 300 * k, v, causal=True, features=linear.RandomFeatures(8)
    ),
    "approximate: expected a tensor of shape (2, 4, 37, 5), got a float64 tensor of shape (5,)": lambda q, k, v: (
        linear.error_against_exact(lambda *x: v[0, 0, 0], q, k, v)
    ),
    "error_against_exact: expected a query whose exact value is not 0, got none": lambda q, k, v: linear.error_against_exact(
        sl.attend, q, k, 0 * v
    ),
    "state: expected torch.float64 (2, 2, 8, 5) on cpu, got": lambda q, k, v: linear.recur(k, k, v, state=q),
}


@pytest.mark.parametrize("said", WRONG)
def test_mistakes_are_one_line(said):
    with pytest.raises(sl.SoftlookupError) as error:
        WRONG[said](*(x.detach() for x in tensors()))
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_long_sequences_go_in_parts(monkeypatch):
    q, k, v = tensors()
    log_gate, rate = -torch.rand(2, 2, L, dtype=torch.float64), torch.rand(2, 2, L, dtype=torch.float64)
    gates = log_gate, log_gate[..., None] * torch.rand(E, dtype=torch.float64)

    def act():
        keys = normalize(k, dim=-1)
        recurred = [linear.recur(keys, keys, v, log_gate=gate, rate=rate, chunk=4) for gate in gates]
        return linear.attend(q, k, v, causal=True, keep=torch.ones(L, dtype=torch.bool)), *sum(recurred, ())

    want = act()
    monkeypatch.setattr("softlookup.linear.attention.AT_ONCE", 10)
    monkeypatch.setattr("softlookup.linear.chunks.AT_ONCE", 10)
    got = act()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    grads = (torch.autograd.grad(sum(x.cos().sum() for x in y), (q, k, v)) for y in (got, want))
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)
