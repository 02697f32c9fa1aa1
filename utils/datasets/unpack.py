"""Archives from strangers: nothing outside the folder, no links, no bombs, every byte checked."""

import gzip
import hashlib
import pathlib
import re
import stat
import tarfile
import zipfile
import zlib

MAX_FILE_BYTES = 16 * 2**20  # the largest published file has 0.3 MB
_DRIVE = re.compile(r"^[A-Za-z]:")
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    gzip.BadGzipFile,
    NotImplementedError,
    RuntimeError,
)


class BadArchive(ValueError):
    """An archive that is damaged, hostile, or not the published one."""


def unpack(archive, folder, manifest, max_bytes):
    """Unpack the files that a manifest lists, and nothing else, each checked against its SHA-256.

    The archive's outermost folder is dropped (GitHub names it after the commit). A name outside the folder, a link, a
    device, a file twice, too many names or too many bytes refuse the whole archive; files that the manifest does not
    list are passed over. Nothing is unpacked beyond `max_bytes`, whatever the archive's headers say.

    Args:
        archive: path of a .tar.gz, .tar or .zip file; told apart by content.
        folder: an empty folder to fill; on an error it holds part of the files, so use one that can be thrown away.
        manifest: dict of path below the outermost folder -> SHA-256 in hexadecimal.
        max_bytes: of all unpacked files together.

    Raises:
        BadArchive: names the archive, the member and what is wrong with it.
        OSError: the folder cannot be written.

    Example:
        >>> import io, tempfile
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> with tarfile.open(root / "a.tar.gz", "w:gz") as made:
        ...     entry = tarfile.TarInfo("top/x.txt"); entry.size = 2
        ...     made.addfile(entry, io.BytesIO(b"hi"))
        >>> unpack(root / "a.tar.gz", root / "out", {"x.txt": hashlib.sha256(b"hi").hexdigest()}, 10**5)
        >>> (root / "out" / "x.txt").read_text()
        'hi'
    """
    archive, folder = pathlib.Path(archive), pathlib.Path(folder)
    max_names = 2 * len(manifest) + 1000
    done = set()
    try:
        with archive.open("rb") as file:
            head = file.read(4)
        members = _zip_members if head[:2] == b"PK" else _tar_members
        for number, (name, kind, read) in enumerate(members(archive, head, max_bytes)):
            if number >= max_names:
                raise BadArchive(f"{archive.name} has more than {max_names:,} names; it is not the published archive")
            relative = _inside(archive, name)
            if kind == "folder":
                continue
            if kind != "file":
                raise BadArchive(f"{archive.name} holds a {kind} ({name[:120]!r}); it is not the published archive")
            if relative not in manifest:
                continue
            if relative in done:
                raise BadArchive(f"{archive.name} holds {relative} twice; it is not the published archive")
            data = read(MAX_FILE_BYTES)
            if hashlib.sha256(data).hexdigest() != manifest[relative]:
                raise BadArchive(f"{relative} in {archive.name} differs from the published file (SHA-256); try again")
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            done.add(relative)
    except BadArchive:
        raise
    except _DAMAGE as error:
        raise BadArchive(f"{archive.name} is damaged ({error}); delete it and download it again") from error
    if missing := manifest.keys() - done:
        raise BadArchive(f"{archive.name} lacks {len(missing)} published files (first {min(missing)}); try again")


def _inside(archive, name):
    """The member's path without the outermost folder ("" for that folder); refuses what could leave it."""
    parts = name.split("/")
    if (
        name.startswith("/")
        or ".." in parts
        or "\\" in name
        or "\0" in name
        or _DRIVE.match(name)
        or len(name) > 500
        or any(part in ("", ".") for part in parts[:-1])
    ):
        raise BadArchive(
            f"{archive.name} holds a name outside its folder ({name[:120]!r}); it is not the published archive"
        )
    return "/".join(parts[1:])


class _Bounded:
    """A stream that ends with an error after so many bytes: the end of a bomb."""

    def __init__(self, stream, limit, archive):
        self.stream, self.left, self.limit, self.archive = stream, limit, limit, archive

    def read(self, size):
        data = self.stream.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise BadArchive(
                f"{self.archive.name} unpacks to more than {self.limit:,} bytes; it is not the published archive"
            )
        return data


def _tar_members(archive, head, max_bytes):
    # the headers and paddings of a tar take at most 2 KiB a file here, and the limit counts them too
    with archive.open("rb") as file:
        plain = gzip.GzipFile(fileobj=file) if head[:2] == b"\x1f\x8b" else file
        with tarfile.open(fileobj=_Bounded(plain, max_bytes, archive), mode="r|") as tar:
            for member in tar:
                kind = "folder" if member.isdir() else "file" if member.isreg() else "link or device"
                yield member.name, kind, lambda limit, m=member: _read(archive, m.name, tar.extractfile(m), limit)


def _zip_members(archive, head, max_bytes):
    left = max_bytes
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)
            kind = "folder" if info.is_dir() else "file" if mode in (0, stat.S_IFREG) else "link or device"
            if info.flag_bits & 1:
                raise BadArchive(f"{archive.name} holds an encrypted file ({info.filename[:120]!r})")

            def read(limit, info=info):
                nonlocal left
                with zipped.open(info) as stream:
                    data = _read(archive, info.filename, stream, min(limit, left))
                left -= len(data)
                return data

            yield info.filename, kind, read


def _read(archive, name, stream, limit):
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise BadArchive(f"{name[:120]} in {archive.name} is larger than any published file ({limit:,} bytes)")
    return data
