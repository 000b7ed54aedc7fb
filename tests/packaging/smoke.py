"""What a wheel must do in an environment that has nothing but its dependencies: `make dist` runs this there."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import torch

import softlookup as sl

home = Path(sl.__file__).parent
assert "site-packages" in home.parts, home
assert sl.__version__ == version("softlookup") and (home / "py.typed").exists()

q, k, v = (torch.randn(1, 4, 200, 32, requires_grad=True) for _ in range(3))
y, stats = sl.attend(q, k, v, mask=sl.Causal(), stats=True)
torch.testing.assert_close(y, torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
(y.sum() + stats.entropy.sum()).backward()
assert q.grad is not None and q.grad.isfinite().all()
assert sl.explain(q, k, v).engine == "native", sl.explain(q, k, v)
assert (files("softlookup.lab") / "capacity" / "prediction.toml").is_file()

model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(32, 4, batch_first=True), 1, enable_nested_tensor=False)
with sl.watch(model) as seen:
    model(torch.randn(2, 20, 32))
assert "layers.0.self_attn" in str(seen.table())

command = Path(sys.executable).with_name("softlookup")
for arguments in (["--version"], ["info"]):
    said = subprocess.run([command, *arguments], capture_output=True, text=True, check=True)
    assert said.stdout, arguments
said = subprocess.run([command, "lab", "list"], capture_output=True, text=True)
assert (said.returncode, said.stderr.count("\n")) == (2, 1) and "pip install 'softlookup[lab]'" in said.stderr, said
print(f"softlookup {sl.__version__}: the wheel works")
