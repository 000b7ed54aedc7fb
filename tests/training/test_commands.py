"""train, evaluate and predict as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TRAIN = "train pairs --target words --epochs 4 --option width=24 --option embedding=12 --rate 0.01".split()
HERE = [*TRAIN, "--pairs", "pairs.tsv", "--out", "run"]


def softlookup(*said, stdin=None, folder=None):
    command = [sys.executable, "-m", "softlookup.cli", *map(str, said)]
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "80"}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=env, cwd=folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    import itertools

    folder = tmp_path_factory.mktemp("commands")
    words = ["".join(x) for n in (2, 3, 4) for x in itertools.product("abcd", repeat=n)]
    (folder / "pairs.tsv").write_text("".join(f"{w}\t{' '.join(reversed(w))}\n" for w in words))
    done = softlookup(*TRAIN, "--pairs", folder / "pairs.tsv", "--out", folder / "run")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("epoch") == 4 and "Model: " in done.stdout
    return folder


def test_predictions_are_a_line_each(run):
    done = softlookup("predict", run / "run", "abc", "dd", "--beam", "3")
    assert done.returncode == 0 and done.stderr == ""
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [word for word, _ in lines] == ["abc", "dd"] and all(set(out.split()) <= set("abcd") for _, out in lines)
    again = softlookup("predict", run / "run", "-", "--beam", "3", stdin="abc\ndd\n")
    assert again.stdout == done.stdout
    best = softlookup("predict", run / "run", "abc", "--best", "3", "--beam", "3")
    assert len(best.stdout.splitlines()) == 3 and best.stdout.splitlines()[0] == done.stdout.splitlines()[0]
    both = softlookup("predict", f"{run / 'run'},{run / 'run'}", "abc", "dd", "--beam", "3")
    assert both.stdout == done.stdout


def test_pictures(run):
    done = softlookup("predict", run / "run", "abcd", "--align", "--html", run / "page.html")
    head, *picture, _, page = done.stdout.splitlines()
    assert head.startswith("abcd\t") and picture[0].split() == list("abcd") and picture[-1].startswith("end")
    assert page == f"Picture: {run / 'page.html'}" and "<table>" in (run / "page.html").read_text()


def test_words_that_cannot_be_read_do_not_lose_the_others(run):
    done = softlookup("predict", run / "run", "ab", "axyb", "", "a" * 10_000, "cd")
    assert done.returncode == 2 and [line.split("\t")[0] for line in done.stdout.splitlines()] == ["ab", "cd"]
    assert done.stderr.splitlines() == [
        "softlookup: 'axyb': expected symbols of the training data, got 'x', 'y'",
        "softlookup: '': expected a word, got an empty one",
        f"softlookup: '{'a' * 40}…': expected at most 16 symbols, got 10000",
    ]


def test_errors_of_a_model(run):
    done = softlookup("evaluate", run / "run", "--beam", "2")
    assert done.returncode == 0 and done.stdout.count("%") == 8 and " of test, beam 2" in done.stdout
    done = softlookup("evaluate", run / "run", run / "run", "--part", "dev")
    assert done.returncode == 0 and " of dev, beam 5" in done.stdout


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["predict", "nowhere", "a"], "model: expected the folder of a run, or the name of one in models/, got nowhere"),
        (["predict", ".", "a"], ".: expected the folder of a run, got one without run.json"),
        (["evaluate", "run", "--part", "all"], "--part: expected one of train, dev, test, got all"),
        (["train", "g2p", "--option", "width"], "--option: expected name=value, got 'width'"),
        (["train", "mt"], "task: expected one of g2p, pairs, got 'mt'"),
        (["train", "pairs", "--pairs", "none.tsv"], "--pairs: cannot read none.tsv: no such file or directory"),
        (HERE, "run: holds a run already; expected --resume to go on with it, or another folder"),
        ([*HERE, "--seed", "1", "--resume"], "run: expected the run's own config, seed=0, got seed=1"),
    ],
)
def test_mistakes_are_one_line(run, said, message):
    done = softlookup(*said, folder=run)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"softlookup: {message}") and done.stderr.count("\n") == 1
