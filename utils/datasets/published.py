"""What was published: where, under which commit, and the SHA-256 of every file.

python -m utils.datasets.published DIR     # writes manifests/ again, from a folder that holds both sets
"""

import dataclasses
import functools
import gzip
import hashlib
import pathlib

import pandas as pd

from utils import files
from utils.datasets import audit
from utils.datasets.splits import PARTS

MANIFESTS = pathlib.Path(__file__).resolve().parent / "manifests"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a dataset is published.

    Attributes:
        folder: name of its folder, and of its manifest.
        repository: "owner/name" on GitHub.
        references: commits or branches whose archive may hold the files, tried in turn. The manifest decides, so a
            branch is safe to try.
        max_archive_bytes, max_bytes: bounds of the archive and of what is in it.
    """

    folder: str
    repository: str
    references: tuple
    max_archive_bytes: int
    max_bytes: int

    @property
    def urls(self):
        return tuple(f"https://github.com/{self.repository}/archive/{ref}.tar.gz" for ref in self.references)


SOURCES = {
    "clothing-10": Source(
        "clothing-dataset-small",
        "alexeygrigorev/clothing-dataset-small",
        ("11961516512414bf9f6c150a832cfd21b54a6b54", "refs/heads/master"),
        200 * 2**20,  # the photos have 106 MB
        250 * 2**20,
    ),
    "clothing-17": Source(
        "clothing-dataset",
        "alexeygrigorev/clothing-dataset",
        ("9556dff476f7b543d423b0f961e10a285a37b28a", "refs/heads/master"),
        300 * 2**20,  # the photos have 161 MB
        400 * 2**20,
    ),
}


@functools.cache
def _people_table():
    with gzip.open(MANIFESTS / "people.csv.gz", "rt", encoding="utf-8", newline="") as file:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    frame["kids"] = frame["kids"].map({"True": True, "False": False}).astype("boolean")
    return frame


def people():
    """What the full set says of the small set's photos, from a committed table: DataFrame id, sender, label, kids."""
    return _people_table().copy()


@functools.cache
def manifest(folder):
    """SHA-256 of every published file: dict of path below `folder` ("train/hat/….jpg") -> hexadecimal digest.

    Made by `python -m utils.datasets.published DIR`, from a folder laid out as published; `sha256sum -c` reads it too.
    """
    with gzip.open(MANIFESTS / f"{folder}.sha256.gz", "rt", encoding="utf-8") as file:
        return {name: digest for digest, name in (line.rstrip("\n").split("  ", 1) for line in file)}


def photos_below(folder):
    """Paths of the photos in a folder and its folders, sorted; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def write_manifests(root, target=MANIFESTS):
    """Write the manifests and the table of people from a folder that holds both sets as published.

    The files are the same bytes whenever and wherever they are made: sorted, and compressed without a name or a time.
    """
    root = files.data_root(root)
    small, full = root / "clothing-dataset-small", root / "clothing-dataset"
    listed = {
        "clothing-dataset-small": [path for part in PARTS for path in photos_below(small / part)],
        "clothing-dataset": [full / "images.csv", *photos_below(full / "images")],
    }
    for folder, found in listed.items():
        lines = sorted(
            f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(root / folder).as_posix()}" for p in found
        )
        _write_gz(target / f"{folder}.sha256.gz", sorted(lines, key=lambda line: line.split("  ", 1)[1]))
    index = audit.read_index(full / "images.csv")
    index = index[index["id"].isin({path.stem for path in listed["clothing-dataset-small"]})].sort_values("id")
    rows = index[["id", "sender", "label", "kids"]].itertuples(index=False, name=None)
    _write_gz(target / "people.csv.gz", ["id,sender,label,kids", *(",".join(map(str, row)) for row in rows)])


def _write_gz(path, lines):
    files.write_bytes(path, gzip.compress("".join(f"{line}\n" for line in lines).encode(), 9, mtime=0))


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 2:
        sys.exit(
            "usage: python -m utils.datasets.published DIR   (DIR holds both sets as published; writes manifests/)"
        )
    write_manifests(sys.argv[1])
