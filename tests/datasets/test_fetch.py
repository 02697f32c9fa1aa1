"""Downloads and archives: broken, slow, lying and hostile servers; nothing wrong reaches the data folder."""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest

from utils import files
from utils.datasets import fetch, published
from utils.datasets.unpack import BadArchive, unpack

BODY = np.random.default_rng(0).bytes(300_000)
QUICK = fetch.Patience(
    attempts=3, total=12, pause_s=0.01, connect_s=2.0, read_s=0.3, window_s=0.4, window_bytes=4096, redirects=4
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the scenario that the test puts on the server: a function of (handler, number of the request)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        with server.guard:
            server.requests.append(dict(self.headers))
            number = len(server.requests)
        with contextlib.suppress(ConnectionError):
            server.scenario(self, number)
        self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_):
        pass

    def start(self):
        """Offset that the client asks for."""
        asked = self.headers.get("Range", "")
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0

    def send(self, status, body=b"", announce=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if announce is None else announce))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_range(self, body=BODY, stop=None, **headers):
        """The body from where the client asks, broken off before byte `stop`."""
        start = self.start()
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.send(206 if start else 200, body[start:stop], announce=len(body) - start, **headers)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests, running.guard, running.daemon_threads = [], threading.Lock(), True
        running.url = f"http://127.0.0.1:{running.server_port}/photos.tar.gz"
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def get(server, scenario, target, **options):
    server.scenario = scenario
    options = {"max_bytes": 10**6, "patience": QUICK, "progress": False, **options}
    return fetch.download(server.url, target, **options)


def test_a_whole_file_arrives_once(server, tmp_path):
    target = tmp_path / "new" / "a"
    get(server, lambda h, n: h.send(200, BODY), target)
    get(server, lambda h, n: h.send(500), target)
    assert target.read_bytes() == BODY
    assert len(server.requests) == 1
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    get(server, lambda h, n: h.send_range(stop=n * 100_000, ETag='"one"'), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert [request.get("Range") for request in server.requests] == [None, "bytes=100000-", "bytes=200000-"]
    assert server.requests[1]["If-Range"] == '"one"'


def test_a_later_call_goes_on_too(server, tmp_path):
    with pytest.raises(fetch.DownloadError, match="broke off"):
        get(server, lambda h, n: h.send_range(stop=max(h.start(), 123_456)), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    get(server, lambda h, n: h.send_range(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests[-1]["Range"] == "bytes=123456-"


def test_a_part_of_another_address_is_not_used(server, tmp_path):
    (tmp_path / "a.part").write_bytes(b"wrong")
    (tmp_path / "a.part.json").write_text('{"url": "http://elsewhere/"}')
    get(server, lambda h, n: h.send_range(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_file_that_changed_meanwhile_starts_over(server, tmp_path):
    other = BODY[::-1]

    def scenario(handler, number):
        if number == 1:
            handler.send_range(stop=100_000, ETag='"old"')
        else:  # If-Range no longer holds: the server sends the new file from its beginning
            assert handler.headers["If-Range"] == '"old"'
            handler.send(200, other, ETag='"new"')

    get(server, scenario, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == other


def test_servers_without_ranges_and_without_lengths(server, tmp_path):
    def chunked(handler, number):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(BODY), 50_000):
            block = BODY[start : start + 50_000]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
            if number == 1 and start >= 100_000:
                return  # breaks off without the last chunk
        handler.wfile.write(b"0\r\n\r\n")

    get(server, chunked, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, tmp_path, status):
    get(server, lambda h, n: h.send(status, Retry_After="0") if n < 3 else h.send_range(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_server_that_stays_busy_ends_the_download(server, tmp_path):
    with pytest.raises(fetch.DownloadError, match=r"answers 503, 3 attempts\); check the network"):
        get(server, lambda h, n: h.send(503), tmp_path / "a")
    assert len(server.requests) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(server, tmp_path, status):
    with pytest.raises(fetch.DownloadError, match=f"the server answers {status}"):
        get(server, lambda h, n: h.send(status), tmp_path / "a")
    assert len(server.requests) == 1


def test_416_for_a_part_that_is_whole(server, tmp_path):
    (tmp_path / "a.part").write_bytes(BODY)
    (tmp_path / "a.part.json").write_text(f'{{"url": "{server.url}"}}')
    get(server, lambda h, n: h.send(416, Content_Range=f"bytes */{len(BODY)}"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_416_for_a_part_that_is_wrong_starts_over(server, tmp_path):
    (tmp_path / "a.part").write_bytes(BODY + b"too much")
    (tmp_path / "a.part.json").write_text(f'{{"url": "{server.url}"}}')
    get(server, lambda h, n: h.send(416) if n == 1 else h.send_range(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_another_range_than_asked_for_starts_over(server, tmp_path):
    def scenario(handler, number):
        if number == 2:
            handler.send(206, BODY[5:200_005], Content_Range=f"bytes 5-200004/{len(BODY)}")
        else:
            handler.send_range(stop=100_000 if number == 1 else None)

    get(server, scenario, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_break_shows_without_a_length_too(server, tmp_path):
    """The total of Content-Range tells, where the answer itself has no length."""

    def scenario(handler, number):
        if number != 2:
            return handler.send_range(stop=100_000 if number == 1 else None)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 100000-{len(BODY) - 1}/{len(BODY)}")
        handler.send_header("Connection", "close")
        handler.end_headers()
        return handler.wfile.write(BODY[100_000:150_000])

    get(server, scenario, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests[2]["Range"] == "bytes=150000-"


def test_a_stalled_and_a_dripping_server_end(server, tmp_path):
    def stall(handler, number):
        handler.send(200, BODY[:10], announce=len(BODY))
        time.sleep(1)

    def drip(handler, number):
        handler.send(200, announce=len(BODY))
        for _ in range(30):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    for scenario, reason in ((stall, "no answer in time"), (drip, "less than 4,096 bytes")):
        (tmp_path / "a.part").unlink(missing_ok=True)
        begin = time.monotonic()
        with pytest.raises(fetch.DownloadError, match=reason):
            get(server, scenario, tmp_path / "a", patience=fetch.Patience(**{**vars(QUICK), "total": 2}))
        assert time.monotonic() - begin < 10
        assert not (tmp_path / "a").exists()


def test_redirects_lead_on_but_not_in_a_circle(server, tmp_path):
    get(server, lambda h, n: h.send(302, Location="/x") if n < 3 else h.send_range(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    with pytest.raises(fetch.DownloadError, match="redirects more than 4 times"):
        get(server, lambda h, n: h.send(302, Location=f"/{n}"), tmp_path / "b")
    with pytest.raises(fetch.DownloadError, match="no web address"):
        get(server, lambda h, n: h.send(302, Location="file:///etc/passwd"), tmp_path / "c")


def test_too_much_is_refused_announced_or_not(server, tmp_path):
    with pytest.raises(fetch.DownloadError, match="300,000 bytes, more than 1,000"):
        get(server, lambda h, n: h.send(200, BODY), tmp_path / "a", max_bytes=1000)

    def endless(handler, number):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while True:
            handler.wfile.write(b"\0" * 65536)

    with pytest.raises(fetch.DownloadError, match="sends more than 1,000,000 bytes"):
        get(server, endless, tmp_path / "a")
    assert not list(tmp_path.glob("a")) and not list(tmp_path.glob("a.part"))


def test_wrong_bytes_never_become_the_file(server, tmp_path):
    good = hashlib.sha256(BODY).hexdigest()
    with pytest.raises(fetch.DownloadError, match=f"not {good}, and is thrown away"):
        get(server, lambda h, n: h.send(200, BODY[::-1]), tmp_path / "a", sha256=good)
    assert not (tmp_path / "a").exists() and not (tmp_path / "a.part").exists()
    get(server, lambda h, n: h.send(200, BODY), tmp_path / "a", sha256=good)


def test_no_server_at_all_is_told_quickly(tmp_path):
    begin = time.monotonic()
    with pytest.raises(fetch.DownloadError, match="check the network"):
        fetch.download("http://127.0.0.1:9/a", tmp_path / "a", 10**6, patience=QUICK, progress=False)
    assert fetch.unreachable("http://127.0.0.1:9/a", 2)
    assert time.monotonic() - begin < 8


def test_unreachable_says_nothing_of_a_server_that_answers(server):
    server.scenario = lambda h, n: h.send(404)
    assert fetch.unreachable(server.url, 3) == ""


def test_a_server_that_never_answers_is_given_up(server):
    server.scenario = lambda h, n: time.sleep(1.5)
    begin = time.monotonic()
    assert "no answer" in fetch.unreachable(server.url, 0.3)
    assert time.monotonic() - begin < 1.2


def test_an_unwritable_target_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/a: .*choose another folder"):
        get(server, lambda h, n: h.send(200, BODY), tmp_path / "file" / "a")


# archives


PHOTOS = {"train/hat/a.jpg": b"first", "train/hat/b.jpg": b"second", "images.csv": b"id\n"}
MANIFEST = {name: hashlib.sha256(data).hexdigest() for name, data in PHOTOS.items()}


def tar(path, entries, mode="w:gz"):
    with tarfile.open(path, mode) as made:
        for name, data in entries:
            if isinstance(data, tarfile.TarInfo):
                made.addfile(data)
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return path


def good(top="set-1234/"):
    return [(top + name, data) for name, data in PHOTOS.items()]


def unpacked(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_good_archives_of_each_kind(tmp_path):
    extra = [("set-1234/README.md", b"not listed"), ("set-1234/.github/x", b"")]
    kinds = [tar(tmp_path / "a", good() + extra), tar(tmp_path / "b", good() + extra, "w")]
    with zipfile.ZipFile(tmp_path / "c", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.mkdir("set-1234")
        for name, data in good() + extra:
            zipped.writestr(name, data)
    for number, archive in enumerate([*kinds, tmp_path / "c"]):
        unpack(archive, tmp_path / str(number), MANIFEST, 10**6)
        assert unpacked(tmp_path / str(number)) == PHOTOS


def link(name, target, kind=tarfile.SYMTYPE):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return (name, entry)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("set/../../evil", b"x"), *good()], "outside its folder"),
        ([("../evil", b"x"), *good()], "outside its folder"),
        ([("/etc/evil", b"x"), *good()], "outside its folder"),
        ([("C:/evil", b"x"), *good()], "outside its folder"),
        ([("set\\..\\evil", b"x"), *good()], "outside its folder"),
        ([("set//evil", b"x"), *good()], "outside its folder"),
        ([*good(), ("set/" + "n" * 600, b"x")], "outside its folder"),
        ([link("set/train", "/etc"), *good()], "link or device"),
        ([link("set-1234/images.csv", "/etc/passwd"), *good()], "link or device"),
        ([link("set/hard", "set/x", tarfile.LNKTYPE), *good()], "link or device"),
        ([link("set/null", "", tarfile.CHRTYPE), *good()], "link or device"),
        ([*good(), *good()], "twice"),
        (good()[:2], "lacks 1 published files .first images.csv"),
        ([*good()[:2], ("set-1234/images.csv", b"tampered")], "images.csv in a differs from the published file"),
        ([*good(), *((f"set/{i}", b"") for i in range(2000))], "more than 1,006 names"),
        ([*good(), ("set/zeros", b"\0" * 3_000_000)], "unpacks to more than 1,000,000 bytes"),
    ],
)
def test_hostile_tars_are_refused(tmp_path, entries, reason):
    archive = tar(tmp_path / "a", entries)
    with pytest.raises(BadArchive, match=reason):
        unpack(archive, tmp_path / "out" / "deep", MANIFEST, 10**6)
    written = set(unpacked(tmp_path)) - {"a"}
    assert all(name.startswith("out/deep/") and not pathlib.Path(tmp_path / name).is_symlink() for name in written)


def test_hostile_zips_are_refused(tmp_path):
    def archive(*entries):
        with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, data in entries:
                zipped.writestr(name, data)
        return tmp_path / "a"

    symlink = zipfile.ZipInfo("set/link")
    symlink.external_attr = 0o120777 << 16
    big = {"big": hashlib.sha256(b"").hexdigest()}
    cases = [
        (archive, [("../evil", b""), *good()], MANIFEST, "outside its folder"),
        (archive, [(symlink, b"/etc"), *good()], MANIFEST, "link or device"),
        (archive, [*good(), *((f"set/{i}", b"") for i in range(2000))], MANIFEST, "more than 1,006 names"),
        (archive, [("set/big", b"\0" * 20_000_000)], big, "larger than any published file"),
    ]
    for make, entries, manifest, reason in cases:
        with pytest.raises(BadArchive, match=reason):
            unpack(make(*entries), tmp_path / "out", manifest, 10**6)


def test_a_bomb_of_zeros_is_refused_within_its_bounds(tmp_path):
    bomb = tmp_path / "bomb"
    bomb.write_bytes(gzip.compress(b"\0" * 10**7) * 100)  # 1 GB of zeros in 1 MB
    begin = time.monotonic()
    with pytest.raises(BadArchive):
        unpack(bomb, tmp_path / "out", MANIFEST, 10**6)
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1, 0.5, 0.9])
def test_truncated_and_flipped_archives_are_named(tmp_path, share):
    whole = tar(tmp_path / "whole", good()).read_bytes()
    (tmp_path / "a").write_bytes(whole[: int(share * len(whole)) + 1])
    with pytest.raises(BadArchive, match=r"^a |in a differs"):
        unpack(tmp_path / "a", tmp_path / "out", MANIFEST, 10**6)
    flipped = bytearray(whole)
    flipped[20 + int(share * (len(whole) - 30))] ^= 255  # beyond the gzip header, whose time and name mean nothing
    (tmp_path / "b").write_bytes(flipped)
    with pytest.raises(BadArchive):
        unpack(tmp_path / "b", tmp_path / "out2", MANIFEST, 10**6)


@pytest.mark.parametrize("data", [b"", b"PK", b"\x1f\x8b", b"<html>busy</html>" * 100])
def test_what_is_no_archive_is_named(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(BadArchive, match=r"^a "):
        unpack(tmp_path / "a", tmp_path / "out", MANIFEST, 10**6)


# both together


@pytest.fixture
def home(server, tmp_path, monkeypatch):
    """A published set at the local server, with two addresses for it."""
    packed = tar(tmp_path / "packed", good()).read_bytes()

    class Local(published.Source):
        urls = (server.url + "?commit", server.url + "?branch")

    source = Local("little", "nobody/little", ("a", "b"), 10**6, 10**6)
    monkeypatch.setitem(fetch.SOURCES, "clothing-10", source)
    monkeypatch.setattr(fetch, "manifest", lambda folder: {"little": MANIFEST}[folder])
    monkeypatch.setattr(fetch.Patience, "__init__", lambda self, **_: vars(self).update(vars(QUICK)))
    server.packed, server.root = packed, tmp_path / "data"
    server.scenario = lambda h, n: h.send_range(packed)
    return server


def test_fetch_once_and_whole(home):
    folder = fetch.fetch("clothing-10", home.root)
    assert fetch.fetch("clothing-10", home.root) == folder == home.root / "little"
    assert unpacked(folder) == PHOTOS
    assert len(home.requests) == 1
    assert [path.name for path in home.root.iterdir() if not path.name.endswith(".lock")] == ["little"]


def test_fetch_tries_the_branch_where_the_commit_is_gone_or_differs(home, tmp_path):
    tampered = tar(tmp_path / "t", [*good()[:2], ("set-1234/images.csv", b"tampered")]).read_bytes()
    for answer in (lambda h: h.send(404), lambda h: h.send(200, tampered)):
        home.scenario = lambda h, n, answer=answer: answer(h) if "commit" in h.path else h.send_range(home.packed)
        folder = fetch.fetch("clothing-10", home.root / str(answer))
        assert unpacked(folder) == PHOTOS


def test_a_wrong_byte_never_reaches_the_data_folder(home, tmp_path):
    tampered = tar(tmp_path / "t", [*good()[:2], ("set-1234/images.csv", b"tampered")]).read_bytes()
    home.scenario = lambda h, n: h.send(200, tampered)
    with pytest.raises(fetch.DownloadError, match=r"images\.csv in .* differs from the published file"):
        fetch.fetch("clothing-10", home.root)
    assert [path.name for path in home.root.iterdir() if not path.name.endswith(".lock")] == []


def test_fetch_from_a_local_archive_needs_no_network(home, tmp_path):
    assert unpacked(fetch.fetch("clothing-10", home.root, archive=tmp_path / "packed")) == PHOTOS
    assert home.requests == []


def test_impatient_fetch_says_what_to_do(home):
    fetch.SOURCES["clothing-10"].__class__.urls = ("http://127.0.0.1:9/a",)
    with pytest.raises(fetch.DownloadError, match="set CLOTHING_DATA_DIR to the folder that holds it"):
        fetch.fetch("clothing-10", home.root, patient=False)


def test_an_unknown_name_is_named():
    with pytest.raises(ValueError, match="'clothing-11' is not published anywhere; clothing-10 and clothing-17 are"):
        fetch.fetch("clothing-11")


def test_the_addresses_pin_a_commit():
    for source in published.SOURCES.values():
        assert len(source.references[0]) == 40
        assert source.urls[0] == f"https://github.com/{source.repository}/archive/{source.references[0]}.tar.gz"
        assert (published.MANIFESTS / f"{source.folder}.sha256.gz").is_file()


KILLED = """
import sys
from utils import files
def make(part):
    for i in range(100000):
        (part / str(i)).write_text("x")
        print("started", flush=True) if i == 5 else None
files.build_once(sys.argv[1], make)
"""


def test_a_killed_build_leaves_no_folder_and_the_next_cleans_up(tmp_path):
    target = tmp_path / "folder"
    with subprocess.Popen([sys.executable, "-c", KILLED, target], cwd=files.PROJECT, stdout=subprocess.PIPE) as run:
        run.stdout.readline()
        os.kill(run.pid, signal.SIGKILL)
    assert not target.exists()
    assert len(list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))) >= 1
    files.build_once(target, lambda part: (part / "a").write_text("whole"))
    assert unpacked(target) == {"a": b"whole"}
    assert not list(tmp_path.glob(".*.part"))


def test_two_builders_do_the_work_once(tmp_path):
    made = []

    def make(part):
        made.append(part)
        time.sleep(0.1)
        (part / "a").write_text("whole")

    builders = [threading.Thread(target=files.build_once, args=(tmp_path / "folder", make)) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(made) == 1


def test_an_error_while_building_leaves_nothing(tmp_path):
    def make(part):
        (part / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.build_once(tmp_path / "folder", make)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
