"""A training step of a small GPT with all statistics on (in the loss, the entropy of every head) against one with torch's
scaled_dot_product_attention and none, interleaved in one run.

    python benchmarks/training_step.py [--tokens 1024] [--rounds 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import softlookup as sl

WIDTH, HEADS, LAYERS, VOCABULARY = 512, 8, 4, 4096


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.inner = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, looking: bool) -> tuple[Tensor, Tensor]:
        q, k, v = self.inner(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        entropy = x.new_zeros(())
        if looking:
            y, seen = sl.attend(q, k, v, mask=sl.Causal(), stats=True)
            entropy = seen.entropy.mean()
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.feed(self.norms[1](x)), entropy


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, looking: bool) -> Tensor:
        x, entropy = self.embedding(tokens), torch.zeros(())
        for block in self.blocks:
            x, added = block(x, looking)
            entropy = entropy + added
        loss = F.cross_entropy(self.out(self.norm(x))[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return loss - 0.001 * entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, tokens = GPT(), torch.randint(VOCABULARY, (2, args.tokens))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def timed(looking: bool) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        model(tokens, looking).backward()
        optimizer.step()
        return time.perf_counter() - start

    timed(False), timed(True)
    pairs = [(timed(False), timed(True)) for _ in range(args.rounds)]
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    plain = statistics.median(a for a, _ in pairs)
    print(f"GPT of {LAYERS} layers, {WIDTH} wide, 2 x {args.tokens} tokens, {args.threads} threads:")
    print(f"a step with SDPA {plain:.3f} s,")
    print(f"with softlookup and all statistics {middle:.2f} times that (quartiles {low:.2f} – {high:.2f}; below is better)")


if __name__ == "__main__":
    main()
