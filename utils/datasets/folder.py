"""Your own photos: a folder with one folder per class becomes a Dataset."""

import os
import pathlib
import unicodedata
import warnings

import pandas as pd

from utils._checks import whole
from utils.classify import photo

from . import audit, splits
from .dataset import FRACTIONS, NAMES, finish

_PARTS = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
_PARTS |= {"validation": "validation", "test": "test", "testing": "test"}
_PARTS |= {"training_set": "train", "validation_set": "validation", "test_set": "test"}
_FEW = 10  # photos of a class, below which its numbers say next to nothing


def from_folder(path, senders=None, split=None, seed=0, per_class=None):
    """Load your own photos: `<class>/<photo>`, or `train|validation|test/<class>/<photo>`, at any depth below.

    JPEG, PNG, WebP, GIF, BMP, AVIF and HEIC in any letter case are photos; hidden files are passed over. What cannot be
    read is left out, and so are copies of the same file; copies with two labels are all left out. The report names
    them. Pictures that were saved twice stay on one side of the split.

    Args:
        path: the folder.
        senders: who took each photo: a function of the photo's pathlib.Path that returns a name (None if unknown), or
            (path of a CSV file, name of its column with the person); another column of it names the files.
        split: "folders" (as train, validation and test lie there), "grouped" (nobody's photos on two sides; needs
            `senders`), "random", or None: the first of these that is possible.
        seed: of the split, and of the choice under `per_class`.
        per_class: at most so many photos per class (and part), chosen at random.

    Returns:
        Dataset, whose fingerprint follows the photos' content, labels and split, wherever they lie.

    Raises:
        FileNotFoundError: there is no such folder, or no such CSV file.
        ValueError: nothing to learn from, or options that do not fit the folder.

    Example:
        >>> import tempfile; from utils.datasets import sketches
        >>> folder = sketches.build(tempfile.mkdtemp(), per_class=6, size=32)
        >>> mine = from_folder(folder, senders=lambda photo: int(photo.stem[-5:]) // 12)
        >>> mine.split, len(mine.frame), mine.frame["sender"].nunique()
        ('grouped', 60, 5)
    """
    root = pathlib.Path(path).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; expected a folder with one folder of photos per class")
    if split not in (None, "folders", "grouped", "random"):
        raise ValueError(f"split must be 'folders', 'grouped', 'random' or None, got {split!r}")
    if split == "grouped" and senders is None:
        raise ValueError("a grouped split needs senders, got None; say who took each photo, or use split='random'")
    per_class = per_class if per_class is None else whole("per_class", per_class)
    seed = whole("seed", seed, 0, 2**32 - 1)
    frame, others, in_parts, empty = _list(root)
    if split == "folders" and not in_parts:
        raise ValueError(f"split='folders' needs the folders train, validation and test, got none of them in {root}")
    split = split or ("folders" if in_parts else "grouped" if senders is not None else "random")
    if split == "folders" and (lacking := [part for part in splits.PARTS if not frame["split"].eq(part).any()]):
        raise ValueError(
            f"there are no photos in {root / lacking[0]}; add them, or divide anew with split='random' "
            "(on the command line: --split random)"
        )
    steps = [("photos found", len(frame), "", f"{frame['label'].nunique()} classes")]
    _tell(steps, "files that are not photos", others, "not used")
    _tell(steps, "classes without photos", empty, "left out")
    if per_class is not None:
        frame = frame.sample(frac=1, random_state=seed)
        kept = frame.groupby(["label", "split"]).cumcount() < per_class
        steps.append((f"photos above {per_class} per class", int((~kept).sum()), "left out", "chosen at random"))
        frame = frame[kept].sort_index().reset_index(drop=True)
    frame = _readable(frame, root, steps)
    frame["sender"], source = _people(frame, root, senders)
    unknown = frame["sender"].isna()
    frame["sender"] = frame["sender"].where(~unknown, "unknown-" + frame["id"])
    if senders is not None:
        steps.append(
            ("photos whose sender is unknown", int(unknown.sum()), "each counts as a sender of its own", source)
        )
    frame = frame.sort_values(["label", "sha256"], ignore_index=True)  # content decides, not the names of files
    if split == "grouped":
        frame["split"] = splits.grouped_split(frame, FRACTIONS, seed, tie=("twin",))
    elif split == "random":
        frame["split"] = _random(frame, seed)
        if senders is None:
            warnings.warn(
                "nobody said who took the photos (senders=): the split is random, and photos by one person may be on "
                "both sides, so expect less from photos by other people than the test says",
                stacklevel=2,
            )
    sizes = frame["label"].value_counts().sort_index()
    if (few := sizes[sizes < _FEW]).size:
        named = ", ".join(f"{label} ({n})" for label, n in few.items())
        warnings.warn(
            f"classes with fewer than {_FEW} photos: {named}; what is said of them means little", stacklevel=2
        )
        steps.append((f"classes with fewer than {_FEW} photos", len(few), "kept", named))
    frame["kids"] = pd.array([pd.NA] * len(frame), dtype="boolean")
    name = root.name if root.name not in NAMES else f"{root.name} (folder)"
    allowed = () if senders is None or split == "grouped" else ("sender",)
    if split == "folders" and allowed:
        try:
            splits.check(frame, allow="file")
        except splits.SplitLeak as leak:
            warnings.warn(f"{root.name}: {leak}", stacklevel=2)
    return finish(name, root, frame, split, steps, allowed)


def _list(root):
    """(frame of photos with id, path, label, split; other files; whether the set comes in parts; empty classes)."""
    tops = {entry.name.lower() for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    known = tops & set(_PARTS)  # a class may be called "train"; beside "test" it is a part
    in_parts = any(_PARTS[name] == "train" for name in known) and (len(known) > 1 or tops == known)
    rows, others, folders = [], [], set()
    for path in _below(root):
        names = path.relative_to(root).parts
        if any(name.startswith((".", "__MACOSX")) for name in names):
            continue
        if str(path) != os.fsencode(path).decode(errors="ignore"):
            raise ValueError(f"names of photos and folders must be UTF-8, got {str(path)!r}; rename it")
        part = _PARTS.get(names[0].lower()) if in_parts else ""
        inner = names[1:] if in_parts else names
        if path.is_dir():
            folders.update(unicodedata.normalize("NFC", name) for name in inner[:1])
        elif part is None or len(inner) < 2 or path.suffix.lower() not in photo.ENDINGS or not path.is_file():
            others.append("/".join(names))
        else:
            rows.append(("/".join(names), str(path), unicodedata.normalize("NFC", inner[0]), part))
    frame = pd.DataFrame(rows, columns=["id", "path", "label", "split"])
    if frame.empty:
        raise ValueError(
            f"there are no photos in folders below {root}; expected <class>/<photo> or train/<class>/<photo>, "
            f"got {', '.join(others[:3]) or 'nothing'}"
        )
    return frame, others, in_parts, sorted(folders - set(frame["label"]))


def _below(root):
    """Every file and folder below a folder, sorted; links to folders are followed unless they lead back up."""
    found, unread = [], []
    for folder, inside, names in os.walk(root, onerror=unread.append, followlinks=True):
        here = pathlib.Path(folder)
        above = [parent.resolve() for parent in (here, *here.parents)]
        inside[:] = [
            name for name in inside
            if not name.startswith(".") and not any(one.is_relative_to((here / name).resolve()) for one in above)
        ]  # fmt: skip
        found += [here / name for name in (*inside, *names)]
    for error in unread:
        warnings.warn(f"the folder {error.filename} cannot be read ({error.strerror}); it is left out", stacklevel=4)
    return sorted(found)


def _readable(frame, root, steps):
    """The photos that can be read, each once; with sha256 and twin."""
    frame = pd.concat([frame, audit.check_photos(frame["path"], root)], axis=1)
    bad = frame[frame["problem"].ne("")]
    _tell(steps, "files that cannot be read as photos", bad["id"] + ": " + bad["problem"], "left out")
    if len(bad):
        warnings.warn(f"{len(bad)} files cannot be read as photos and are left out ({_few(bad['id'])})", stacklevel=3)
    classes = set(frame["label"])
    order = {"test": 0, "validation": 1}  # of copies in two parts the one that is not trained on stays
    frame = frame.drop(index=bad.index)
    frame = frame.sort_values("split", key=lambda parts: parts.map(order).fillna(2), kind="stable")
    labels = frame.groupby("sha256")["label"].transform("nunique")
    torn = frame[labels > 1]
    copies = frame[labels.eq(1) & frame["sha256"].duplicated()]
    _tell(steps, "copies of a file under two labels", torn["id"], "all left out")
    if len(torn):
        warnings.warn(f"{len(torn)} copies of a file lie under two labels and are left out ({_few(torn['id'])}); "
                      "keep the right one", stacklevel=3)  # fmt: skip
    _tell(steps, "copies of a file", copies["id"], "left out")
    frame = frame.drop(index=torn.index.union(copies.index)).sort_index().reset_index(drop=True)
    if gone := sorted(classes - set(frame["label"])):
        warnings.warn(f"no photo of {', '.join(gone)} is left, so it is no class any more", stacklevel=3)
    if frame["label"].nunique() < 2:
        got = _few(frame["label"].unique())
        deeper = (frame["split"].eq("") & frame["id"].str.count("/").gt(1)).any()
        hint = f"; if the classes are the folders inside {got}, pass {root / got}" if deeper else ""
        raise ValueError(f"a classifier needs photos of two classes or more, got {got or 'none'} in {root}{hint}")
    frame["twin"] = audit.twin_names(frame["sha256"], frame["look"])
    twins = frame[frame["twin"].ne("")].sort_values("twin")
    _tell(steps, "photos of one picture, saved twice", twins["id"], "kept on one side of a new split")
    return frame


def _people(frame, root, senders):
    """(Series of who took each photo, NA where unknown; where that is from)."""
    if senders is None:
        return pd.Series(pd.NA, index=frame.index, dtype="str"), ""
    if callable(senders):
        found = [senders(pathlib.Path(path)) for path in frame["path"]]
        found = [None if pd.isna(one) or one == "" else str(one) for one in found]
        return pd.Series(found, frame.index, "str"), "the function"
    if not isinstance(senders, (tuple, list)) or len(senders) != 2:
        raise ValueError(f"senders must be a function or (CSV file, column), got {senders!r}")
    table, column = pathlib.Path(senders[0]), senders[1]
    rows = audit.read_csv(table)
    if column not in rows:
        raise ValueError(f"{table} needs the column {column!r}, got {', '.join(map(str, rows.columns))}")
    rows = rows.fillna("").apply(lambda values: values.str.normalize("NFC").str.replace("\\", "/").str.strip())
    paths = [pathlib.PurePosixPath(unicodedata.normalize("NFC", name)) for name in frame["id"]]
    ways = [list(map(str, paths)), [path.name for path in paths], [path.stem for path in paths]]
    rows = rows[rows[column].ne("")]
    tables = [rows.groupby(other)[column].unique().to_dict() for other in rows.columns.drop(column)]
    matches = [[people.get(key, ()) for key in keys] for people in tables for keys in ways]
    best = max(matches, key=lambda found: sum(len(people) > 0 for people in found), default=[])
    if not any(map(len, best)):
        raise ValueError(f"no column of {table} names the photos of {root}, such as {frame['id'].iloc[0]}; add one")
    for name, people in zip(frame["id"], best, strict=True):
        if len(people) > 1:
            raise ValueError(
                f"{table} must name one person for {name}, got {' and '.join(people)}; "
                "correct the row, or name the photos as <class>/<photo>"
            )
    best = [people[0] if len(people) else None for people in best]
    return pd.Series(best, frame.index, "str"), f"column {column} of {table.name}"


def _random(frame, seed):
    """A random split in which every class of three photos or more is in every part, and twins are on one side."""
    parts = splits.random_split(frame, FRACTIONS, seed)
    for _, rows in parts.groupby(frame["label"]):
        for part in ("test", "validation"):
            train = rows.index[parts[rows.index].eq("train")]
            if len(train) > 1 and not parts[rows.index].eq(part).any():
                parts[train[-1]] = part
    return parts.groupby(frame["twin"].where(frame["twin"].ne(""), frame["sha256"])).transform("first")


def _tell(steps, what, names, done):
    """Add a step to the report that names its files."""
    steps.append((what, len(names), done, _few(names)))


def _few(names):
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
