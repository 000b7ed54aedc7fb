"""A model's name on the command line -> the model and its tokenizer.

MODEL is a local folder (safetensors or GGUF), a GGUF file, a bundled name, or a hub id. The network is used only
when asked for; code from a checkpoint is never run, and nothing is unpickled (but see `conversions.reactions`).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import SoftlookupError
from ..files import expanded
from . import bundled

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Source:
    """Where a model is: ``place`` is a folder or a hub id, ``gguf`` the file in it to read instead of safetensors.
    ``download``: whether a hub id may be fetched."""

    name: str
    place: str
    gguf: str | None = None
    local: bool = True
    download: bool = False


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, its tokenizer (None where no text was asked for), and what a reader should know of them."""

    model: nn.Module
    tokenizer: Any
    name: str
    notes: list[str] = field(default_factory=list)


def load(
    model: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    download: bool = False,
    text: bool = True,
) -> Loaded:
    """Load what ``model`` names, in evaluation mode. ``text``: only if it reads text. Raises ``SoftlookupError`` with one
    line for everything that can be wrong."""
    target = _device(device)
    with _quiet_transformers():
        if model in bundled.BUNDLED and not _is_model_folder(Path(model)):
            source = Source(model, str(bundled.folder(model)))
        else:
            source = replace(locate(model), download=download)
        _config(source)  # alone first: what is wrong with it would be told as a fault of the weights
        network, notes = _weights(source, dtype)
        if text and network.main_input_name != "input_ids":
            raise SoftlookupError(
                f"{model}: expected a model that reads text (input_ids), got one that reads {network.main_input_name}; "
                "use softlookup.look(model, inputs) from Python with a batch of your own"
            )
        tokenizer = _tokenizer(source)
    return Loaded(_on_device(network, target).eval(), tokenizer, source.name, notes)


def locate(model: str) -> Source:
    """What ``model`` (no bundled name) points to; a folder is checked for what it must hold."""
    path = expanded(model)
    if path.is_file():
        if path.suffix != ".gguf":
            raise SoftlookupError(f"{model}: expected a model folder or a .gguf file, got another kind of file")
        return Source(path.stem, str(path.parent), path.name)
    if path.is_dir():
        return _checked_folder(path)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1 or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise SoftlookupError(
            f"{model}: no such folder (expected a model folder, a hub id or one of {_bundled_names()})"
        )
    return Source(model.rsplit("/", 1)[-1], model, local=False)


def _checked_folder(folder: Path) -> Source:
    name = folder.resolve().name
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if not (folder / "config.json").is_file():
        if len(ggufs) == 1:
            return Source(name, str(folder), ggufs[0])
        if ggufs:
            raise SoftlookupError(f"{folder} holds {len(ggufs)} GGUF files; name one of them: {', '.join(ggufs[:4])}")
        raise SoftlookupError(
            f"{folder} is no model folder: expected config.json or a .gguf file, got {_contents(folder)}"
        )
    if any(folder.glob("*.safetensors")):
        return Source(name, str(folder))
    if len(ggufs) == 1:
        return Source(name, str(folder), ggufs[0])
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise SoftlookupError(
            f"{folder}: expected safetensors, got {pickles[0]}; pickled weights can run code and are never opened "
            "(convert them with save_pretrained)"
        )
    raise SoftlookupError(f"{folder}: expected weights (*.safetensors or *.gguf), got {_contents(folder)}")


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return (
        "an empty folder"
        if not names
        else ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    )


def _is_model_folder(path: Path) -> bool:
    return (path / "config.json").is_file() or (path.is_dir() and any(path.glob("*.gguf")))


def _bundled_names() -> str:
    return ", ".join(bundled.BUNDLED)


def _options(source: Source) -> dict[str, Any]:
    options: dict[str, Any] = {"local_files_only": source.local or not source.download, "trust_remote_code": False}
    return options | ({"gguf_file": source.gguf} if source.gguf else {})


def _config(source: Source) -> Any:
    from transformers import AutoConfig

    with _told(source, "config"):
        return AutoConfig.from_pretrained(source.place, **_options(source))


def _tokenizer(source: Source) -> Any:
    from transformers import AutoTokenizer

    if source.local and source.gguf is None:
        # Without any of its files transformers builds an empty tokenizer for some models and says nothing.
        kinds = ("tokenizer*", "vocab*", "*.model", "spiece*", "merges*", "sentencepiece*")
        if not any(path for kind in kinds for path in Path(source.place).glob(kind)):
            raise SoftlookupError(f"{source.place}: expected a tokenizer beside the weights (tokenizer.json), got none")
    with _told(source, "tokenizer"):
        return AutoTokenizer.from_pretrained(source.place, **_options(source))


def _weights(source: Source, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """The trunk without its head: attention is all that is looked at, and logits over a vocabulary are the largest
    tensor there is."""
    from transformers import AutoModel

    options = _options(source)
    if source.gguf is None:
        options["use_safetensors"] = True
    with _told(source, "weights"):
        model, report = AutoModel.from_pretrained(source.place, dtype=dtype, output_loading_info=True, **options)
    missing = sorted(report.get("missing_keys", ()))
    if len(missing) > len(list(model.parameters())) / 2:
        raise SoftlookupError(
            f"{source.name}: expected weights of a {type(model).__name__}, got none for {missing[0]} and others"
        )
    if missing:
        return model, [f"{len(missing)} weights are not in the checkpoint and are random: {', '.join(missing[:2])} …"]
    return model, []


@contextmanager
def _told(source: Source, part: str) -> Iterator[None]:
    """Whatever a loader raises, as one line that says which part of which model could not be read."""
    try:
        yield
    except SoftlookupError:
        raise
    except MemoryError:
        raise SoftlookupError(f"{source.name}: not enough memory for its {part}") from None
    except Exception as error:
        raise SoftlookupError(_explained(source, part, error)) from error


def _explained(source: Source, part: str, error: Exception) -> str:
    line = re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
    if not source.local:
        if source.download and not _unreachable(error):
            return f"{source.place}: its {part} cannot be loaded: {line}"
        return (
            f"{source.place}: no folder, none of the bundled models ({_bundled_names()}), and not found in the local cache "
            f"as safetensors ({part}); "
            + ("the hub cannot be reached" if source.download else "--download fetches it from the hub")
        )
    if "trust_remote_code" in line:
        return f"{source.place}: its {part} needs code from the checkpoint, which is never run"
    if source.gguf:
        return f"{Path(source.place) / source.gguf} is no readable GGUF file ({part}): {line}"
    damaged = _damaged(Path(source.place)) if part == "weights" else None
    return f"{damaged} is corrupt: {line}" if damaged else f"{source.place}: its {part} cannot be read: {line}"


def _unreachable(error: BaseException | None) -> bool:
    """Whether the hub gave no answer: huggingface_hub's word for a file that is neither there nor in the cache, or any
    error of a connection, in the chain of causes."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while error is not None:
        if isinstance(error, (ConnectionError, LocalEntryNotFoundError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _damaged(folder: Path) -> Path | None:
    """The first safetensors file in the folder that does not open."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except Exception:
            return path
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            json.loads(index.read_text(encoding="utf-8"))
        except ValueError:
            return index
    return None


def _device(name: str | torch.device) -> torch.device:
    """The device called ``name``, before anything is loaded for it; whether this machine has it shows later."""
    try:
        return torch.device(name)
    except RuntimeError:  # torch's message lists all that it was ever built for
        raise SoftlookupError(f"--device: expected cpu, cuda, cuda:1, mps or the like, got {name}") from None


def _on_device(model: nn.Module, device: torch.device) -> nn.Module:
    try:
        return model.to(device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = str(error).splitlines()[0][:120]
        raise SoftlookupError(f"--device: expected one that this machine has, got {device} ({line})") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Our own progress bar and our own one-line notes instead of transformers' logging and bars.

    The bars of GGUF loading heed no setting, so standard error is taken away meanwhile.
    """
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise SoftlookupError(
            "models need transformers, tokenizers and safetensors: pip install 'softlookup[hf]'"
        ) from error
    from huggingface_hub.utils import logging as hub

    level, bar, hub_level = logging.get_verbosity(), logging.is_progress_bar_enabled(), hub.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    hub.set_verbosity(logging.CRITICAL)  # a line per retry
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        hub.set_verbosity(hub_level)
        if bar:
            logging.enable_progress_bar()
