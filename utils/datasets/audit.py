"""Study A's preparation, step by step: what is in a folder of photos, and what is wrong with it.

Each step is a function that takes and returns a DataFrame or a small result that prints itself; `datasets.load` calls
them in order and keeps what they found in a :class:`Report`.
"""

import csv
import dataclasses
import hashlib
import io
import logging
import pathlib
import re
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from utils import files
from utils.classify import photo
from utils.environment import describe

INDEX_COLUMNS = ("image", "sender_id", "label", "kids")
UNIMPORTANT_LABELS = ("Not sure", "Skip", "Other")  # study A drops these
MAX_INDEX_BYTES = 16 * 2**20
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_CHECK_VERSION = 1  # of what is remembered about a photo
_FACTS = ("sha256", "width", "height", "mode", "format", "orientation", "problem")
_log = logging.getLogger(__name__)


def read_index(path):
    """Read the full set's `images.csv`: one row a photo.

    Args:
        path: a comma-separated UTF-8 file with the columns image, sender_id, label, kids; a byte-order mark is
            tolerated.

    Returns:
        DataFrame with str columns `id`, `sender`, `label` (outer blanks stripped) and `kids` (boolean, may be <NA>).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file (another delimiter, missing columns, no rows, an id twice, an id that is no plain
            file name); the message names the file and the line.

    Example:
        >>> import tempfile; path = pathlib.Path(tempfile.mkdtemp()) / "images.csv"
        >>> _ = path.write_text("image,sender_id,label,kids" + chr(10) + "a-1,7,Hat,False" + chr(10))
        >>> read_index(path).iloc[0].to_dict()
        {'id': 'a-1', 'sender': '7', 'label': 'Hat', 'kids': False}
    """
    path = pathlib.Path(path)
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"{path} has more than {MAX_INDEX_BYTES:,} bytes; it is no index of photos")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no index {path}; lay the full set out as published") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check the file and its rights") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        missing = [name for name in INDEX_COLUMNS if name not in header]
        if missing:
            hint = "is it separated by commas?" if len(header) == 1 else f"its columns are {', '.join(header)[:200]}"
            raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; {hint}")
        places_of = [header.index(name) for name in INDEX_COLUMNS]
        records = []
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path} line {rows.line_num} has {len(row)} fields, the header {len(header)}; mend the line"
                )
            image, sender, label, kids = (row[place].strip() for place in places_of)
            if not _ID.fullmatch(image) or ".." in image:
                raise ValueError(f"{path} line {rows.line_num}: {image[:80]!r} is no plain image id; mend the line")
            if not label or not sender:
                raise ValueError(
                    f"{path} line {rows.line_num}: the {'sender' if label else 'label'} is empty; fill it in"
                )
            known = {"true": True, "false": False, "": pd.NA}
            if kids.lower() not in known:
                raise ValueError(f"{path} line {rows.line_num}: kids is {kids[:80]!r}; use True or False")
            records.append((image, sender, label, known[kids.lower()]))
    except csv.Error as error:
        raise ValueError(f"{path} line {rows.line_num} is not CSV ({error}); mend the line") from error
    if not records:
        raise ValueError(f"{path} has no rows; lay the full set out as published")
    frame = pd.DataFrame(records, columns=["id", "sender", "label", "kids"]).astype({"kids": "boolean"})
    if (twice := frame.loc[frame["id"].duplicated(), "id"]).size:
        raise ValueError(f"{path} lists {len(twice)} id(s) twice (first {twice.iloc[0]}); keep one row an id")
    return frame


def paths_from_ids(frame, folder):
    """Append `.jpg` to the ids, as study A did: returns `frame` with an absolute `path` into `folder`."""
    folder = pathlib.Path(folder).absolute()
    return frame.assign(path=[str(folder / f"{image}.jpg") for image in frame["id"]])


@dataclasses.dataclass(frozen=True)
class Missing:
    """Rows without a file, and files without a row; made by :func:`missing_images`.

    Attributes:
        rows: DataFrame, the rows whose `path` does not exist.
        files: tuple of file names in the folder that no row names.
    """

    rows: pd.DataFrame
    files: tuple

    def __repr__(self):
        labels = ", ".join(f"{label} {n}" for label, n in self.rows["label"].value_counts().items())
        return (
            f"{len(self.rows)} rows have no file" + (f" ({labels})" if labels else "") + f"; "
            f"{len(self.files)} files have no row"
        )


def missing_images(frame, folder):
    """Compare the rows with the files, both ways.

    Args:
        frame: DataFrame with `path` and `label`.
        folder: the folder with the photos.

    Returns:
        Missing.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = pathlib.Path(folder).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; lay the photos out as published")
    there = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    names = [pathlib.PurePath(path).name for path in frame["path"]]
    return Missing(frame[[name not in there for name in names]], tuple(sorted(there - set(names))))


def label_distribution(frame):
    """Photos a label, commonest first: DataFrame with `photos`, `share`, and `senders` where there are senders."""
    table = frame["label"].value_counts().rename("photos").to_frame()
    table["share"] = table["photos"] / table["photos"].sum()
    if "sender" in frame:
        table["senders"] = frame.groupby("label")["sender"].nunique()
    return table.rename_axis("label")


def drop_labels(frame, labels=UNIMPORTANT_LABELS):
    """Drop the rows with unimportant labels, whatever their case.

    Args:
        frame: DataFrame with `label`.
        labels: labels to drop; "not SURE" drops "Not sure".

    Returns:
        (frame without them, Series of the number of dropped rows by label as written).

    Example:
        >>> kept, dropped = drop_labels(pd.DataFrame({"label": ["Hat", "SKIP", "not sure"]}))
        >>> kept["label"].tolist(), dropped.to_dict()
        (['Hat'], {'SKIP': 1, 'not sure': 1})
    """
    unwanted = frame["label"].str.strip().str.casefold().isin({label.casefold() for label in labels})
    return frame[~unwanted], frame.loc[unwanted, "label"].value_counts()


def check_photos(paths, folder, progress=True):
    """Decode every photo once and remember what was found.

    A photo is looked at again only if its size or its time of change differ from what is remembered (in
    `data/.cache`, a file a folder), so a second call for 5,000 photos only asks the file system for their sizes. A file
    that is changed with its size and time kept goes unnoticed until the cache is deleted.

    Args:
        paths: paths of the photos.
        folder: the folder they lie in, which names the memory.
        progress: show a bar while photos are decoded.

    Returns:
        DataFrame, index like `paths`: sha256, width, height, mode, format, orientation, problem ("" for a good photo).

    Raises:
        FileNotFoundError: a path does not exist.
    """
    folder = pathlib.Path(folder).absolute()
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    memory = files.cache_dir() / f"photos-{key}.json"
    known = _recall(memory)
    found, todo = {}, []
    for path in map(pathlib.Path, paths):
        name = path.relative_to(folder).as_posix()
        try:
            status = path.stat()
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no photo {path}; check the path") from None
        stamp = [status.st_size, status.st_mtime_ns]
        if name in known and known[name][:2] == stamp:
            found[name] = known[name]
        else:
            todo.append((name, path, stamp))
    if todo:
        from tqdm.auto import tqdm

        with ThreadPoolExecutor(describe()["cores"]) as pool:
            facts = pool.map(_look, [path for _, path, _ in todo])
            bar = tqdm(
                facts, f"checking {folder.name}", len(todo), disable=not progress or len(todo) < 500, unit="photo"
            )
            for (name, _, stamp), fact in zip(todo, bar, strict=True):
                found[name] = stamp + fact
        try:
            files.write_json(memory, {"version": _CHECK_VERSION, "photos": {**known, **found}})
        except OSError as error:
            _log.warning("what was found in %s is not remembered: %s", folder, error)
    names = [pathlib.Path(path).relative_to(folder).as_posix() for path in paths]
    return pd.DataFrame([found[name][2:] for name in names], columns=list(_FACTS))


def _look(path):
    facts = photo.check_photo(path)
    return [facts[name] for name in _FACTS]


def _recall(memory):
    try:
        value = files.read_json(memory)
        if value["version"] != _CHECK_VERSION:
            return {}
        return {
            name: row for name, row in value["photos"].items() if isinstance(row, list) and len(row) == 2 + len(_FACTS)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # it is only a memory: what is lost is looked at again


def twins(frame):
    """Byte-identical photos.

    Args:
        frame: DataFrame with `sha256` and `id` (and `label`, `sender`).

    Returns:
        DataFrame of the rows that share their content with another row, twins beside each other.
    """
    same = frame[frame["sha256"].ne("") & frame["sha256"].duplicated(keep=False)]
    return same.sort_values(["sha256", "id"])


def label_conflicts(frame, other):
    """Photos that two sources label differently (case apart).

    Args:
        frame, other: DataFrames with `id` and `label`.

    Returns:
        DataFrame with `id`, `label`, `other_label` (and `split`, where `frame` has it), one row a conflict.
    """
    columns = [column for column in ("id", "label", "split") if column in frame]
    both = frame[columns].merge(other[["id", "label"]].rename(columns={"label": "other_label"}), on="id")
    return both[both["label"].str.casefold() != both["other_label"].str.casefold()].reset_index(drop=True)


@dataclasses.dataclass(frozen=True)
class Report:
    """What cleaning found and dropped; prints itself.

    Attributes:
        name: the dataset.
        steps: tuple of (what was looked for, photos found, what was done, details).
        details: dict of DataFrames by step, for those who want the rows.
    """

    name: str
    steps: tuple
    details: dict = dataclasses.field(default_factory=dict, repr=False)

    def to_frame(self):
        """One row a step: found (photos), done, details."""
        return pd.DataFrame(self.steps, columns=["step", "found", "done", "details"]).set_index("step")

    def __repr__(self):
        lines = [f"{self.name}: what cleaning found"]
        for step, found, done, details in self.steps:
            lines.append(
                f"  {step}: {found:,}" + (f", {done}" if done and found else "") + (f" ({details})" if details else "")
            )
        return "\n".join(lines)

    def _repr_html_(self):
        return self.to_frame().to_html()
