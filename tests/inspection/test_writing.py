"""Whole or not at all, and never over somebody else's file."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from softlookup.errors import SoftlookupError
from softlookup.files import write_text
from softlookup.inspection.writing import check_target


def test_written_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    target = tmp_path / "a.html"
    write_text(target, "Zoë 🙂\n")
    assert target.read_text(encoding="utf-8") == "Zoë 🙂\n" and os.listdir(tmp_path) == ["a.html"]
    (tmp_path / "ordinary").write_text("")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_text_that_utf8_cannot_hold(tmp_path: Path) -> None:
    write_text(tmp_path / "a.html", "half a pair: \ud800")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "half a pair: ?"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), "no permission"),
        (OSError(errno.EIO, "Input/output error"), "input/output error"),
        (KeyboardInterrupt(), None),
    ],
)
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, line: str | None
) -> None:
    target = tmp_path / "a.html"
    target.write_text("before")

    def fail(*names: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    expected = KeyboardInterrupt if line is None else SoftlookupError
    with pytest.raises(expected, match=line):
        write_text(target, "after")
    assert target.read_text() == "before" and os.listdir(tmp_path) == ["a.html"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkstemp", lambda **more: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "part")))
    with pytest.raises(SoftlookupError, match="the disk is full"):
        write_text(tmp_path / "a.html", "x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_targets_are_checked_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(SoftlookupError, match="expected a file, got the folder"):
        check_target(tmp_path, "--html")
    with pytest.raises(SoftlookupError, match="expected a path in an existing folder"):
        check_target(tmp_path / "none" / "a.html", "--html")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SoftlookupError, match="is no folder"):
        check_target(tmp_path / "file" / "a.html", "--html")
    assert check_target(tmp_path / "a.html", "--html") == tmp_path / "a.html"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SoftlookupError, match="no permission"):
        check_target(tmp_path / "a.html", "--html")
    with pytest.raises(SoftlookupError, match="no permission"):
        write_text(tmp_path / "a.html", "x")


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        SoftlookupError, match=r"--html: expected a folder that can be written to, got .* \(no permission\)"
    ):
        check_target(tmp_path / "a.html", "--html")


def test_only_our_own_files_are_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.html"
    for foreign in ("<html>mine</html>", "\x7fELF", "{}"):
        target.write_text(foreign)
        with pytest.raises(SoftlookupError, match="--html: .* was not written by softlookup; choose another path"):
            check_target(target, "--html")
    for ours in (
        "",
        '<!doctype html>\n<meta name="generator" content="softlookup 0.1">',
        '{"generator": "softlookup"}',
    ):
        target.write_text(ours)
        check_target(target, "--html")
