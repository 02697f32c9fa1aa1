"""Downloads, archives and manifests: whole or not at all, and no wrong byte reaches the data folder."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import pathlib
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from utils import datasets
from utils.datasets import __main__ as command
from utils.datasets import published

PHOTOS = {"train/hat/a.jpg": b"first", "train/hat/b.jpg": b"second", "images.csv": b"id\n"}
LISTED = {name: hashlib.sha256(data).hexdigest() for name, data in PHOTOS.items()}
GOOD = [(f"set-1234/{name}", data) for name, data in PHOTOS.items()]


def tar(path, entries, mode="w:gz"):
    with tarfile.open(path, mode) as made:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                entry.type, entry.linkname = data
            else:
                entry.size = len(data)
            made.addfile(entry, None if isinstance(data, tuple) else io.BytesIO(data))
    return path


def zipped(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in entries:
            made.writestr(name, data)
    return path


def below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_good_archives_of_each_kind_are_unpacked_and_strangers_in_them_passed_over(tmp_path):
    entries = [*GOOD, ("set-1234/README.md", b"not listed"), ("set-1234/.github/x", b"")]
    kinds = [tar(tmp_path / "a", entries), tar(tmp_path / "b", entries, "w"), zipped(tmp_path / "c", entries)]
    for number, archive in enumerate(kinds):
        published.unpack(archive, tmp_path / str(number), LISTED, 10**6)
        assert below(tmp_path / str(number)) == PHOTOS


HOSTILE = [
    ([("set/../../evil", b"x"), *GOOD], "leads outside the folder"),
    ([("../evil", b"x"), *GOOD], "leads outside the folder"),
    ([("set-1234/images.csv", (tarfile.SYMTYPE, "/etc/passwd")), *GOOD], "is a link"),
    ([("set/train", (tarfile.SYMTYPE, "hat")), *GOOD], "is a link"),
    ([("set/hard", (tarfile.LNKTYPE, "set/x")), *GOOD], "is a link"),
    ([("set/null", (tarfile.CHRTYPE, "")), *GOOD], "a device"),
    ([*GOOD, ("set/zeros", bytes(3_000_000))], "unpacks to more than 1,000,000 bytes"),
    ([*GOOD[:2], ("set/images.csv", b"tampered")], r"images\.csv differs from the published file"),
    (GOOD[:2], r"1 published files are missing \(first images\.csv\)"),
]


@pytest.mark.parametrize(("entries", "reason"), HOSTILE)
def test_hostile_tars_are_refused_in_one_sentence(tmp_path, entries, reason):
    with pytest.raises(published.BadArchive, match=f"^a is not the published archive: .*{reason}"):
        published.unpack(tar(tmp_path / "a", entries), tmp_path / "out" / "deep", LISTED, 10**6)
    assert set(below(tmp_path)) - {"a"} <= {f"out/deep/{name}" for name in PHOTOS}


def test_hostile_zips_are_refused_in_one_sentence(tmp_path):
    link = zipfile.ZipInfo("set/link")
    link.external_attr = 0o120777 << 16
    plain = [case for case in HOSTILE if all(isinstance(data, bytes) for _, data in case[0])]
    for entries, reason in [*plain, ([("/etc/evil", b"x")], "outside"), ([(link, b"/etc")], "is a link")]:
        with pytest.raises(published.BadArchive, match=reason):
            published.unpack(zipped(tmp_path / "a", entries), tmp_path / "out", LISTED, 10**6)


def test_damaged_archives_are_named(tmp_path):
    whole = tar(tmp_path / "whole", GOOD).read_bytes()
    for damaged in (b"", b"junk" * 99, whole[:-40], whole[:60] + bytes(9) + whole[69:], b"PK\x05\x06" + bytes(4)):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(published.BadArchive, match=r"^a is (damaged \(|not the published archive: 3 published)"):
            published.unpack(tmp_path / "a", tmp_path / "out", LISTED, 10**6)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server in GitHub's place: `answer` says what it sends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(ConnectionError):
                running.answer(self)

        def log_message(self, *_):
            pass

        def send(self, status, body=b"", length=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        url = f"http://127.0.0.1:{running.server_port}/a.tar.gz"
        monkeypatch.setattr(published.Source, "url", url)
        small = dataclasses.replace(published.SOURCES["clothing-10"], max_bytes=10**6)
        monkeypatch.setitem(published.SOURCES, "clothing-10", small)
        monkeypatch.setattr(published, "manifest", lambda folder: LISTED)
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        running.body = tar(tmp_path / "made", GOOD).read_bytes()
        yield running
        running.shutdown()


def test_a_set_is_downloaded_once_and_leaves_nothing_else(server, tmp_path):
    server.answer = lambda handler: handler.send(200, server.body)
    folder = published.fetch("clothing-10", tmp_path / "data")
    server.answer = None
    assert folder == published.fetch("clothing-10", tmp_path / "data") == tmp_path / "data" / "clothing-dataset-small"
    assert below(folder) == PHOTOS
    assert {path.name for path in folder.parent.iterdir() if path.suffix != ".lock"} == {folder.name}


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(2**20))


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (lambda h: h.send(404), ConnectionError, r"cannot be downloaded \(404 .*: Not Found\); check the network"),
        (lambda h: h.send(503), ConnectionError, "503"),
        (lambda h: h.send(200, h.server.body[:99], 9999), ConnectionError, "cannot be downloaded"),
        (lambda h: h.send(200, h.server.body[:99]), published.BadArchive, "is damaged"),
        (lambda h: h.send(200, bytes(2**17), 10**12), published.BadArchive, "has more than 1,000,000 bytes"),
        (endless, published.BadArchive, "has more than 1,000,000 bytes"),
    ],
)
def test_a_download_that_fails_is_one_sentence_and_leaves_nothing(server, tmp_path, answer, error, reason):
    server.answer = answer
    with pytest.raises(error, match=reason):
        published.fetch("clothing-10", tmp_path / "data")
    assert below(tmp_path / "data").keys() <= {".clothing-dataset-small.lock"}


def test_without_a_server_the_download_ends_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(published.Source, "url", "http://127.0.0.1:9/a")
    begin = time.monotonic()
    with pytest.raises(
        ConnectionError,
        match=r"downloaded \([^:]*refused\); check the network, or put github\.com/.* or set CLOTHING_DATA_DIR",
    ):
        published.fetch("clothing-10", tmp_path)
    assert time.monotonic() - begin < 8


def test_the_command_takes_an_archive_from_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLOTHING_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(published, "manifest", lambda folder: LISTED)
    for archive, reason in ((tmp_path / "gone", "there is no archive"), (tar(tmp_path / "a", GOOD[:1]), "missing")):
        with pytest.raises(SystemExit) as ended:
            command.main(["clothing-10", str(archive)])
        assert ended.value.code == 1 and reason in capsys.readouterr().err
    assert command.main(["clothing-10", str(zipped(tmp_path / "b", GOOD))]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "data" / "clothing-dataset-small")


@pytest.mark.parametrize("module", ["utils.datasets", "utils.datasets.published"])
def test_help_loads_nothing_heavy_and_writes_nothing(module):
    before = [(path, path.stat().st_mtime_ns) for path in sorted(published.MANIFESTS.iterdir())]
    program = (
        f"import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit: print(sorted({'pandas', 'tensorflow', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m utils.datasets") and done.stdout.endswith("[]\n")
    assert before == [(path, path.stat().st_mtime_ns) for path in sorted(published.MANIFESTS.iterdir())]


# manifests


def test_the_manifests_list_what_was_published():
    small, full = published.manifest("clothing-dataset-small"), published.manifest("clothing-dataset")
    assert (len(small), len(full)) == (3781, 5756 + 1)
    by_id = {pathlib.PurePosixPath(name).stem: sha for name, sha in full.items()}
    turned = [name for name, sha in small.items() if by_id[pathlib.PurePosixPath(name).stem] != sha]
    assert len(turned) == 25  # FINDINGS: turned by 90 degrees for the small set
    people = published.people()
    assert set(people["id"]) == {pathlib.PurePosixPath(name).stem for name in small}
    tests = {pathlib.PurePosixPath(name).stem for name in small if name.startswith("test/")}
    assert len(tests) == 372
    assert set(people.loc[people["id"].isin(tests), "sender"]) == set(datasets.OFFICIAL_TEST_SENDERS)


def test_manifests_are_the_same_bytes_from_the_same_folder_and_carry_no_time(tmp_path):
    for name in ("clothing-dataset/images/a.jpg", "clothing-dataset-small/train/hat/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no index"):
        published.write_manifests(tmp_path, tmp_path / "one")
    assert not (tmp_path / "one").exists()
    table = pd.DataFrame([("a", "7", "Hat", False)], columns=["image", "sender_id", "label", "kids"])
    table.to_csv(tmp_path / "clothing-dataset" / "images.csv", index=False)
    for target in ("one", "two"):
        published.write_manifests(tmp_path, tmp_path / target)
    assert below(tmp_path / "one") == below(tmp_path / "two")
    assert (
        gzip.decompress((tmp_path / "one" / "people.csv.gz").read_bytes()) == b"id,sender,label,kids\na,7,Hat,False\n"
    )
    for path in published.MANIFESTS.glob("*.gz"):
        head = path.read_bytes()[:10]
        assert head[3] == 0 and head[4:8] == bytes(4), path
