"""The two published sets and the drawings, loaded: fetched, verified, cleaned, split.

Both sets (CC0) were collected by Alexey Grigorev from people who photographed their clothes:

- clothing-10, github.com/alexeygrigorev/clothing-dataset-small: 3,781 photos, ten classes, its own split.
- clothing-17, github.com/alexeygrigorev/clothing-dataset: 5,096 photos of 17 classes after study A's cleaning.
"""

import dataclasses
import functools
import hashlib
import pathlib
import warnings

import pandas as pd

from utils import files

from . import audit, published, sketches, splits

NAMES = ("clothing-10", "clothing-17", "sketches", "auto")
OFFICIAL_TEST_SENDERS = ("46", "204", "227", "309", "310")  # all photos of the small set's test part are theirs
FRACTIONS = (0.70, 0.15, 0.15)
UNIMPORTANT_LABELS = ("not sure", "skip", "other")  # study A drops these
_COLUMNS = ["path", "label", "split", "sender", "kids", "id", "sha256", "twin"]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Photos with labels, senders and a split; made by :func:`load`, prints itself.

    Attributes:
        name: "clothing-10", "clothing-17" or "sketches".
        root: folder of the photos.
        frame: DataFrame, one row per photo: `path` (absolute), `label`, `split` (train / validation / test), `sender`
            (str), `kids` (boolean or <NA>), `id`, `sha256`, `twin` (a name for each picture saved twice, else "").
        classes: tuple of the labels, sorted.
        split: the protocol: "official", "grouped" or "random".
        stand_in: True for drawings, which stand in for photos; say so wherever a number rests on them.
        allowed_leaks: what `splits.check` has to allow for this protocol, e.g. ("sender",) for the official split.
    """

    name: str
    root: pathlib.Path
    frame: pd.DataFrame
    classes: tuple
    split: str
    stand_in: bool
    allowed_leaks: tuple
    cleaning: audit.Report

    def report(self):
        """What cleaning found and dropped: an `audit.Report`, which prints itself."""
        return self.cleaning

    def part(self, name):
        """The rows of one part, "train", "validation" or "test", with a fresh index."""
        if name not in splits.PARTS:
            raise ValueError(f"part must be one of {', '.join(splits.PARTS)}, got {name!r}")
        return self.frame[self.frame["split"] == name].reset_index(drop=True)

    def distribution(self):
        """Photos by label (rows) and part (columns)."""
        table = pd.crosstab(self.frame["label"], self.frame["split"])
        return table.reindex(index=list(self.classes), columns=list(splits.PARTS), fill_value=0)

    @functools.cached_property
    def fingerprint(self):
        """12 hexadecimal digits over photos, labels and split: the same data give the same anywhere, other data others.

        A published photo counts by id and sender as long as its bytes are the published ones, any other by its bytes.
        """
        known = {sha for source in published.SOURCES.values() for sha in published.manifest(source.folder).values()}
        named = self.name if self.name in NAMES else ""
        columns = ["id", "label", "split", "sender"] if named else ["label", "split"]
        rows = self.frame[columns].astype(str).to_numpy().tolist()
        contents = self.frame["sha256"].where(~self.frame["sha256"].isin(known) | (not named), "")
        digest = hashlib.sha256(repr((named, self.classes)).encode())
        for row in sorted((*row, *([sha] if sha else [])) for row, sha in zip(rows, contents, strict=True)):
            digest.update(repr(row).encode())
        return digest.hexdigest()[:12]

    def __repr__(self):
        parts = " / ".join(str((self.frame["split"] == part).sum()) for part in splits.PARTS)
        kind = "drawings, a stand-in for photos" if self.stand_in else "photos"
        return (
            f"{self.name}: {len(self.frame):,} {kind}, {len(self.classes)} classes, {self.frame['sender'].nunique()} "
            f"senders, {self.split} split {parts}, fingerprint {self.fingerprint}"
        )

    def _repr_html_(self):
        return f"<p>{self!r}</p>{self.distribution().to_html()}"


def load(name, root=None, download=True, split=None, seed=0, **options):
    """Load a dataset: fetched if need be, verified, cleaned, split.

    Args:
        name: "clothing-10", "clothing-17", "sketches", or "auto": clothing-10 if it is on disk or can be fetched, else
            sketches, with a warning.
        root: folder that holds `clothing-dataset-small/` and `clothing-dataset/`; default CLOTHING_DATA_DIR, else
            `data/`. Drawings go to `root` if it is given, else to `data/`.
        download: fetch what is not on disk.
        split: "official" (clothing-10 only), "grouped" (no sender on two sides; the official test people stay in
            test), "random" (study A's: blind to senders), or None: "official" for clothing-10, else "grouped".
        seed: of a split that is made here, and of drawings.
        options: `per_class` and `size` of drawings; for "sketches" only.

    Returns:
        Dataset.

    Raises:
        ValueError: unknown name, split or option, or nothing usable in the folder.
        FileNotFoundError: not on disk, and `download` is False.
        ConnectionError, OSError: fetching failed; nothing is left behind.

    Example:
        >>> drawn = load("sketches", root=__import__("tempfile").mkdtemp(), per_class=6, size=32)
        >>> drawn.stand_in, len(drawn.frame), drawn.classes[:3]
        (True, 60, ('dress', 'hat', 'longsleeve'))
    """
    if name not in NAMES:
        raise ValueError(
            f"name must be one of {', '.join(NAMES)}, got {name!r}; for a folder of your own photos use from_folder"
        )
    if split not in (None, "official", "grouped", "random"):
        raise ValueError(f"split must be 'official', 'grouped', 'random' or None, got {split!r}")
    if options and name != "sketches":
        raise ValueError(f"only sketches take options, got {', '.join(options)} for {name}; load 'sketches' by name")
    if unknown := sorted(set(options) - {"per_class", "size"}):
        raise ValueError(f"options of sketches are per_class and size, got {', '.join(unknown)}")
    if name == "auto":
        name = _choose(files.data_root(root), download)
    if split == "official" and name != "clothing-10":
        raise ValueError(f"split of {name} must be 'grouped' or 'random', got 'official'")
    if name == "sketches":
        return _load_sketches(root, split or "grouped", seed, options)
    folder = _folder(name, files.data_root(root), download)
    if name == "clothing-10":
        return _load_small(folder, split or "official", seed)
    return _load_full(folder, split or "grouped", seed)


def _choose(root, download):
    try:
        _folder("clothing-10", root, download)
        return "clothing-10"
    except (OSError, ValueError) as error:
        warnings.warn(
            f"synthetic drawings take the place of photos, because clothing-10 cannot be loaded: {error}. "
            "Every number from here on is about drawings.",
            stacklevel=3,
        )
        return "sketches"


def _folder(name, root, download):
    folder = root / published.SOURCES[name].folder
    if not folder.is_dir() and not download:
        raise FileNotFoundError(f"{name} is not in {root}; set CLOTHING_DATA_DIR to the folder with {folder.name}/")
    return published.fetch(name, root)


def _load_small(folder, split, seed):
    rows = [
        (str(path), path.parent.name, part, path.stem)
        for part in splits.PARTS
        for path in published.photos_below(folder / part)
        if path.parent.parent == folder / part
    ]
    if not rows:
        raise ValueError(f"there is no photo in {folder}; expected train/<class>/<photo> and so on, as published")
    frame = pd.DataFrame(rows, columns=["path", "label", "split", "id"])
    full, source = folder.parent / "clothing-dataset" / "images.csv", "senders from the committed table"
    index = published.people()
    if full.is_file():
        index, source = audit.read_index(full), "senders from the full set's images.csv"
    frame = frame.merge(index[["id", "sender", "kids"]], on="id", how="left")
    steps = [("photos found", len(frame), "", f"{frame['label'].nunique()} classes")]
    expected = set(published.manifest("clothing-dataset-small"))
    there = {pathlib.Path(path).relative_to(folder).as_posix() for path in frame["path"]}
    steps.append(("published photos that are missing", len(expected - there), "not used", ""))
    unknown = frame["sender"].isna()
    frame["sender"] = frame["sender"].where(~unknown, "unknown-" + frame["id"])
    steps.append(("photos whose sender is unknown", int(unknown.sum()), "each counts as a sender of its own", source))
    frame = _clean(frame, folder, steps)
    both = frame[["id", "label", "split"]].merge(index[["id", "label"]], on="id", suffixes=("", "_there"))
    conflicts = both[both["label"].str.casefold() != both["label_there"].str.casefold()]
    where = _counted(conflicts["split"])
    steps.append(("labels that differ from the full set's", len(conflicts), "kept as they are", where))
    _divide(frame, split, seed, (0.75, 0.15, 0.10), test_senders=OFFICIAL_TEST_SENDERS, closed_test=True)
    return finish("clothing-10", folder, frame, split, steps)


def _load_full(folder, split, seed):
    frame, images = audit.read_index(folder / "images.csv"), folder.absolute() / "images"
    if not images.is_dir():
        raise FileNotFoundError(f"there is no folder {images}; expected the photos as published")
    frame["path"] = [str(images / f"{one}.jpg") for one in frame["id"]]
    there = {str(path): path for path in images.iterdir() if not path.name.startswith(".")}
    gone = frame[~frame["path"].isin(there.keys())]
    strays = [there[one] for one in sorted(there.keys() - set(frame["path"]))]
    steps = [
        ("rows in images.csv", len(frame), "", f"{frame['label'].nunique()} labels"),
        ("rows without a file", len(gone), "dropped", _counted(gone["label"])),
        ("files without a row", len(strays), "not used", ""),
    ]
    frame = frame[~frame.index.isin(gone.index)]
    unwanted = frame["label"].str.casefold().isin(UNIMPORTANT_LABELS)
    dropped = _counted(frame.loc[unwanted, "label"])
    steps.append(("photos with unimportant labels", int(unwanted.sum()), "dropped", dropped))
    unused = [path for path in published.photos_below(images) if path in strays]
    frame = _clean(frame[~unwanted].reset_index(drop=True), folder, steps, unused)
    _divide(frame, split, seed, test_senders=OFFICIAL_TEST_SENDERS)
    return finish("clothing-17", folder, frame, split, steps)


def _load_sketches(root, split, seed, options):
    folder = sketches.build(files.drawings_root(root), seed=seed, **options)
    frame = sketches.index(folder)
    frame["kids"] = pd.array([pd.NA] * len(frame), dtype="boolean")
    frame["sha256"] = [hashlib.sha256(f"{folder.name}/{name}".encode()).hexdigest() for name in frame["id"]]
    frame["twin"] = ""
    _divide(frame, split, seed)
    return finish("sketches", folder, frame, split, [("drawings", len(frame), "", "a stand-in for photos")])


def _divide(frame, split, seed, fractions=FRACTIONS, **grouped):
    if split == "grouped":
        frame["split"] = splits.grouped_split(frame, fractions, seed, **grouped)
    elif split == "random":
        frame["split"] = splits.random_split(frame, FRACTIONS, seed)


def _counted(values):
    """How often each value occurs, the most frequent first: "hat 3, shoes 1"."""
    return ", ".join(f"{value} {n}" for value, n in values.value_counts().items())


def finish(name, folder, frame, split, steps, allowed=None):
    """The Dataset of a cleaned and split frame; warns where a part lacks a class."""
    classes = tuple(sorted(frame["label"].unique()))
    if len(classes) < 2:
        raise ValueError(f"a classifier needs two classes or more, got photos of {classes[0]} only in {folder}")
    for part in splits.PARTS:
        here = set(frame.loc[frame["split"] == part, "label"])
        if absent := [label for label in classes if label not in here]:
            warnings.warn(f"{name}: no photo of {', '.join(absent)} in the {part} part", stacklevel=4)
    if allowed is None:
        allowed = {"official": ("sender",), "random": ("sender", "file"), "grouped": ()}[split]
    counts = ", ".join(f"{part} {(frame['split'] == part).sum():,}" for part in splits.PARTS)
    steps.append(("photos kept", len(frame), "", f"{split} split: {counts}"))
    frame = frame[_COLUMNS].sort_values(["split", "label", "id"], ignore_index=True)
    report = audit.Report(name, tuple(steps))
    return Dataset(name, folder, frame, classes, split, name == "sketches", allowed, report)


def _clean(frame, folder, steps, unused=()):
    """What only the files themselves tell: readable, RGB, published bytes, twins. Drops what cannot be decoded."""
    facts = audit.check_photos(frame["path"], folder)
    frame = pd.concat([frame.reset_index(drop=True), facts], axis=1)
    bad = frame["problem"].ne("")
    first = f"first {frame.loc[bad, 'id'].iloc[0]}: {frame.loc[bad, 'problem'].iloc[0]}" if bad.any() else ""
    steps.append(("unreadable, truncated or absurdly large photos", int(bad.sum()), "dropped", first))
    if bad.any():
        warnings.warn(f"{int(bad.sum())} photos in {folder} cannot be decoded and are left out ({first})", stacklevel=5)
        frame = frame[~bad].reset_index(drop=True)
    if frame.empty:
        raise ValueError(f"no photo in {folder} can be decoded; expected the set as published")
    other = frame["mode"].ne("RGB")
    modes = _counted(frame.loc[other, "mode"])
    steps.append(("photos that are not RGB", int(other.sum()), "converted when read", modes))
    turned = frame["orientation"].ne(1)
    steps.append(("photos that lie on their side by EXIF", int(turned.sum()), "turned when read", ""))
    hashes = published.manifest(folder.name)
    names = [pathlib.Path(path).relative_to(folder).as_posix() for path in frame["path"]]
    changed = [name in hashes and hashes[name] != sha for name, sha in zip(names, frame["sha256"], strict=True)]
    steps.append(("photos whose bytes differ from the published ones", sum(changed), "kept", ""))
    _report_twins(frame, unused, steps)
    frame["twin"] = audit.twin_names(frame["id"], frame["look"])
    same = frame[frame["twin"].ne("")].sort_values("twin")
    steps.append(("photos of one picture, saved twice", len(same), "kept", ", ".join(same["label"])))
    return frame


def _report_twins(frame, unused, steps):
    known = frame[["id", "label", "sha256"]]
    if unused:
        others = audit.check_photos(unused, unused[0].parent.parent)
        others = pd.DataFrame({"id": [path.stem for path in unused], "sha256": others["sha256"]})
        known = pd.concat([known, others], ignore_index=True)
    same = audit.twins(known)
    odd = sum(len(set(labels.dropna())) > 1 for _, labels in same.groupby("sha256")["label"])
    lone = int(same["label"].isna().sum())
    notes = [f"{odd} pairs with two labels"] * bool(odd) + [f"{lone} without a row"] * bool(lone)
    steps.append(("files with a byte-identical twin", len(same), "kept on one side", ", ".join(notes)))
