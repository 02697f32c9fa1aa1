"""A slice of tests/killed_work.py: killed and roomless work leaves nothing that a reader takes for whole."""

import json
import subprocess
import sys

import killed_work
import pytest


def test_killed_writes_end_as_undisturbed_ones():
    command = [sys.executable, killed_work.__file__, "--kills", "4", "--kinds", "results"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    told = json.loads(done.stdout.splitlines()[-1])
    rows = {row["kind"]: row for row in told["rows"]}
    assert told["kills"] >= 4
    assert rows["results"]["different"] == rows["results"]["damaged"] == rows["results"]["leftovers"] == 0
    for row in rows.values():  # full and read-only disks where this user may mount one
        assert not any(row.get(key, 0) for key in ("unnamed", "damaged", "different")), done.stdout
    assert "NOT tried" in done.stdout or len(rows) == 2


@pytest.mark.parametrize("kind", killed_work.WORK)
def test_a_half_written_target_would_be_seen(kind, tmp_path):
    assert killed_work.state(kind, tmp_path) is None
    name = {"results": "01_data_and_training.json", "conversion": "small.tflite"}
    path = tmp_path / name.get(kind, "small.ipynb")
    path.write_bytes(b"half")
    if kind in ("results", "conversion"):
        with pytest.raises(ValueError, match=path.name):
            killed_work.state(kind, tmp_path)
    else:
        whole = killed_work.hashlib.sha256(b"whole").hexdigest()
        assert killed_work.state(kind, tmp_path) not in (None, whole)
