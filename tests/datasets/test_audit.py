"""The index of photos and what is wrong with a folder: each defect is found, named, and costs nothing else."""

import json
import os
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils.datasets import audit, sketches

HEADER = "image,sender_id,label,kids\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOTHING_CACHE_DIR", str(tmp_path / "cache"))


def index(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "images.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_good_index(tmp_path, encoding, newline):
    text = HEADER + 'a-1,7,T-Shirt,True\nb-2,8,"Not sure",False\n\nc,9, Hat ,\n'
    frame = audit.read_index(index(tmp_path, text.replace("\n", newline), encoding))
    assert frame["id"].tolist() == ["a-1", "b-2", "c"]
    assert frame["sender"].tolist() == ["7", "8", "9"]
    assert frame["label"].tolist() == ["T-Shirt", "Not sure", "Hat"]
    assert frame["kids"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read as a table of photos"),
        (HEADER, "has no rows"),
        ("image,label,kids\na,Hat,True\n", "has no column sender_id; expected commas .*, got 'image, label, kids'"),
        (HEADER.replace(",", ";") + "a;7;Hat;True\n", "has no column image, .* got 'image;sender_id"),
        (HEADER + "b,7,Hat,True\na,7,Hat,True,8,9\n", "cannot be read as a table"),
        (HEADER + "a,7,Hat,True\na,8,Hat,True\n", "row 2: expected an id that no other row has"),
        (HEADER + "../a,7,Hat,True\n", "row 1: expected an id of letters.*, got '../a,7,Hat,True'"),
        (HEADER + "/etc/passwd,7,Hat,True\n", "expected an id of letters"),
        (HEADER + "a,7,,True\n", "row 1: expected a label and a sender"),
        (HEADER + "a,,Hat,True\n", "row 1: expected a label and a sender"),
        (HEADER + "a,7,Hat,maybe\n", "expected True or False as kids"),
        (HEADER + 'a,7,"Hat,True\n', "cannot be read as a table"),
        (HEADER.encode() + b"a,7,\xff\xfe,True\n", "expected UTF-8 CSV"),
        (HEADER.encode("utf-16"), "expected UTF-8 CSV"),
        (b"\x00" * 100, "has no column image"),
    ],
)
def test_a_bad_index_is_named(tmp_path, text, reason):
    path = index(tmp_path, text)
    with pytest.raises(ValueError, match=reason) as caught:
        audit.read_index(path)
    assert str(path) in str(caught.value)


def test_an_index_that_is_not_there_or_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no CSV file"):
        audit.read_index(tmp_path / "images.csv")
    with pytest.raises(ValueError, match=r"cannot be read as a table of photos \(.*directory"):
        audit.read_index(tmp_path)


def looks(monkeypatch, seconds=0):
    """The photos that are looked at from now on, in a list that grows."""
    looked, look = [], audit._look
    monkeypatch.setattr(audit, "_look", lambda path: looked.append(path) or time.sleep(seconds) or look(path))
    return looked


@pytest.fixture
def photos(tmp_path):
    """Seven files of a folder, with each defect."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (30, 20, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "good.jpg")
    (folder / "twin.jpg").write_bytes((folder / "good.jpg").read_bytes())
    (folder / "half.jpg").write_bytes((folder / "good.jpg").read_bytes()[:300])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no photo")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.jpg")
    Image.fromarray(pixels).convert("CMYK").save(folder / "print.jpg")
    return sorted(folder.iterdir())


def test_check_photos_finds_each_defect(photos):
    facts = audit.check_photos(photos, photos[0].parent).set_axis([path.stem for path in photos])
    good = facts.loc["good"]
    assert (good["width"], good["height"], good["mode"], good["format"], good["problem"]) == (20, 30, "RGB", "JPEG", "")
    assert facts.loc[["good", "grey", "print", "twin"], "problem"].eq("").all()
    assert "runcated" in facts.loc["half", "problem"]
    assert facts.loc["empty", "problem"] == "it is empty"
    assert facts.loc["text", "problem"].startswith("expected JPEG")
    assert facts.loc[["grey", "print"], "mode"].tolist() == ["L", "CMYK"]
    twins = audit.twins(facts.assign(id=facts.index, label="Hat"))
    assert twins["id"].tolist() == ["good", "twin"]


def test_a_picture_saved_again_is_a_twin_and_another_is_not(tmp_path):
    first, other = (sketches.draw(label, "style-1", 200, 3) for label in ("shirt", "outwear"))
    first.save(tmp_path / "a.png")
    first.save(tmp_path / "b.jpg", quality=40)
    first.resize((90, 90)).save(tmp_path / "c.webp", quality=70)
    first.point(lambda value: min(255, int(1.15 * value))).save(tmp_path / "d.jpg")
    other.save(tmp_path / "e.png")
    (tmp_path / "f.jpg").write_text("no photo")
    (tmp_path / "g.jpg").write_text("no photo either")
    looks = audit.check_photos(sorted(tmp_path.glob("*.*")), tmp_path)["look"]
    assert audit.picture_twins(looks.tolist()).tolist() == [0, 0, 0, 0, 1, 2, 3]
    names = audit.twin_names(pd.Series(list("abcdefg")), looks)
    assert names == ["a"] * 4 + [""] * 3
    assert audit.picture_twins([]).tolist() == []


def test_photos_are_looked_at_once(photos, monkeypatch):
    first = audit.check_photos(photos, photos[0].parent)
    looked = looks(monkeypatch)
    assert audit.check_photos(photos, photos[0].parent).equals(first)
    assert looked == []
    os.utime(photos[0], (1, 1))  # changed: looked at again
    audit.check_photos(photos, photos[0].parent)
    assert looked == photos[:1]


def test_ctrl_c_ends_the_check_at_once_and_goes_on_where_it_was(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number:03}.jpg" for number in range(300)]
    for path in paths:
        path.write_text("no photo")

    def stopped(facts, *_, **__):
        for number, fact in enumerate(facts):
            if number == 20:
                raise KeyboardInterrupt
            yield fact

    with monkeypatch.context() as patch:
        looked = looks(patch, seconds=0.01)
        patch.setattr(audit, "tqdm", stopped)
        with pytest.raises(KeyboardInterrupt):
            audit.check_photos(paths, tmp_path)
    assert len(looked) < 200
    looked = looks(monkeypatch)
    assert len(audit.check_photos(paths, tmp_path)) == 300
    assert sorted(looked) == paths[20:]


def test_what_is_remembered_costs_only_time_where_it_is_damaged_or_cannot_be_written(
    photos, tmp_path, monkeypatch, caplog
):
    first = audit.check_photos(photos, photos[0].parent)
    (memory,) = (tmp_path / "cache").iterdir()
    known = json.loads(memory.read_text())
    older = {"version": 0, "photos": {name: facts[:2] + ["?"] * 8 for name, facts in known["photos"].items()}}
    for damage in ("", "{", json.dumps(older)):
        memory.write_text(damage)
        assert audit.check_photos(photos, photos[0].parent).equals(first)
    monkeypatch.setenv("CLOTHING_CACHE_DIR", str(memory / "cache"))
    assert audit.check_photos(photos, photos[0].parent).equals(first)
    assert "is not remembered" in caplog.text
