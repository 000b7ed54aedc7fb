"""A language model that looks up its own past (Khandelwal et al. 2020, "Generalization through Memorization").

    python benchmarks/knn_lm.py [TEXT ...] [--tokens 8192]

SmolLM2 reads a long document in windows of 1,024 tokens, so that every prediction sees at least 512. For each position a row
goes into a SoftTable: the key is the model's state there, the id says where, so which token came next. A prediction is
(1 - l) p_model + l p_lookup, where p_lookup is the weights of the 256 best rows, summed by next token. Rows are added 32 at a
time, after their next tokens were predicted, so only the past is looked up. `far` has only rows that the window does not see.

The state, temperature and l are chosen by grid on the first fifth of the predictions, l also for each third of them by the
lookup's entropy, or by the score of its best row; told is the rest, asked once: nats per token, the gain over the model alone
with a 95 % interval (bootstrap of blocks of 100 tokens), the share of tokens that are predicted better. Beside it: the model
with twice the window, and the same mixture at an infinite temperature over the whole past, which is how often each token came.
TEXT is a file, or `help`, the default, for Python's language reference. A text takes some 5 minutes of one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from softlookup.inspection.loading import Loaded, load
from softlookup.inspection.text import read, read_text
from softlookup.memory import SoftTable

WINDOW, CONTEXT, FIRST, STEP, BEST, BLOCK, SAME = 1024, 512, 1024, 32, 256, 100, 8
TEMPERATURES = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2)
SHARES = torch.tensor([0.0, 0.01, 0.02, 0.04, 0.06, 0.08] + [n / 20 for n in range(2, 20)])


@dataclass(frozen=True)
class Asked:
    """Of the predictions from FIRST on: scores (n, BEST) of the best rows and whether their next token is the right one, the
    entropy of their weights, and what all other rows can weigh at most."""

    scores: Tensor
    right: Tensor
    entropy: Tensor
    missed: Tensor

    def found(self, temperature: float) -> Tensor:
        """The probability of the right token."""
        return ((self.scores / temperature).softmax(1) * self.right).sum(1).double()


@torch.inference_mode()
def states(loaded: Loaded, tokens: Tensor, window: int) -> tuple[dict[str, Tensor], Tensor]:
    """Of every position two states, at the last feed-forward's input and at the end, and the probability of its next token.
    The first CONTEXT tokens of each window were read before, in the one before it."""
    inputs: list[Tensor] = []
    handle = loaded.model.layers[-1].mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    head, step, found = loaded.model.embed_tokens.weight, window - CONTEXT, []
    for start in range(0, len(tokens), step):
        end = min(start + step, len(tokens))
        final = loaded.model(input_ids=tokens[None, max(0, start - CONTEXT) : end], use_cache=False).last_hidden_state[0]
        fresh, following = final[start - end :], tokens[start + 1 : end + 1]
        p = (fresh[: len(following)] @ head.T).log_softmax(1).gather(1, following[:, None])[:, 0].exp()
        found.append((inputs.pop()[start - end :], fresh, p))
    handle.remove()
    before, final, p = (torch.cat(x) for x in zip(*found, strict=True))
    return {"before the feed-forward": before, "final": final}, p


def ask(keys: Tensor, tokens: Tensor, known: Callable[[int], int], end: int, temperature: float = 1.0) -> Asked:
    """What is found at positions FIRST to end, step by step; `known` says how many rows there are at a step."""
    rows = known(FIRST)
    table, found = SoftTable.of(keys[:rows]), []
    for start in range(FIRST, end, STEP):
        if known(start) > rows:
            table.add(keys[rows : known(start)])
            rows = known(start)
        here = slice(start, min(start + STEP, end))
        best = table.lookup(keys[here], temperature, top_k=BEST, stats="entropy")
        assert best.ids is not None and best.scores is not None and int(best.ids.max()) < known(start) <= start
        right = tokens[best.ids + 1] == tokens[here.start + 1 : here.stop + 1, None]
        found.append((best.scores, right, best.stats.entropy, best.missed))
    return Asked(*(torch.cat(x) for x in zip(*found, strict=True)))


def mixed(model: Tensor, found: Tensor, share: Tensor | float) -> Tensor:
    """Nats of each token."""
    return -torch.log((1 - share) * model + share * found)


def best_share(model: Tensor, found: Tensor) -> tuple[float, float]:
    """Mean nats and the share of the lookup that gives them."""
    nats = mixed(model[:, None], found[:, None], SHARES).mean(0)
    return float(nats.min()), float(SHARES[nats.argmin()])


def interval(gain: Tensor, who: Tensor) -> tuple[float, float]:
    """95 % of the mean gain of some tokens, by bootstrap of blocks of all."""
    sums, sizes = (torch.stack([block.sum() for block in x.double().split(BLOCK)]) for x in (gain * who, who))
    some = torch.randint(len(sums), (10_000, len(sums)), generator=torch.Generator().manual_seed(0))
    means = sums[some].sum(1) / sizes[some].sum(1)
    return float(means.nanquantile(0.025)), float(means.nanquantile(0.975))


def told(name: str, alone: Tensor, nats: Tensor, who: Tensor | None = None) -> None:
    """A line about some tokens, all by default."""
    who = torch.ones_like(nats, dtype=torch.bool) if who is None else who
    gain, mean = alone - nats, nats[who].mean()
    low, high = interval(gain, who)
    print(
        f"  {name:44s}{mean:7.3f}{mean.exp():8.2f}{gain[who].mean():9.3f} ({low:.3f} to {high:.3f})"
        f"{(gain[who] > 0).double().mean():8.0%}",
        flush=True,
    )


def repeated(tokens: Tensor) -> Tensor:
    """Whether the SAME tokens up to each position from FIRST on came before, in this order."""
    seen, again, numbers = set(), [], tokens.tolist()
    for at in range(SAME - 1, len(numbers) - 1):
        last = tuple(numbers[at - SAME + 1 : at + 1])
        again.append(last in seen)
        seen.add(last)
    return torch.tensor(again[FIRST - SAME + 1 :])


def document(loaded: Loaded, path: str, length: int) -> None:
    content, text = read_text(None if path == "help" else path)
    tokens = read(loaded.tokenizer, content, length).batch["input_ids"][0]
    clock = time.perf_counter()
    kinds, model = states(loaded, tokens, WINDOW)
    _, double = states(loaded, tokens, 2 * WINDOW)
    end = len(tokens) - 1
    cut = (end - FIRST) // 5
    model, double = model[FIRST:end].double(), double[FIRST:end].double()
    print(f"{text.title}: {len(tokens):,} tokens read, {cut:,} to choose by, {end - FIRST - cut:,} told; {text.sha256[:12]}")
    print(f"  read in {time.perf_counter() - clock:.0f} s\n  {'':44s}   nats   perpl.     gain (95 %)           better")
    alone = -model[cut:].log()
    told("SmolLM2", alone, alone)
    told("SmolLM2, twice the window", alone, -double[cut:].log())

    counts = torch.zeros(int(tokens.max()) + 1, dtype=torch.float64)
    often = []
    for at in range(end):
        counts[tokens[at]] += 1
        often.append(counts[tokens[at + 1]] / (at + 1))
    uniform = torch.stack(often[FIRST:])
    share = best_share(model[:cut], uniform[:cut])[1]
    told(f"infinite temperature, share {share:.2f}", alone, mixed(model, uniform, share)[cut:])

    keys = {kind: normalize(x, dim=1) for kind, x in kinds.items()}
    keys |= {f"{kind}, centred": normalize(x - x[: FIRST + cut].mean(0), dim=1) for kind, x in kinds.items()}
    again, chosen = repeated(tokens)[cut:], []
    for memory, known in {"lookup": lambda at: at, "far": lambda at: at // CONTEXT * CONTEXT - CONTEXT - 1}.items():
        tried = []
        for kind, x in keys.items():
            early = ask(x, tokens, known, FIRST + cut)
            for t in TEMPERATURES:
                tried.append((*best_share(model[:cut], early.found(t)), kind, t))
        firsts = [min(x for x in tried if x[2] == kind) for kind in keys]
        print("    on the first fifth: " + "; ".join(f"{kind} {nats:.3f} at {t}" for nats, _, kind, t in firsts))
        _, share, kind, t = min(tried)
        asked = ask(keys[kind], tokens, known, end, t)
        found = asked.found(t)
        told(f"{memory}, share {share:.2f}, temperature {t}", alone, mixed(model, found, share)[cut:])
        for name, signal in {"entropy": asked.entropy, "score of the best": -asked.scores[:, 0]}.items():
            third = torch.bucketize(signal, signal[:cut].quantile(torch.tensor([1 / 3, 2 / 3])))
            of = [third[:cut] == n for n in range(3)]
            shares = torch.tensor([best_share(model[:cut][who], found[:cut][who])[1] for who in of])
            nats = mixed(model, found, shares[third])[cut:]
            told(f"{memory}, share by {name}", alone, nats)
        chosen.append((memory, kind, asked.missed[cut:], -signal[cut:], third[cut:], shares, nats))
    for memory, kind, missed, scores, third, shares, nats in chosen:
        print(f"  {memory}: keys are {kind}; rows beyond the {BEST} best weigh at most {missed.mean():.1%} in the mean")
        groups = {f"best score {scores[third == n].mean():.3f}, share {shares[n]:.2f}": third == n for n in range(3)}
        groups |= {f"the last {SAME} tokens came before": again, "they did not": ~again}
        for name, who in groups.items():
            told(f"{name:31s}{who.double().mean():6.1%} of all", alone, nats, who)
    print(f"  {time.perf_counter() - clock:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", nargs="*", default=["help"])
    parser.add_argument("--tokens", type=int, default=8192)
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load("smollm2")
    assert loaded.model.config.tie_word_embeddings
    for path in given.texts:
        document(loaded, path, given.tokens)


if __name__ == "__main__":
    main()
