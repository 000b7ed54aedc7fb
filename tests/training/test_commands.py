"""train, evaluate and predict: in a process of their own, as a user runs them, and in this one."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from rich.cells import cell_len

from softlookup.training.picture import Picture, in_terminal

TRAIN = "train pairs --target words --epochs 4 --option width=24 --option embedding=12 --rate 0.01".split()
COMMAND = [sys.executable, "-m", "softlookup.cli"]
HERE = [*TRAIN, "--pairs", "pairs.tsv", "--out", "run"]
PAIRS = "train pairs --pairs pairs.tsv --out new".split()


def softlookup(*said, stdin=None):
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "80"}
    return subprocess.run([*COMMAND, *map(str, said)], input=stdin, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    words = ["".join(x) for n in (2, 3, 4) for x in itertools.product("abcd", repeat=n)]
    (folder / "pairs.tsv").write_text("".join(f"{w}\t{' '.join(reversed(w))}\n" for w in words))
    done = softlookup(*TRAIN, "--pairs", folder / "pairs.tsv", "--out", folder / "run")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("epoch") == 4 and "Model: " in done.stdout
    return folder


def test_predictions_are_a_line_each(run, command):
    done = softlookup("predict", run / "run", "-", "--beam", "3", stdin="abc\n\ndd\n")
    assert done.returncode == 0 and done.stderr == ""
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [word for word, _ in lines] == ["abc", "dd"] and all(set(out.split()) <= set("abcd") for _, out in lines)
    assert command("predict", run / "run", "abc", "dd", "--beam", "3") == (0, done.stdout, [])
    _, best, _ = command("predict", run / "run", "abc", "--best", "3", "--beam", "3")
    assert len(best.splitlines()) == 3 and best.splitlines()[0] == done.stdout.splitlines()[0]
    assert command("predict", f"{run / 'run'},{run / 'run'}", "abc", "dd", "--beam", "3")[1] == done.stdout


def test_pictures(run, command, tmp_path):
    _, out, errors = command("predict", run / "run", "abcd", "--align", "--html", tmp_path / "page.html")
    head, *picture, _ = out.splitlines()
    assert head.startswith("abcd\t") and picture[0].split() == list("abcd") and picture[-1].startswith("end")
    assert errors == [f"Picture: {tmp_path / 'page.html'}"] and "<table>" in (tmp_path / "page.html").read_text()


def test_long_words_are_drawn_in_bands(run, command):
    _, out, _ = command("predict", run / "run", "abcdabcdabcdabcd", "--align")
    narrow = Picture("", tuple("日bcdé") * 10, ("x", "yy"), torch.rand(3, 50))
    for text in (out, in_terminal(narrow, 40)):
        assert max(map(cell_len, text.splitlines())) <= 80
    assert in_terminal(narrow, 40).count("end") == 5 and max(map(cell_len, in_terminal(narrow, 40).splitlines())) <= 40


def test_interrupted_training_says_how_to_go_on(run):
    again = [*TRAIN, "--pairs", "pairs.tsv", "--out", "interrupted", "--epochs", "500"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background inherits deafness to it
    child = subprocess.Popen([*COMMAND, *again], cwd=run, preexec_fn=heard, **pipes)
    assert child.stdout is not None and child.stdout.readline().startswith("epoch")
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors == "softlookup: interrupted; the same command with --resume goes on from the last checkpoint\n"


def test_options_of_a_run_need_not_be_repeated(run, command, monkeypatch):
    """A run that is done goes on to its end at once, whatever it was made with; what is said must still be its own."""
    monkeypatch.chdir(run)
    code, out, errors = command("train", "pairs", "--out", "run", "--resume")
    assert code == 0 and "Model: run/model.safetensors" in out, errors
    code, _, errors = command("train", "pairs", "--out", "run", "--resume", "--batch", "7")
    assert code == 2 and "expected the run's own config, batch=" in errors[0] and "got batch=7" in errors[0]


def test_words_that_cannot_be_read_do_not_lose_the_others(run, command):
    code, out, errors = command("predict", run / "run", "ab", "axyb", "", "a" * 10_000, "cd")
    assert code == 2 and [line.split("\t")[0] for line in out.splitlines()] == ["ab", "cd"]
    assert errors == [
        "softlookup: 'axyb': expected symbols of the training data, got 'x', 'y'",
        "softlookup: '': expected a word, got an empty one",
        f"softlookup: '{'a' * 40}…': expected at most 16 symbols, got 10000",
    ]


def test_a_line_ends_at_a_newline_only(run, command):
    _, out, errors = command("predict", run / "run", "-", stdin="ab\x0c\r\ncd\n")
    assert out.startswith("cd\t") and len(errors) == 1 and "'\\x0c'" in errors[0]


def test_errors_of_a_model(run, command):
    code, out, _ = command("evaluate", run / "run", "--beam", "2")
    assert code == 0 and out.count("%") == 8 and " of test, beam 2" in out
    assert "outputs wrong " in out and "symbols wrong " in out
    code, out, _ = command("evaluate", f"{run / 'run'},{run / 'run'}", "--part", "dev")
    assert code == 0 and " of dev, beam 5" in out


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["predict", "nowhere", "a"], "model: expected the folder of a run, or the name of one in the repository's models/"),
        (["predict", ".", "a"], ".: expected the folder of a run, got one without run.json"),
        (["predict", "run,", "a"], "model: expected folders with commas between, got 'run,'"),
        (["predict", "run", "a", "--best", "0"], "--best: expected a number of at least 1, got 0"),
        (["predict", "run", "a", "--beam", "-1"], "--beam: expected a number of at least 1, got -1"),
        (["predict", "run", "a", "-"], "words: expected words, or - alone for standard input"),
        (["evaluate", "run", "--beam", "0"], "--beam: expected a number of at least 1, got 0"),
        (["evaluate", "run", "--part", "all"], "--part: expected one of train, dev, test, got all"),
        (["train", "g2p", "--option", "width"], "--option: expected name=value, got 'width'"),
        (["train", "mt"], "task: expected one of g2p, pairs, got 'mt'"),
        (["train", "pairs", "--pairs", "none.tsv"], "--pairs: cannot read none.tsv: no such file or directory"),
        (HERE, "run: holds a run already; expected --resume to go on with it, or another folder"),
        (["train", "pairs", "--resume", "--out", "nowhere"], "nowhere: expected the folder of a run, got one without run.json"),
        (["train", "g2p", "--resume", "--out", "run"], "run: expected task pairs, which the run there has, got g2p"),
        (["train", "g2p", "--option", "width=8", "--option", "width=9"], "--option: expected each name once, got width again"),
        (["train", "g2p", "--option", "width=abc"], "--option width: expected a whole number, got 'abc'"),
        ([*PAIRS, "--option", "width=1.5"], "--option width: expected a whole number, got 1.5"),
        ([*PAIRS, "--option", "dropout=abc"], "--option dropout: expected a number, got 'abc'"),
        (["predict", "~nosuchuser/x", "a"], "~nosuchuser/x: expected the home of a user, found none of that name"),
        (["predict", "x" * 300, "a"], "x"),
        ([*HERE, "--seed", "1", "--resume"], "run: expected the run's own config, seed=0, got seed=1"),
    ],
)
def test_mistakes_are_one_line(run, command, monkeypatch, said, message):
    monkeypatch.chdir(run)
    code, out, errors = command(*said)
    assert code == 2 and out == "" and len(errors) == 1 and errors[0].startswith(f"softlookup: {message}")
