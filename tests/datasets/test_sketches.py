"""Drawings: the same from the same seed, different otherwise, whole or not at all, and not too easy."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from utils import datasets
from utils.classify import photo
from utils.datasets import sketches


def digest(folder):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    return [(name, hashlib.sha256((folder / name).read_bytes()).hexdigest()) for name in names]


def test_everything_is_drawn_once_and_the_seed_decides_how(tmp_path):
    folder = sketches.build(tmp_path / "a", per_class=4, size=32, seed=5)
    assert folder == tmp_path / "a" / "sketches-v2-4x32-seed5"
    frame, drawn = sketches.index(folder), digest(folder)
    assert frame["label"].value_counts().to_dict() == dict.fromkeys(sketches.CLASSES, 4)
    assert frame["sender"].value_counts().max() > 3 * frame["sender"].value_counts().min()
    assert frame["id"].is_unique and len({sha for name, sha in drawn if name.endswith("png")}) == 40
    for path in frame["path"]:
        with Image.open(path) as image:
            assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "PNG")
    for root in ("a", "b"):  # found again, and drawn again
        assert digest(sketches.build(tmp_path / root, per_class=4, size=32, seed=5)) == drawn
    other = digest(sketches.build(tmp_path / "a", per_class=4, size=32, seed=6))
    assert not {sha for _, sha in drawn} & {sha for _, sha in other}


@pytest.mark.parametrize(
    "options", [{"per_class": 0}, {"per_class": 1.5}, {"per_class": "6"}, {"size": 32.0}, {"size": 8}, {"size": 5000}]
)
def test_bad_options_are_named(tmp_path, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
        sketches.build(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_drawings_are_neither_trivial_nor_hopeless(tmp_path):
    """Nearest mean of edge pictures, on other senders' drawings: well above chance, well below perfect."""
    drawn = datasets.load("sketches", root=tmp_path, per_class=40, size=48)
    edges, labels = {}, {}
    for part in ("train", "test"):
        rows = drawn.part(part)
        grey = np.stack([photo.read_photo(path, 16) for path in rows["path"]]).mean(-1)
        steps = np.abs(np.diff(grey, axis=1))[:, :, :-1] + np.abs(np.diff(grey, axis=2))[:, :-1]
        edges[part] = (steps / steps.std((1, 2), keepdims=True)).reshape(len(rows), -1)
        labels[part] = rows["label"].to_numpy()
    means = np.stack([edges["train"][labels["train"] == label].mean(0) for label in drawn.classes])
    nearest = ((edges["test"][:, None] - means) ** 2).sum(-1).argmin(1)
    accuracy = (np.array(drawn.classes)[nearest] == labels["test"]).mean()
    assert 0.25 < accuracy < 0.9
