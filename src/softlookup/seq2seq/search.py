"""The best outputs of an encoder-decoder: beam search over a batch; with a beam of 1 it is greedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SoftlookupError
from .model import Model, State


@dataclass(frozen=True)
class Hypothesis:
    """An output without the symbols that begin and end it; score: its log-probability over (its length + 1)^power.

    finished: False where it was cut at the greatest length."""

    symbols: tuple[int, ...]
    score: float
    finished: bool


@torch.no_grad()
def search(
    model: Model | Ensemble,
    source: Tensor,
    lengths: Tensor,
    *,
    begin: int,
    end: int,
    beam: int = 5,
    longest: int = 64,
    power: float = 1.0,
    never: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """For each entry of a batch, up to `beam` outputs, best first.

    Args:
        source: (B, S).
        lengths: (B,).
        begin: the symbol before an output.
        end: the symbol after it.
        beam: partial outputs that are kept; an entry is done when as many have ended.
        longest: symbols after which an output is cut; those that were cut are told only where none has ended.
        power: of the length that a log-probability is divided by (Wu et al. 2016); 0 for none, which favours short outputs.
        never: symbols that no output may hold, as those that pad and begin.

    The model is asked in evaluation mode, and left as it was.
    """
    models = [each for each in getattr(model, "models", [model]) if isinstance(each, Model)]
    training = [each.training for each in models]
    try:
        for each in models:
            each.eval()
        return _search(model, source, lengths, begin, end, beam, longest, power, never)
    finally:
        for each, was in zip(models, training, strict=True):
            each.train(was)


def _search(
    model: Model | Ensemble,
    source: Tensor,
    lengths: Tensor,
    begin: int,
    end: int,
    beam: int,
    longest: int,
    power: float,
    never: Sequence[int],
) -> list[list[Hypothesis]]:
    if beam < 1 or longest < 1:
        raise SoftlookupError(f"search: expected a beam and a length of at least 1, got {beam} and {longest}")
    symbols = model.target_symbols
    if not all(0 <= each < symbols for each in (begin, end, *never)):
        raise SoftlookupError(f"search: expected begin, end and never below {symbols}, got {begin}, {end} and {never}")
    if len({*never, end}) == symbols:
        raise SoftlookupError("search: expected some symbol that an output may hold, got all of them in never")
    batch, device = len(source), source.device
    state = model.start(source, lengths)
    tokens = torch.full((batch, 1), begin, device=device)
    total = torch.zeros(batch, 1, device=device)  # log-probabilities of the partial outputs
    so_far = torch.zeros(batch, 1, 0, dtype=torch.long, device=device)
    found: list[list[Hypothesis]] = [[] for _ in range(batch)]
    going = torch.ones(batch, dtype=torch.bool, device=device)
    for step in range(1, longest + 2):  # the last only to see what ends there
        scores, state = model.step(tokens, state)
        if never:
            scores[..., list(never)] = -torch.inf
        scores = total.unsqueeze(-1) + scores
        # Of twice as many continuations as are kept, at most half end: enough go on.
        best, which = scores.flatten(1).topk(min(2 * beam, scores[0].numel()))
        parents, next_tokens = which // symbols, which % symbols
        ends = next_tokens == end
        _collect(found, going, best, parents, ends, so_far, step, beam, power)
        if step > longest:
            break
        total, chosen = torch.where(ends, -torch.inf, best).topk(min(beam, best.shape[1]))
        parents, tokens = parents.gather(1, chosen), next_tokens.gather(1, chosen)
        so_far = torch.cat([so_far.gather(1, parents.unsqueeze(-1).expand(-1, -1, so_far.shape[-1])), tokens.unsqueeze(-1)], -1)
        state = state.take(parents)
        going &= torch.tensor([len(each) < beam for each in found], device=device)
        if not going.any():
            break
    rest = torch.where(going.unsqueeze(1), total, -torch.inf).cpu()
    for entry in range(batch):
        if not found[entry]:
            k = int(rest[entry].argmax())
            cut = tuple(so_far[entry, k].tolist())
            found[entry] = [Hypothesis(cut, float(total[entry, k]) / (len(cut) + 1) ** power, False)]
        found[entry].sort(key=lambda h: -h.score)
        del found[entry][beam:]
    return found


def _collect(
    found: list[list[Hypothesis]],
    going: Tensor,
    best: Tensor,
    parents: Tensor,
    ends: Tensor,
    so_far: Tensor,
    length: int,
    beam: int,
    power: float,
) -> None:
    """Keep what ends at this step among the `beam` best continuations."""
    ends = (ends & going.unsqueeze(1) & best.isfinite())[:, :beam]
    for entry, k in ends.nonzero().tolist():
        output = tuple(so_far[entry, parents[entry, k]].tolist())
        found[entry].append(Hypothesis(output, float(best[entry, k]) / length**power, True))


class _States(State):
    def __init__(self, states: Sequence[State]):
        self.states = states

    def take(self, parents: Tensor) -> _States:
        return _States([each.take(parents) for each in self.states])


class Ensemble:
    """Several models as one, whose probability of a symbol is the mean of theirs; all of the same vocabularies."""

    def __init__(self, models: Sequence[Model]):
        if not models:
            raise SoftlookupError("Ensemble: expected at least one model, got none")
        if len({(m.source_symbols, m.target_symbols) for m in models}) > 1:
            raise SoftlookupError("Ensemble: expected models of the same vocabularies, got different ones")
        self.models, self.target_symbols = list(models), models[0].target_symbols

    def start(self, source: Tensor, lengths: Tensor) -> State:
        return _States([each.start(source, lengths) for each in self.models])

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, _States)
        steps = [model.step(tokens, each) for model, each in zip(self.models, state.states, strict=True)]
        mean = torch.stack([scores for scores, _ in steps]).logsumexp(0)
        return mean - torch.log(torch.tensor(float(len(steps)))), _States([after for _, after in steps])
