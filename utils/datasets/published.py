"""What was published: where, under which commit, the SHA-256 of every file, and the way onto this disk.

GitHub packs an archive on demand and may pack the same files into other bytes tomorrow, so the archive has no checksum
of its own: the commit is pinned, and every file must match the committed manifest before it reaches the data folder.
"""

import dataclasses
import functools
import gzip
import hashlib
import pathlib
import stat
import tarfile
import zipfile
import zlib

from utils import files

MANIFESTS = pathlib.Path(__file__).resolve().parent / "manifests"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError)


class BadArchive(ValueError):
    """An archive that is damaged, hostile, or not the published one."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a dataset is published: its folder's name, which is its repository's, and a commit."""

    folder: str
    commit: str
    max_bytes: int  # of the archive, and of what is in it

    @property
    def repository(self):
        return f"github.com/alexeygrigorev/{self.folder}"

    @property
    def url(self):
        return f"https://{self.repository}/archive/{self.commit}.tar.gz"


SOURCES = {  # the photos have 106 and 161 MB
    "clothing-10": Source("clothing-dataset-small", "11961516512414bf9f6c150a832cfd21b54a6b54", 250 * 2**20),
    "clothing-17": Source("clothing-dataset", "9556dff476f7b543d423b0f961e10a285a37b28a", 400 * 2**20),
}


def fetch(name, root=None, archive=None):
    """Download a published dataset into `root`, whole or not at all; does nothing if it is there.

    Args:
        name: "clothing-10" or "clothing-17".
        root: folder to put its folder in; default `files.data_root()`.
        archive: path of an archive that was downloaded by other means, in place of the network.

    Raises:
        ConnectionError: the archive cannot be downloaded; says what to do.
        BadArchive: what arrived is not what was published.
    """
    source, root = SOURCES[name], files.data_root(root)
    if archive is not None and not pathlib.Path(archive).is_file():
        raise FileNotFoundError(f"there is no archive {archive}; check the path")

    def make(part):
        packed = pathlib.Path(archive) if archive else _download(source, part / f"{source.folder}.tar.gz", root)
        unpack(packed, part, manifest(source.folder), source.max_bytes)
        if not archive:
            packed.unlink()

    return files.build_once(root / source.folder, make)


def _download(source, target, root):
    import pooch
    import requests
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __bool__(self):  # pooch asks before it knows the total
            return True

        def update(self, n=1):
            if max(self.n, self.total or 0) > source.max_bytes:
                raise BadArchive(f"{source.url} has more than {source.max_bytes:,} bytes; it is not what was published")
            return super().update(n)

    pooch.get_logger().setLevel("WARNING")
    with Bar(desc=source.folder, unit="B", unit_scale=True, leave=False) as bar:
        get = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=(5, 30))
        try:
            return pathlib.Path(pooch.retrieve(source.url, None, target.name, target.parent, downloader=get))
        except requests.RequestException as error:
            cause = error.args[0] if error.args else error
            reason = str(cause.reason).rsplit(": ")[-1] if hasattr(cause, "reason") else str(cause).split(" for url")[0]
            raise ConnectionError(
                f"{source.url} cannot be downloaded ({reason}); check the network, or put "
                f"{source.repository} as {source.folder}/ into {root}, or set CLOTHING_DATA_DIR"
            ) from error


def unpack(archive, folder, listed, max_bytes):
    """Unpack the files that a manifest lists (path below GitHub's outermost folder -> SHA-256), and nothing else."""
    archive, left, size = pathlib.Path(archive), set(listed), 0
    refused = f"{archive.name} is not the published archive"
    try:
        for name, plain, length, read in _members(archive):
            if not plain:
                raise BadArchive(f"{refused}: {name[:120]!r} is a link, a device, or leads outside the folder")
            if (size := size + length) > max_bytes:
                raise BadArchive(f"{refused}: it unpacks to more than {max_bytes:,} bytes")
            if (inside := name.partition("/")[2]) in left:
                data = read()
                if hashlib.sha256(data).hexdigest() != listed[inside]:
                    raise BadArchive(f"{refused}: {inside} differs from the published file (SHA-256)")
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                (folder / inside).write_bytes(data)
                left.remove(inside)
    except _DAMAGE as error:
        raise BadArchive(f"{archive.name} is damaged ({error}); delete it and download it again") from error
    if left:
        raise BadArchive(f"{refused}: {len(left)} published files are missing (first {min(left)})")


def _members(archive):
    """(name, whether it is harmless, size, function that reads it) of each file in an archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                mode = stat.S_IFMT(info.external_attr >> 16)
                plain = _stays_inside(info.filename) and mode in (0, stat.S_IFREG, stat.S_IFDIR)
                yield info.filename, plain, info.file_size, functools.partial(packed.read, info)
        return
    with tarfile.open(archive) as packed:
        for info in packed:
            plain = _stays_inside(info.name) and (info.isreg() or info.isdir())
            if hasattr(tarfile, "data_filter"):  # Python 3.11.0 to 3.11.3 have none, Debian 12's among them
                try:
                    tarfile.data_filter(info, archive.parent.resolve())
                except tarfile.FilterError:
                    plain = False
            yield info.name, plain, info.size, lambda info=info: packed.extractfile(info).read()


def _stays_inside(name):
    return not name.startswith("/") and ".." not in name.split("/")


def people():
    """What the full set says of the small set's photos, from a committed table: DataFrame id, sender, label, kids."""
    import pandas as pd

    frame = pd.read_csv(MANIFESTS / "people.csv.gz", dtype=str, keep_default_na=False)
    return frame.assign(kids=frame["kids"].map({"True": True, "False": False}).astype("boolean"))


@functools.cache
def manifest(folder):
    """SHA-256 of every published file: dict of path below `folder` ("train/hat/….jpg") -> hexadecimal digest."""
    with gzip.open(MANIFESTS / f"{folder}.sha256.gz", "rt", encoding="utf-8") as file:
        return {name: digest for digest, name in (line.rstrip("\n").split("  ", 1) for line in file)}


def photos_below(folder):
    """Paths of the photos in a folder and its folders, sorted; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
