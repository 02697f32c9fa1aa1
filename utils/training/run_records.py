"""What a finished run predicted, kept without its weights: small enough to ship for every run of a table.

Weights of a network that nobody will use are megabytes; its probabilities of the photos that judge it are a
hundred kilobytes or two, and every number of a table follows from them. A run that ships as a record is found, judged
and drawn like any other, and says so where somebody asks it for its network.
"""

import zipfile

import numpy as np

from utils import files

PREDICTIONS = "predictions.npz"


def write(folder, frame, probabilities):
    """Write the probabilities of a frame's photos to ``folder/predictions.npz``.

    Args:
        folder: pathlib.Path of the record.
        frame: DataFrame with `id`, each id once.
        probabilities: (n, C), rows in the frame's order; kept as float32, so that no answer changes.

    Returns:
        dict name, sha256, size_bytes: what the state that names the file has to say of it.

    Raises:
        ValueError: an id stands twice, or the probabilities do not go with the frame.
    """
    ids = np.array([str(one) for one in frame["id"]])
    probabilities = np.asarray(probabilities, np.float32)
    if len(set(ids)) != len(ids):
        raise ValueError("a photo's id stands twice in the frame; record each photo once")
    if probabilities.ndim != 2 or len(probabilities) != len(ids) or not np.isfinite(probabilities).all():
        raise ValueError(f"{len(ids)} photos do not go with probabilities of shape {probabilities.shape}")
    return files.write_arrays(folder / PREDICTIONS, {"id": ids, "probabilities": probabilities})


def look_up(folder, frame):
    """The recorded probabilities of a frame's photos.

    Args:
        folder: pathlib.Path of the record.
        frame: DataFrame with `id`; any selection of the recorded photos, in any order.

    Returns:
        float32 (n, C), rows in the frame's order.

    Raises:
        ValueError: the file is damaged, or a photo is not in it; says how many and what to do.

    Example:
        >>> import pathlib, tempfile; import pandas as pd
        >>> folder, frame = pathlib.Path(tempfile.mkdtemp()), pd.DataFrame({"id": ["a", "b"]})
        >>> _ = write(folder, frame, [[0.75, 0.25], [0.5, 0.5]])
        >>> look_up(folder, frame[::-1])
        array([[0.5 , 0.5 ],
               [0.75, 0.25]], dtype=float32)
    """
    try:
        with np.load(folder / PREDICTIONS, allow_pickle=False) as arrays:
            known, probabilities = arrays["id"].tolist(), arrays["probabilities"]
        if probabilities.ndim != 2 or len(known) != len(probabilities):
            raise ValueError(f"{len(known)} photos with probabilities of shape {probabilities.shape}")
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder / PREDICTIONS} cannot be used: {error}; fetch the repository again") from error
    place = dict(zip(known, range(len(known)), strict=True))
    wanted = [str(one) for one in frame["id"]]
    missing = [one for one in wanted if one not in place]
    if missing:
        raise ValueError(
            f"run {folder.name} ships what it predicted for {len(known):,} photos; {len(missing):,} of the "
            f"{len(wanted):,} asked for (such as {missing[0]}) are not among them: train it again to judge others"
        )
    return probabilities[[place[one] for one in wanted]]
