"""Downloads that go on after a break, end after bounded trouble, and let no wrong byte in.

The photos come as archives that GitHub packs on demand. It may pack the same files into other bytes tomorrow, so an
archive's own SHA-256 proves nothing: the commit is pinned, the archive's size is bounded, and every file in it is
checked against a committed manifest of SHA-256 (`utils/datasets/manifests`, made by `python -m
utils.datasets.published DIR` from folders
as published). A wrong byte is named, and never reaches the data folder.

    python -m utils.datasets.fetch clothing-10            # fetch it now
    python -m utils.datasets.fetch clothing-10 FILE       # use an archive that was downloaded by other means
"""

import contextlib
import dataclasses
import email.utils
import hashlib
import logging
import pathlib
import re
import threading
import time

import requests
import urllib3

from utils import files
from utils.datasets.published import SOURCES, manifest
from utils.datasets.unpack import BadArchive, unpack

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Patience:
    """How much trouble a download takes before it ends.

    Attributes:
        attempts: in a row without a byte of progress.
        total: attempts in all.
        pause_s: before the second attempt; doubled after each attempt without progress, up to 30 s.
        connect_s, read_s: longest wait for a connection, and for the next bytes.
        window_s, window_bytes: less than so much in so long is a stall.
        redirects: at most.
    """

    attempts: int = 4
    total: int = 30
    pause_s: float = 1.0
    connect_s: float = 10.0
    read_s: float = 20.0
    window_s: float = 30.0
    window_bytes: int = 16 * 1024
    redirects: int = 5


class DownloadError(ConnectionError):
    """A download that ended without the file; what has arrived is kept for the next attempt where it can be used.

    Attributes:
        reason: why, in a few words.
        final: True where another attempt would end the same way.
    """

    def __init__(self, message, reason="", final=False):
        super().__init__(message)
        self.reason, self.final = reason or message, final


class _Again(Exception):
    """Trouble that another attempt may mend."""

    def __init__(self, reason, wait_s=0.0):
        super().__init__(reason)
        self.wait_s = wait_s


def fetch(name, root=None, patient=True, archive=None):
    """Fetch a published dataset into `root`, whole or not at all; does nothing if it is there.

    Args:
        name: "clothing-10" or "clothing-17".
        root: folder to put its folder in; default `files.data_root()`.
        patient: False gives up within a few seconds where there is no network.
        archive: a local archive to use instead of the network.

    Returns:
        pathlib.Path of the dataset's folder.

    Raises:
        DownloadError: no network, or the server does not give the file; says what to do.
        utils.datasets.unpack.BadArchive: what arrived is not what was published.
        OSError: the folder cannot be written, or the disk is full.
    """
    if name not in SOURCES:
        raise ValueError(f"{name!r} is not published anywhere; {' and '.join(SOURCES)} are")
    source, root = SOURCES[name], files.data_root(root)
    listed = manifest(source.folder)

    def make(part):
        if archive is not None:
            unpack(archive, part, listed, source.max_bytes)
            return
        if not patient and (reason := unreachable(source.urls[0])):
            raise DownloadError(f"{name} cannot be downloaded ({reason}); {_by_hand(name, root)}")
        reasons = []
        for number, url in enumerate(source.urls):
            packed = root / f".{source.folder}.{number}.tar.gz"
            try:
                download(url, packed, source.max_archive_bytes)
                unpack(packed, part, listed, source.max_bytes)
                packed.unlink()
                return
            except BadArchive as error:
                packed.unlink(missing_ok=True)
                reasons.append(str(error))
            except DownloadError as error:
                reasons.append(error.reason)
                if not error.final:  # the server is out of reach, and the next address is on the same server
                    break
        raise DownloadError(f"{name} cannot be downloaded ({'; then '.join(reasons)}); {_by_hand(name, root)}")

    return files.build_once(root / source.folder, make)


def _by_hand(name, root):
    source = SOURCES[name]
    return (
        f"put github.com/{source.repository} as {source.folder}/ into {root}, "
        "or set CLOTHING_DATA_DIR to the folder that holds it"
    )


def download(url, target, max_bytes, sha256=None, patience=None, progress=True):
    """Download a file; go on where an earlier attempt broke off.

    What has arrived lies in `<target>.part`, with the address and the server's validator (ETag) in
    `<target>.part.json`; it is used again only for the same address and, where the server gives one, the same
    validator. The target appears whole or not at all.

    Args:
        url: http or https; a redirect from https to http is refused.
        target: path of the file; nothing is done if it exists and `sha256` is None or matches.
        max_bytes: a larger file is refused, whether the server announces its size or not.
        sha256: expected digest in hexadecimal, or None.
        patience: Patience; default Patience().
        progress: show a bar.

    Returns:
        pathlib.Path of the target.

    Raises:
        DownloadError: names the address and the reason.
        OSError: the target cannot be written, or the disk is full; names it. What has arrived is kept.
    """
    target, patience = pathlib.Path(target), patience or Patience()
    if target.is_file() and (sha256 is None or _digest(target) == sha256):
        return target
    part, notes = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if _recall(notes).get("url") != url:
            part.unlink(missing_ok=True)
        files.write_json(notes, {"url": url, "validator": _recall(notes).get("validator")})
        _persist(url, part, notes, max_bytes, patience, progress)
        if sha256 is not None and (found := _digest(part)) != sha256:
            part.unlink()
            raise _final(url, f"it has the SHA-256 {found}, not {sha256}, and is thrown away")
        part.replace(target)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise files._named(error, target) from error
    finally:
        if not part.exists():
            with contextlib.suppress(OSError):
                notes.unlink(missing_ok=True)
    return target


def unreachable(url, seconds=4.0):
    """Why a server cannot be reached within so many seconds, or "" if it can (whatever it answers)."""
    answer = ["no answer within the first seconds"]

    def ask():
        try:
            requests.head(url, timeout=seconds, allow_redirects=False)
            answer[0] = ""
        except requests.RequestException as error:
            answer[0] = _reason(error)

    # a thread, because looking a name up knows no time limit
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answer[0]


def _persist(url, part, notes, max_bytes, patience, progress):
    """Attempts until the file is whole, or patience ends."""
    from tqdm.auto import tqdm

    barren, pause = 0, patience.pause_s
    with (
        requests.Session() as session,
        tqdm(desc=target_name(url), unit="B", unit_scale=True, disable=not progress, leave=False) as bar,
    ):
        session.max_redirects = patience.redirects
        for attempt in range(patience.total):
            before = _size(part)
            try:
                _attempt(session, url, part, notes, max_bytes, patience, bar)
                return
            except _Again as trouble:
                reason, wait = str(trouble), trouble.wait_s
            except requests.TooManyRedirects:
                raise _final(url, f"it redirects more than {patience.redirects} times") from None
            except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
                raise _final(url, f"it leads to no web address ({error})") from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason, wait = _reason(error), 0.0
            if _size(part) > before:
                barren, pause = 0, patience.pause_s
            else:
                barren += 1
                pause = min(2 * pause, 30.0)
            if barren >= patience.attempts:
                break
            _log.info("%s: %s; attempt %d follows", url, reason, attempt + 2)
            time.sleep(max(pause, min(wait, 30.0)))
    reason = f"{reason}, {attempt + 1} attempts"
    raise DownloadError(f"{url} cannot be downloaded ({reason}); check the network and try again", reason)


def _attempt(session, url, part, notes, max_bytes, patience, bar):
    start = _size(part)
    validator = _recall(notes).get("validator")
    headers = {"Accept-Encoding": "identity"}  # else the archive would be unpacked on its way
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    timeout = (patience.connect_s, patience.read_s)
    with session.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        if url.startswith("https:") and not answer.url.startswith("https:"):
            raise _final(url, f"it redirects to {answer.url}, which is not encrypted")
        start, total = _judge(url, answer, start, part)
        if total is None and start is None:
            return  # the part was whole already
        if total is not None and total > max_bytes:
            raise _final(url, f"it has {total:,} bytes, more than {max_bytes:,}")
        if start == 0:
            # Before the notes: a kill in between must not marry old bytes to a new validator.
            part.unlink(missing_ok=True)
        mark = answer.headers.get("ETag", "")
        if mark.startswith("W/"):
            mark = ""  # a weak validator does not promise the same bytes
        files.write_json(notes, {"url": url, "validator": mark or answer.headers.get("Last-Modified")})
        bar.total, bar.n = total, start
        _receive(url, answer, part, start, total, max_bytes, patience, bar)


def _judge(url, answer, start, part):
    """(offset to write at, total size or None) from the server's status; (None, None) if nothing is left to fetch."""
    status, length = answer.status_code, answer.headers.get("Content-Length", "")
    length = int(length) if length.isdigit() else None
    if status == 200:  # the whole file: a server that knows no ranges, or the file has changed
        return 0, length
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if match and int(match[1]) == start:
            return start, int(match[3]) if match[3] != "*" else (start + length if length is not None else None)
        part.unlink(missing_ok=True)
        raise _Again("the server sent another range than was asked for")
    if status == 416:
        match = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
        if match and int(match[1]) == start and start:
            return None, None
        part.unlink(missing_ok=True)
        raise _Again("the server has no such range")
    if status == 429 or status >= 500:
        raise _Again(f"the server answers {status}", _retry_after(answer.headers.get("Retry-After", "")))
    raise _final(url, f"the server answers {status} {answer.reason or ''}".strip())


def _receive(url, answer, part, start, total, max_bytes, patience, bar):
    size = start
    window_end, window_start_size = time.monotonic() + patience.window_s, size
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        # read1 returns what is there: a server that drips bytes cannot hold the clock up
        while block := answer.raw.read1(2**16, decode_content=False):
            size += len(block)
            if size > max_bytes:
                file.close()
                part.unlink()
                raise _final(url, f"it sends more than {max_bytes:,} bytes")
            file.write(block)
            bar.update(len(block))
            if (now := time.monotonic()) > window_end:
                if size - window_start_size < patience.window_bytes:
                    raise _Again(f"it sends less than {patience.window_bytes:,} bytes in {patience.window_s:.0f} s")
                window_end, window_start_size = now + patience.window_s, size
    if total is not None and size < total:
        raise _Again(f"the connection broke off after {size:,} of {total:,} bytes")
    if total is not None and size > total:
        part.unlink()
        raise _Again(f"the server sent {size:,} bytes and had announced {total:,}")


def target_name(url):
    """A short name for a progress bar: the repository and file of a GitHub address, else the file."""
    parts = url.split("/")
    return parts[4] if "github.com" in parts[2:3] and len(parts) > 4 else parts[-1][:40]


def _final(url, reason):
    return DownloadError(f"{url} cannot be downloaded: {reason}", reason, final=True)


def _reason(error):
    """The innermost reason of a network error, in a few words."""
    while getattr(error, "args", None) and isinstance(error.args[-1], Exception):
        error = error.args[-1]
    reason = getattr(error, "reason", None)
    if isinstance(reason, Exception):
        return _reason(reason)
    if "NameResolution" in type(error).__name__:
        return "the server's name is not found: there seems to be no network"
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # which urllib3 counts among the timeouts
    if not refused and isinstance(error, (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)):
        return "no answer in time"
    if type(error).__name__ == "IncompleteRead" or isinstance(error, ConnectionResetError):
        return "the connection broke off"
    text = str(error)
    return (text.rsplit(": ", 1)[-1] if len(text) > 120 else text)[:200] or type(error).__name__


def _retry_after(text):
    if text.isdigit():
        return float(min(int(text), 3600)) if len(text) < 10 else 3600.0
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _recall(notes):
    try:
        value = files.read_json(notes)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    import sys

    if len(sys.argv) not in (2, 3) or sys.argv[1] not in SOURCES:
        sys.exit(f"usage: python -m utils.datasets.fetch {'|'.join(SOURCES)} [ARCHIVE]")
    try:
        print(fetch(sys.argv[1], archive=sys.argv[2] if len(sys.argv) == 3 else None))
    except (OSError, ValueError) as error:
        sys.exit(f"{error}")
