"""Files are whole or not there, whatever happens while they are written."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from utils import files


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    files.write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), files.atomic_path(target) as part:
        part.write_text("half")
        raise RuntimeError("stop")
    assert files.read_json(target) == {"x": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_named_and_not_a_number_is_refused(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.json: No space left on device; free some space"):
        files.write_json(tmp_path / "a.json", {})
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_lock_makes_its_folder_or_names_what_it_was_for(tmp_path):
    with files.lock(tmp_path / "new" / "a"):
        assert (tmp_path / "new").is_dir()
    (tmp_path / "file").touch()
    reason = r"cannot write .*file/a: .*; free some space or choose another folder"
    with pytest.raises(OSError, match=reason), files.lock(tmp_path / "file" / "a"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is not a JSON file"):
        files.read_json(path)


def test_killed_writers_leave_a_whole_file(tmp_path):
    target = tmp_path / "state.json"
    files.write_json(target, {"n": 0})
    program = (
        "import itertools, sys; from utils import files\n"
        "for n in itertools.count(1): files.write_json(sys.argv[1], {'n': n, 'load': ['x' * 50] * 2000})"
    )
    root = pathlib.Path(__file__).resolve().parent.parent
    seen = set()
    for moment in (0.3, 0.35, 0.4, 0.45, 0.5):
        writer = subprocess.Popen([sys.executable, "-c", program, str(target)], cwd=root)
        deadline = time.monotonic() + 20
        before = files.read_json(target)["n"]
        while files.read_json(target)["n"] in (before, 0) and time.monotonic() < deadline:
            time.sleep(0.01)  # it has started to write; every read on the way found a whole file
        time.sleep(moment / 10)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        seen.add(files.read_json(target)["n"])
    assert seen and 0 not in seen
