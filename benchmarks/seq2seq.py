"""Speed of the encoder-decoders: training steps against the same architectures whose attention is materialized in plain torch
(weights, batches and optimizer alike, outputs and gradients checked equal first), and decoding.

    python benchmarks/seq2seq.py [--rounds 7] [--threads 2] [--batch 256] [--decode models/g2p …]

Each round runs the same batches of CMUdict through both, in turn; a figure is the median over rounds of (torch's time /
softlookup's) with quartiles. Decoding is greedy, 1,000 words of the test part, by trained models.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from itertools import islice

import torch
from torch import Tensor, nn

from softlookup.nn import MultiHeadAttention
from softlookup.seq2seq import Attentive, Model, Transformer
from softlookup.training import Config, g2p
from softlookup.training.batches import Batch, epoch_of, examples
from softlookup.training.fit import loss_of
from softlookup.training.runs import Record, load


class PlainAlignment(nn.Module):
    """`seq2seq.Alignment`, the scores of all pairs in memory."""

    def __init__(self, ours: nn.Module):
        super().__init__()
        self.additive, self.bilinear, self.score = ours.additive, ours.bilinear, ours.score if ours.additive is None else None
        self.keys = ours.keys

    def forward(self, query, keys, value, *, mask=None, stats=None):  # noqa: ANN001, ANN201
        if self.additive is not None:
            q = self.additive.of_query(query)
            scores = torch.tanh(q.unsqueeze(2) + keys.unsqueeze(1)) @ self.additive.u[0]
        else:
            scores = query @ keys.mT
            if type(self.score).__name__ == "ScaledDot":
                scores = scores / math.sqrt(keys.shape[-1])
        if mask is not None:
            hidden = torch.arange(keys.shape[1]) >= mask.length[:, None]
            scores = scores.masked_fill(hidden[:, None], -torch.inf)
        return scores.softmax(-1) @ value, None


class PlainMultiHead(nn.Module):
    """`nn.MultiHeadAttention`, the weights of all pairs in memory."""

    def __init__(self, ours: MultiHeadAttention):
        super().__init__()
        self.ours = ours

    def forward(self, x, context=None, *, mask=None, cache=None, stats=None):  # noqa: ANN001, ANN201
        ours = self.ours
        read = x if context is None else context
        q = ours._split(ours.of_query(x), ours.heads)
        k, v = (ours._split(f(read), ours.kv_heads) for f in (ours.of_key, ours.of_value))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if type(mask).__name__ == "Causal":
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        elif mask is not None:
            hidden = torch.arange(k.shape[-2]) >= mask.length[:, None]
            scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
        return ours._join(scores.softmax(-1) @ v)


def plain(model: Model) -> Model:
    """The same model with attention in plain torch."""
    model = copy.deepcopy(model)
    if isinstance(model, Attentive):
        model.align = PlainAlignment(model.align)
    for block in [*getattr(model, "encoder", [])] if isinstance(model, Transformer) else []:
        block.attention = PlainMultiHead(block.attention)
    for block in model.decoder if isinstance(model, Transformer) else []:
        block.attention, block.cross = PlainMultiHead(block.attention), PlainMultiHead(block.cross)
    return model


def run(model: Model, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> float:
    """Seconds of training on these batches."""
    start = time.perf_counter()
    for batch in batches:
        loss = loss_of(model, batch, 0.1) / batch.symbols
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def check(ours: Model, theirs: Model, batch: Batch) -> None:
    """Same logits and gradients, up to rounding."""
    results: list[tuple[Tensor, list[Tensor]]] = []
    for model in (ours, theirs):
        model.eval()
        logits = model(batch.source, batch.lengths, batch.given)
        results.append((logits, torch.autograd.grad(logits.sin().sum(), [x for x in model.parameters() if x.requires_grad])))
        model.train()
    (a, grads_a), (b, grads_b) = results
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    norms = [sorted(float(g.norm()) for g in grads) for grads in (grads_a, grads_b)]
    torch.testing.assert_close(*(torch.tensor(each) for each in norms), rtol=1e-3, atol=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--only", default="")
    parser.add_argument("--decode", nargs="*", default=["models/g2p"], help="folders of trained runs")
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    corpus = g2p.read()
    record = Record.of(Config(), corpus)
    rows = examples(corpus.train, record.source, record.target)
    batches = list(islice(epoch_of(rows, said.batch, 0, 0), 4))
    words = sum(len(batch.lengths) for batch in batches)
    sizes = len(record.source), len(record.target)
    models: dict[str, Model] = {
        "attentive, additive": Attentive(*sizes),
        "attentive, scaled": Attentive(*sizes, score="scaled"),
        "attentive, additive, Luong's order": Attentive(*sizes, order="luong"),
        "attentive, scaled, Luong's order": Attentive(*sizes, score="scaled", order="luong"),
        "transformer": Transformer(*sizes, dropout=0.0),
    }
    print(f"{torch.get_num_threads()} threads, batches of {said.batch} words; torch's time / softlookup's, quartiles; words/s")
    for name, model in models.items():
        if said.only not in name:
            continue
        other = plain(model)
        check(model, other, batches[0])
        pair = [(each, torch.optim.AdamW(each.parameters(), fused=True)) for each in (model, other)]
        times = [[run(*each, batches) for each in pair] for _ in range(said.rounds + 1)][1:]
        ratios = sorted(b / a for a, b in times)
        low, mid, high = statistics.quantiles(ratios, n=4)
        speed = words / statistics.median(a for a, _ in times)
        parameters = sum(x.numel() for x in model.parameters())
        print(
            f"{name:36s} {parameters / 1e6:4.1f} M  training {mid:5.2f} ({low:.2f} - {high:.2f})  {speed:7,.0f} words/s",
            flush=True,
        )
    for folder in said.decode:
        decoder, chosen = load(folder), corpus.test[:1000]
        decoder.evaluate(chosen[:100], beam=1)
        times = []
        for _ in range(said.rounds):
            start = time.perf_counter()
            decoder.evaluate(chosen, beam=1)
            times.append(time.perf_counter() - start)
        print(f"{folder}: greedy {len(chosen) / statistics.median(times):,.0f} words/s", flush=True)


if __name__ == "__main__":
    main()
