"""Study A's preparation, step by step: what is in a folder of photos, and what is wrong with it.

Each step is a function that takes and returns DataFrames; `datasets.load` calls them in order and keeps what they found
in a :class:`Report`, which prints itself.
"""

import dataclasses
import hashlib
import logging
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from utils import files
from utils.classify import photo
from utils.environment import describe

INDEX_COLUMNS = {"image": "id", "sender_id": "sender", "label": "label", "kids": "kids"}
TWIN_DISTANCE = 24  # bits of 256: a photo saved again, half as large or brighter has up to 18, another photo 36 or more
_CHECK_VERSION = 2  # of what is remembered about a photo
_FACTS = ("sha256", "width", "height", "mode", "format", "orientation", "problem", "look")
_log = logging.getLogger(__name__)


def read_csv(path):
    """A CSV file as text; one that is not there or cannot be read is named."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no CSV file {path}; check the path") from None
    except (OSError, ValueError) as error:  # pandas' and the codec's errors are ValueErrors
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as a table of photos ({reason}); expected UTF-8 CSV") from error


def read_index(path):
    """The full set's `images.csv`: id, sender, label (str), kids (boolean or <NA>); what is wrong is named by row."""
    frame = read_csv(path)
    frame.columns = frame.columns.str.strip()
    if missing := [name for name in INDEX_COLUMNS if name not in frame]:
        found = ", ".join(frame.columns)[:200]
        raise ValueError(f"{path} has no column {', '.join(missing)}; expected commas between columns, got {found!r}")
    frame = frame[list(INDEX_COLUMNS)].rename(columns=INDEX_COLUMNS).apply(lambda column: column.str.strip())
    known = {"true": True, "false": False, "": pd.NA}
    plain = frame["id"].str.fullmatch(r"\w[\w-]*(\.[\w-]+)*", na=False)
    wrong = {
        "expected an id of letters, digits, '.', '-' and '_'": ~plain,
        "expected an id that no other row has": frame["id"].duplicated(),
        "expected a label and a sender": frame[["label", "sender"]].fillna("").eq("").any(axis=1),
        "expected True or False as kids": ~frame["kids"].str.lower().isin(known),
    }
    for expected, rows in wrong.items():
        if rows.any():
            first = rows.idxmax()
            got = ",".join(map(str, frame.loc[first]))[:200]
            raise ValueError(f"{path} row {first + 1}: {expected}, got {got!r}; correct the row")
    if frame.empty:
        raise ValueError(f"{path} has no rows; expected the full set as published")
    return frame.assign(kids=frame["kids"].str.lower().map(known).astype("boolean"))


def check_photos(paths, folder):
    """Decode every photo once and remember what was found: it is decoded again if its size or time of change differ.

    Returns:
        DataFrame, one row per path: sha256, width, height, mode, format, orientation, problem ("" for a good photo),
        look (perceptual hash of 256 bits in hexadecimal, for `picture_twins`).
    """
    folder = pathlib.Path(folder).absolute()
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    memory = files.cache_dir() / f"photos-{key}.json"
    known = _recall(memory)
    found, todo = {}, []
    names = [pathlib.Path(path).relative_to(folder).as_posix() for path in paths]
    for name in names:
        status = (folder / name).stat()
        stamp = [status.st_size, status.st_mtime_ns]
        if known.get(name, [])[:2] == stamp:
            found[name] = known[name]
        else:
            todo.append((name, stamp))
    if todo:
        pool = ThreadPoolExecutor(2 * describe()["cores"])
        try:
            facts = pool.map(_look, [folder / name for name, _ in todo])
            bar = tqdm(
                facts, f"checking {folder.name}", len(todo), disable=len(todo) < 500, unit=" photos", mininterval=1
            )
            for (name, stamp), fact in zip(todo, bar, strict=True):
                found[name] = stamp + fact
        finally:  # Ctrl-C ends at once, and what was looked at until then is remembered
            pool.shutdown(cancel_futures=True)
            try:
                files.write_json(memory, {"version": _CHECK_VERSION, "photos": {**known, **found}})
            except OSError as error:
                _log.warning("what was found in %s is not remembered: %s", folder, error)
    return pd.DataFrame([found[name][2:] for name in names], columns=list(_FACTS))


def _look(path):
    import imagehash

    facts = photo.check_photo(path) | {"look": ""}
    if not facts["problem"]:
        small = photo.Image.fromarray(photo.read_photo(path, 64))
        facts["look"] = np.packbits(imagehash.phash(small, hash_size=16).hash).tobytes().hex()
    return [facts[name] for name in _FACTS]


def _recall(memory):
    try:
        value = files.read_json(memory)
    except (OSError, ValueError):
        return {}  # it is only a memory: what is lost is looked at again
    return value["photos"] if value["version"] == _CHECK_VERSION else {}


def twins(frame):
    """The rows whose content (`sha256`) another row has too, twins beside each other."""
    same = frame[frame["sha256"].ne("") & frame["sha256"].duplicated(keep=False)]
    return same.sort_values(["sha256", "id"])


def picture_twins(looks):
    """Numbers of the pictures that photos show, told by their looks; a look of "" is like no other.

    Example:
        >>> picture_twins(["00" * 32, "ff" * 32, "01" + "00" * 31, ""]).tolist()
        [0, 1, 0, 2]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = np.flatnonzero([bool(look) for look in looks])
    codes = np.frombuffer(bytes.fromhex("".join(looks)), np.uint64).reshape(-1, 4)
    pairs = [np.zeros((0, 2), int)]
    for start in range(0, len(rows), 64):
        half = sum(np.bitwise_count(part[start : start + 64, None] ^ part[start:]) for part in codes.T[:2])
        near = start + np.argwhere(half <= TWIN_DISTANCE)  # in 128 bits; few are left to compare in all 256
        bits = np.bitwise_count(codes[near[:, 0]] ^ codes[near[:, 1]]).sum(axis=1)
        pairs.append(near[bits <= TWIN_DISTANCE])
    first, second = rows[np.concatenate(pairs)].T
    near = coo_array((np.ones(len(first)), (first, second)), shape=(len(looks), len(looks)))
    return connected_components(near, directed=False)[1]


def twin_names(ids, looks):
    """A name for each picture that several photos show (the first id of them), "" for all other photos: list of str."""
    groups = pd.Series(picture_twins(list(looks)), index=ids.index)
    first = ids.groupby(groups).transform("first")
    return first.where(groups.duplicated(keep=False), "").tolist()


@dataclasses.dataclass(frozen=True)
class Report:
    """What cleaning found and dropped; prints itself.

    `steps` are (what was looked for, photos found, what was done, details).
    """

    name: str
    steps: tuple

    def to_frame(self):
        """One row per step: found (photos), done, details."""
        return pd.DataFrame(self.steps, columns=["step", "found", "done", "details"]).set_index("step")

    def __repr__(self):
        lines = [f"{self.name}: what cleaning found"]
        for step, found, done, details in self.steps:
            done = f", {done}" if done and found else ""
            lines.append(f"  {step}: {found:,}{done}" + (f" ({details})" if details else ""))
        return "\n".join(lines)

    def _repr_html_(self):
        return self.to_frame().to_html()
