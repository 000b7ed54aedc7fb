"""A small vision transformer learns digits somewhere on a canvas: does its output token look at the ink?"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, unfold

from softlookup.nn import TransformerBlock

from ..run import Given
from .looking import looked, shuffled

SIDE, PATCH, WIDTH, HEADS, DEPTH = 12, 2, 48, 4, 2
STEPS, BATCH, RATE, TEST = 1500, 64, 4e-3, 360


class VisionTransformer(nn.Module):
    """Patches with learned rows and columns, one output token before them (Dosovitskiy et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(PATCH**2, WIDTH)
        self.rows, self.columns = (nn.Parameter(0.2 * torch.randn(SIDE // PATCH, WIDTH)) for _ in range(2))
        self.first = nn.Parameter(0.02 * torch.randn(WIDTH))
        self.blocks = nn.ModuleList(TransformerBlock(WIDTH, HEADS, inner=2 * WIDTH) for _ in range(DEPTH))
        self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))

    def forward(self, images: Tensor) -> Tensor:
        """(B, SIDE, SIDE) -> (B, 10) logits."""
        x = self.patches(patched(images)) + (self.rows[:, None] + self.columns).flatten(0, 1)
        x = torch.cat([self.first.expand(len(x), 1, -1), x], 1)
        for block in self.blocks:
            x, _ = block(x)
        return self.out(x[:, 0])


def patched(images: Tensor) -> Tensor:
    """(B, SIDE, SIDE) -> (B, number of patches, PATCH²)."""
    return unfold(images[:, None], PATCH, stride=PATCH).transpose(1, 2)


def data(seed: int) -> tuple[Tensor, Tensor]:
    """(N, 8, 8) digits and their labels in an order that the seed draws; the first `TEST` are for testing."""
    from sklearn.datasets import load_digits

    all_digits = load_digits()
    order = torch.randperm(len(all_digits.target), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(all_digits.images, dtype=torch.float32)[order] / 16, torch.tensor(all_digits.target)[order]


def on_canvas(digits: Tensor) -> Tensor:
    """(B, 8, 8) -> (B, SIDE, SIDE), each at a place of its own."""
    canvas = digits.new_zeros(len(digits), SIDE, SIDE)
    places = PATCH * torch.randint((SIDE - 8) // PATCH + 1, (len(digits), 2))
    for image, digit, (row, column) in zip(canvas, digits, places.tolist(), strict=True):
        image[row : row + 8, column : column + 8] = digit
    return canvas


def trained(seed: int) -> str:
    """The weights of a model as half-precision safetensors, in letters."""
    from safetensors.torch import save

    digits, labels = data(seed)
    torch.manual_seed(seed)
    model = VisionTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for _ in range(STEPS):
        some = torch.randint(TEST, len(digits), (BATCH,))
        loss = cross_entropy(model(on_canvas(digits[some])), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return b64encode(save({name: x.half() for name, x in model.state_dict().items()})).decode()


def measure(given: Given) -> dict[str, Any]:
    from safetensors.torch import load

    # Kept for quick runs too, which would see a model that has learned nothing.
    weights = given.records.get(f"vision transformer, seed {given.seed}", lambda: trained(given.seed))
    model = VisionTransformer().eval()
    model.load_state_dict(load(b64decode(weights)))
    digits, labels = data(given.seed)
    torch.manual_seed(given.seed)
    images = on_canvas(digits[:TEST])
    strongest = looked(model, given, images=images)[-1].rows("argmax")[:, :, 0].long()  # (B, H): of the output token
    ink = pad(patched(images).amax(2) > 0.25, (1, 0))  # (B, keys): the output token has none
    with torch.no_grad(), shuffled(model, given):
        right = model(images).argmax(1) == labels[:TEST]
    return {"accuracy": float(right.float().mean()), "ink": float(ink.gather(1, strongest).float().mean())}
