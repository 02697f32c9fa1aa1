"""Your own photos: the folders that people really have, each with an answer or one sentence."""

import os
import pathlib
import shutil
import unicodedata
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils import datasets
from utils.classify import photo
from utils.datasets import pipeline, sketches, splits

KINDS = {".jpg": "JPEG", ".JPG": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".WebP": "WEBP"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLOTHING_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def save(path, number=0, label="hat", kind="JPEG", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sketches.draw(label, f"style-{number % 7}", 96, number)
    image.save(path, kind, **options)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three classes of 20 phone photos in a folder with a space and an umlaut, by four people."""
    root = tmp_path_factory.mktemp("drawn") / "Röcke & mehr"
    for label in ("hat", "shoes", "skirt"):
        for number in range(20):
            ending, person = list(KINDS)[number % 5], ("anna", "ben", "carla", "dora")[number % 4]
            save(root / label / f"{person} {number}{ending}", number, label, KINDS[ending])
    return root


@pytest.fixture
def mine(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / drawn.name)


def quiet(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return datasets.from_folder(path, **options)


def found(dataset, step):
    return dataset.report().to_frame().loc[step]


def by_name(path):
    return path.stem.split()[0]


def test_a_folder_of_phone_photos_is_split_at_random_and_says_what_that_means(mine):
    with pytest.warns(UserWarning, match=r"nobody said who took the photos \(senders=\).*both sides"):
        loaded = datasets.from_folder(mine)
    assert (loaded.classes, loaded.split, loaded.name) == (("hat", "shoes", "skirt"), "random", mine.name)
    assert loaded.distribution().to_numpy().tolist() == [[14, 3, 3]] * 3
    splits.check(loaded.frame, loaded.allowed_leaks)
    assert list(loaded.frame) == list(quiet(mine).frame) and loaded.frame["id"].is_unique
    assert pipeline.load_images(loaded.part("test"), 16).shape == (9, 16, 16, 3)
    assert {os.path.relpath(path, mine) for path in loaded.frame["path"]} == set(loaded.frame["id"])


def test_with_people_nobody_is_on_two_sides(mine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = datasets.from_folder(mine, senders=by_name)
    assert loaded.split == "grouped" and set(loaded.frame["sender"]) == {"anna", "ben", "carla", "dora"}
    splits.check(loaded.frame)
    assert (loaded.distribution() > 0).all(axis=None)
    mixed = quiet(mine, senders=by_name, split="random")
    assert mixed.allowed_leaks == ("sender",)
    with pytest.raises(splits.SplitLeak):
        splits.check(mixed.frame)
    with pytest.raises(ValueError, match="needs 3 senders or more, got 2; use the random split"):
        datasets.from_folder(mine, senders=lambda path: by_name(path) < "b")
    half = quiet(mine, senders=lambda path: "anna" if "anna" in path.name else None)  # others count by themselves
    assert found(half, "photos whose sender is unknown")["found"] == 45 and half.frame["sender"].nunique() == 46


@pytest.mark.parametrize(
    ("below", "key"),
    [(".", lambda p: f"{p.parent.name}/{p.name}"), ("hat", lambda p: p.name), ("hat", lambda p: p.stem)],
)
def test_people_come_from_a_column_of_a_csv(mine, tmp_path, below, key):
    photos = sorted((mine / below).rglob("*.*"))
    table = pd.DataFrame({"note": "x", "Foto": map(key, photos), "who": map(by_name, photos)})
    table.to_csv(tmp_path / "people.csv", index=False)
    loaded = quiet(mine, senders=(tmp_path / "people.csv", "who"))
    known = loaded.frame[~loaded.frame["sender"].str.startswith("unknown-")]
    assert len(known) >= 20 and (known["sender"] == [by_name(pathlib.Path(path)) for path in known["path"]]).all()
    for senders, reason in (
        ((tmp_path / "people.csv", "person"), "needs the column 'person', got note, Foto, who"),
        ((tmp_path / "people.csv", "Foto"), "no column of .*people.csv names the photos"),
        ((tmp_path / "gone.csv", "who"), "there is no CSV file"),
        ("people.csv", r"senders must be a function or \(CSV file, column\), got 'people.csv'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            datasets.from_folder(mine, senders=senders)


def test_a_csv_that_names_two_people_for_a_photo_is_refused_and_commas_at_the_end_are_no_column(mine, tmp_path):
    photos, table = sorted(mine.rglob("*.*")), tmp_path / "people.csv"
    table.write_text("file,who\n" + "".join(f"{path.name},{by_name(path)} of {path.parent.name}\n" for path in photos))
    with pytest.raises(ValueError, match=r"must name one person for hat/anna 0\.jpg, got anna of hat and"):
        datasets.from_folder(mine, senders=(table, "who"))
    lines = [f"{path.parent.name}/{path.name},{by_name(path)},\n" for path in photos]
    table.write_text("file,who\n" + "".join(lines + lines[:3]) + "hat/anna 0.jpg,,\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        loaded = datasets.from_folder(mine, senders=(table, "who"))
    assert loaded.frame["sender"].tolist() == [by_name(pathlib.Path(path)) for path in loaded.frame["path"]]


def test_a_function_that_finds_nobody_may_say_so_as_pandas_does(mine):
    for nobody in (float("nan"), pd.NA, None, ""):
        loaded = quiet(mine, senders=lambda path, nobody=nobody: nobody if "anna" in path.name else by_name(path))
        assert found(loaded, "photos whose sender is unknown")["found"] == 15


def test_names_of_another_system_mean_the_same(mine, tmp_path):
    decomposed = unicodedata.normalize("NFD", "Ümlaut")  # as macOS writes it
    for number in range(12):
        save(mine / decomposed / f"{decomposed} {number}.png", 90 + number, "dress", "PNG")
    (tmp_path / "people.csv").write_text(
        "who,file\n" + "".join(f"p{n % 4},Ümlaut\\Ümlaut {n}.png\n" for n in range(12)), encoding="utf-8"
    )
    loaded = quiet(mine, senders=(tmp_path / "people.csv", "who"), split="random")
    assert "Ümlaut" in loaded.classes
    assert set(loaded.frame.loc[loaded.frame["label"] == "Ümlaut", "sender"]) == {"p0", "p1", "p2", "p3"}


def test_what_is_wrong_is_named_by_file_name_and_costs_nothing_else(mine):
    (mine / "notes.txt").write_text("shopping list")
    (mine / "hat" / "readme.md").write_text("hats")
    (mine / "hat" / ".hidden.jpg").write_bytes(b"x")
    (mine / "__MACOSX" / "hat").mkdir(parents=True)
    (mine / "__MACOSX" / "hat" / "a.jpg").write_bytes(b"x")
    (mine / "gloves").mkdir()
    (mine / "boots").mkdir()
    (mine / "boots" / "a.jpg").write_bytes(b"x")
    (mine / "hat" / "broken.jpg").write_bytes((mine / "hat" / "anna 0.jpg").read_bytes()[:500])
    shutil.copyfile(mine / "hat" / "anna 0.jpg", mine / "hat" / "copy of anna.jpg")
    shutil.copyfile(mine / "hat" / "ben 1.JPG", mine / "shoes" / "which.jpg")
    with Image.open(mine / "skirt" / "anna 0.jpg") as image:
        image.resize((60, 60)).save(mine / "skirt" / "smaller.png")
    for number in range(5):
        save(mine / "Ümlaut" / f"{number}.png", 90 + number, "dress", "PNG")
    with pytest.warns(UserWarning) as told:
        loaded = datasets.from_folder(mine)
    said = "\n".join(str(warning.message) for warning in told)
    assert "2 files cannot be read as photos and are left out (boots/a.jpg, hat/broken.jpg)" in said
    assert "no photo of boots is left, so it is no class any more" in said
    assert "2 copies of a file lie under two labels and are left out (hat/ben 1.JPG, shoes/which.jpg)" in said
    assert "fewer than 10 photos: Ümlaut (5)" in said
    assert found(loaded, "files that are not photos").tolist() == [2, "not used", "hat/readme.md, notes.txt"]
    assert found(loaded, "classes without photos")["details"] == "gloves"
    assert "hat/broken.jpg: " in found(loaded, "files that cannot be read as photos")["details"]
    assert found(loaded, "copies of a file")["details"] == "hat/copy of anna.jpg"
    twins = loaded.frame[loaded.frame["twin"].ne("")]
    assert set(twins["id"]) == {"skirt/anna 0.jpg", "skirt/smaller.png"} and len(set(twins["split"])) == 1
    assert loaded.distribution().loc["Ümlaut"].tolist() == [3, 1, 1]
    assert len(loaded.frame) == 60 - 1 + 1 + 5
    assert "hat/copy of anna.jpg" in repr(loaded.report())


def test_links_are_followed_and_what_is_no_file_is_passed_over(mine, tmp_path):
    whole = quiet(mine)
    shutil.move(mine / "hat", tmp_path / "elsewhere")
    (mine / "hat").symlink_to(tmp_path / "elsewhere")
    (mine / "shoes" / "up").symlink_to("..")
    for name, other in ("ab", "ba"):  # each leads into the other
        (mine / "shoes" / name).mkdir()
        (mine / "shoes" / name / "on").symlink_to(f"../{other}")
    shutil.move(mine / "shoes" / "anna 0.jpg", mine / "shoes" / "a")
    (mine / "shoes" / "gone.jpg").symlink_to("nowhere.jpg")
    (mine / "shoes" / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(mine / "shoes" / "pipe.jpg")  # reading it would wait for ever
    loaded = quiet(mine)
    assert loaded.fingerprint == whole.fingerprint and found(loaded, "copies of a file")["found"] == 1
    told = found(loaded, "files that are not photos")
    assert told["details"] == "shoes/gone.jpg, shoes/loop.jpg, shoes/pipe.jpg"


def test_a_folder_that_cannot_be_read_and_a_name_that_is_no_text_are_named(mine, monkeypatch):
    def scandir(path, real=os.scandir):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (mine / "hat" / "private").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match=r"hat/private cannot be read \(Permission denied\); it is left out"):
        assert len(datasets.from_folder(mine).frame) == 60
    save(mine / "hat" / os.fsdecode(b"caf\xe9.jpg"), 90)
    with pytest.raises(ValueError, match=r"must be UTF-8, got .*caf\\udce9\.jpg'; rename it"):
        datasets.from_folder(mine)


@pytest.mark.parametrize("names", [("Training", "Testing"), ("training_set", "test_set")])
def test_parts_under_other_names_are_no_classes(mine, tmp_path, names):
    for part in names:
        shutil.copytree(mine, tmp_path / "set" / part)
    with pytest.raises(ValueError, match=r"no photos in .*validation; add them, or divide anew with split='random'"):
        datasets.from_folder(tmp_path / "set")


def test_train_validation_and_test_stay_as_they_lie(mine, tmp_path):
    for path in sorted(mine.rglob("*.*")):
        part = {0: "Test", 1: "val"}.get(int(path.stem.split()[1]) % 5, "train")
        (tmp_path / "parts" / part / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / "parts" / part / path.parent.name / path.name)
    shutil.copyfile(tmp_path / "parts/Test/hat/anna 0.jpg", tmp_path / "parts/train/hat/again.jpg")
    loaded = quiet(tmp_path / "parts")
    assert loaded.split == "folders" and loaded.distribution().to_numpy().tolist() == [[12, 4, 4]] * 3
    assert "again" not in " ".join(loaded.frame["id"])  # of two copies the one that is tested on stays
    with pytest.warns(UserWarning, match="4 senders stand on two sides"):
        assert datasets.from_folder(tmp_path / "parts", senders=by_name).allowed_leaks == ("sender",)
    assert quiet(tmp_path / "parts", split="random").distribution().to_numpy().tolist() == [[14, 3, 3]] * 3
    (tmp_path / "parts" / "__MACOSX").mkdir()
    save(tmp_path / "parts" / "drafts" / "hat" / "a.jpg", 500)
    again = quiet(tmp_path / "parts")  # "train" beside "Test" is no class, whatever lies there too
    assert again.classes == loaded.classes and found(again, "files that are not photos")["found"] == 1
    shutil.rmtree(tmp_path / "parts" / "val")
    with pytest.raises(ValueError, match=r"no photos in .*validation; add them, or divide anew with split='random'"):
        datasets.from_folder(tmp_path / "parts")


def test_the_fingerprint_follows_content_labels_and_choice_and_not_names(mine, tmp_path):
    first = quiet(mine)
    moved = shutil.copytree(mine, tmp_path / "moved")
    for number, path in enumerate(sorted(moved.rglob("*.*"))):
        path.rename(path.with_name(f"{1000 - number}{path.suffix}"))
    assert quiet(moved).fingerprint == first.fingerprint
    assert quiet(moved, seed=1).fingerprint != first.fingerprint
    (moved / "hat").rename(moved / "x"), (moved / "shoes").rename(moved / "hat"), (moved / "x").rename(moved / "shoes")
    assert quiet(moved).fingerprint != first.fingerprint  # two labels exchanged
    save(mine / "hat" / "anna 0.jpg", 500)
    assert quiet(mine).fingerprint != first.fingerprint  # another photo under an old name
    few = quiet(mine, per_class=12)
    assert few.frame["label"].value_counts().tolist() == [12, 12, 12]
    assert found(few, "photos above 12 per class")["found"] == 24
    assert few.fingerprint == quiet(mine, per_class=12).fingerprint


def test_heic_and_avif_are_read_or_named_without_a_reader(mine, monkeypatch):
    import pillow_heif

    for number, ending in enumerate((".HEIC", ".heif", ".avif")):
        image = sketches.draw("hat", "style-1", 96, 70 + number)
        target = mine / "hat" / f"phone {number}{ending}"
        if ending == ".avif":
            image.save(target, "AVIF", quality=90)
        else:
            pillow_heif.from_pillow(image).save(target, quality=90)
        assert np.abs(photo.read_photo(target, 96).astype(int) - np.asarray(image)).mean() < 6
    loaded = quiet(mine)
    assert len(loaded.frame) == 63 and found(loaded, "files that cannot be read as photos")["found"] == 0
    monkeypatch.setattr(photo, "_phone_formats", lambda: ())
    (mine / "a.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(40))
    with pytest.raises(ValueError, match=r"a\.heic cannot be decoded as a photo \(.*with pillow-heif\) HEIC"):
        photo.read_photo(mine / "a.heic", 16)


def test_a_read_only_folder_is_only_read(mine):
    for folder in (mine, *(path for path in mine.iterdir())):
        folder.chmod(0o555)
    before = sorted(str(path) for path in mine.rglob("*"))
    assert len(quiet(mine).frame) == 60
    assert sorted(str(path) for path in mine.rglob("*")) == before
    for folder in (mine, *(path for path in mine.iterdir())):
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"split": "fair"}, "split must be 'folders', 'grouped', 'random' or None, got 'fair'"),
        ({"split": "grouped"}, "a grouped split needs senders, got None"),
        ({"split": "folders"}, "needs the folders train, validation and test, got none of them"),
        ({"per_class": 0}, "per_class must be a positive integer, got 0"),
        ({"per_class": 2.5}, "per_class must be a positive integer, got 2.5"),
        ({"seed": "1"}, "seed must be an integer from 0 to 4294967295, got '1'"),
        ({"seed": -1}, "seed must be an integer from 0 to 4294967295, got -1"),
    ],
)
def test_options_that_do_not_fit_are_named(drawn, options, reason):
    with pytest.raises(ValueError, match=reason):
        datasets.from_folder(drawn, **options)


def test_folders_with_nothing_to_learn_from_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*one folder of photos per class"):
        datasets.from_folder(tmp_path / "gone")
    for photo_to_add, reason in (
        (None, "expected <class>/<photo> or train/<class>/<photo>, got nothing"),
        ("loose.jpg", r"got loose\.jpg"),
        ("hat/a.jpg", "two classes or more, got hat in"),
        ("hat/inner/c.jpg", r"got hat in .*; if the classes are the folders inside hat, pass .*hat$"),
    ):
        if photo_to_add:
            save(tmp_path / photo_to_add, len(photo_to_add))
        with pytest.raises(ValueError, match=reason):
            datasets.from_folder(tmp_path)
    (tmp_path / "shoes").mkdir()
    (tmp_path / "shoes" / "b.jpg").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(ValueError, match="two classes or more"):
        datasets.from_folder(tmp_path)
