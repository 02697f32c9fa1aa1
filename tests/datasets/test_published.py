"""Downloads, archives and manifests: whole or not at all, and no wrong byte reaches the data folder."""

import dataclasses
import hashlib
import io
import pathlib
import tarfile
import time
import zipfile

import pytest
from local_server import serving

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
    """A server in GitHub's place; its `body` is the archive."""
    with serving() as running:
        monkeypatch.setattr(published.Source, "url", f"{running.url}/a.tar.gz")
        small = dataclasses.replace(published.SOURCES["clothing-10"], max_bytes=10**6)
        monkeypatch.setitem(published.SOURCES, "clothing-10", small)
        monkeypatch.setattr(published, "manifest", lambda folder: LISTED)
        running.body = tar(tmp_path / "made", GOOD).read_bytes()
        yield running


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

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(published, "unpack", stop)
        command.main(["clothing-10", str(archive)])
    assert "Stopped" in capsys.readouterr().err and not list((tmp_path / "data").glob("*.part"))
    assert command.main(["clothing-10", str(zipped(tmp_path / "b", GOOD))]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "data" / "clothing-dataset-small")


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
