"""Trainings on a Dask cluster of processes on this machine give what they give without one, also when one is killed."""

import io
import os
import signal
import threading
import time
import zipfile

import numpy as np
import pytest
from conftest import ROOT

from study import cluster, folds
from study.__main__ import main
from utils import datasets, training

distributed = pytest.importorskip("distributed", reason="pip install -r tests/requirements.txt")


CONFIG = training.RunConfig(
    name="tiny", model="baseline_cnn", mode="scratch", input_size=32, batch_size=32, epochs=8, monitor="none"
)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    load = {"name": "sketches", "per_class": 12, "size": 32, "root": str(tmp_path_factory.mktemp("drawings"))}
    return datasets.load(**load), load


@pytest.fixture(scope="module")
def jobs(drawings):
    """The two folds of a cross-validation, as work for a cluster."""
    dataset, load = drawings
    parts = [{"number": number, "k": 2, "seed": 0, "tie": list(folds.TIE)} for number in (0, 1)]
    return [(CONFIG, folds.fold_of(dataset, **part), load | {"fold": part}) for part in parts]


@pytest.fixture(scope="module")
def plain(drawings, jobs, tmp_path_factory):
    """(judgements of the folds, their runs), trained in this process."""
    folder = tmp_path_factory.mktemp("plain")
    judged = folds.cross_validate(CONFIG, drawings[0], k=2, folder=folder, verbose=0)
    return judged, [training.load(CONFIG.run_id_for(photos.fingerprint), folder) for _, photos, _ in jobs]


def test_two_processes_give_the_same_folds_though_one_is_killed_in_the_middle(
    drawings, jobs, plain, tmp_path, monkeypatch
):
    monkeypatch.setenv("CLOTHING_RUNS_DIR", str(tmp_path / "worker"))  # the processes' own; the caller's is another
    killed, caller = [], tmp_path / "caller"

    def kill(client, pids):
        while not (found := sorted((tmp_path / "worker").glob("cluster/*/checkpoint.npz"))):
            time.sleep(0.02)
        name = found[0].parent.name
        (at,) = [where for where, keys in client.processing().items() if any(key.startswith(name) for key in keys)]
        os.kill(pids[at], signal.SIGKILL)
        killed.append((found[0].parent / "run.json").exists())

    def elsewhere(found):
        with cluster.connect("local:2") as client:
            killer = threading.Thread(target=kill, args=(client, client.run(os.getpid)), daemon=True)
            killer.start()
            work = [(run, photos, drawings[1] | {"fold": fold}) for run, photos, fold in found]
            runs = cluster.train(client, work, caller)
            killer.join()
        for one, other in zip(plain[1], runs, strict=True):
            assert other.folder.parent == caller and other.best_epoch == one.best_epoch
            assert other.files == one.files, "the same weights to the last bit, by their SHA-256"
            assert other.history.drop(columns="seconds").equals(one.history.drop(columns="seconds"))

    monkeypatch.setattr(training, "train", lambda run, photos, folder, **_: training.load(
        run.run_id_for(photos.fingerprint), folder))  # fmt: skip  # all folds were trained by the workers
    judged = folds.cross_validate(CONFIG, drawings[0], k=2, folder=caller, verbose=0, elsewhere=elsewhere)
    assert killed == [False], "it was killed while it trained"
    for kind, expected in plain[0].items():
        assert judged[kind].to_dict() == expected.to_dict()
        np.testing.assert_array_equal(judged[kind].evaluation.probabilities, expected.evaluation.probabilities)


def test_a_training_that_fails_is_named_and_the_others_are_kept(jobs, plain, tmp_path, monkeypatch):
    run, packed = plain[1][0], io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        [archive.write(path, path.name) for path in run.folder.iterdir() if not path.name.startswith(".")]

    def work(config, load, fingerprint, *_):
        if fingerprint == jobs[1][1].fingerprint:
            raise ValueError("on elsewhere: no space left")
        return packed.getvalue()

    monkeypatch.setattr(cluster, "work", work)
    half = tmp_path / "caller" / run.run_id
    half.mkdir(parents=True)
    (half / "checkpoint.npz").write_bytes(b"half")
    with distributed.LocalCluster(1, processes=False, dashboard_address=":0") as local, distributed.Client(local) as to:
        with pytest.raises(ValueError, match=r"1 of 2 trainings failed; tiny-.*on elsewhere: no space left"):
            cluster.train(to, jobs, tmp_path / "caller")
        assert cluster.train(to, jobs[:1], tmp_path / "caller")[0].files == run.files
    assert len(list((tmp_path / "caller").glob("*.old-*/checkpoint.npz"))) == 1, "what was there is not lost"


def test_a_worker_with_other_sources_or_photos_refuses(drawings):
    dataset, load = drawings
    with pytest.raises(ValueError, match="the sources of utils here are not the caller's"):
        cluster.work(CONFIG.to_dict(), load, dataset.fingerprint, "0" * 64)
    with pytest.raises(ValueError, match=r"the photos here are .*, the caller's another"):
        cluster.work(CONFIG.to_dict(), load, "another", cluster.sources())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("local:0", "--cluster must be local:N"),
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),
        ("nonsense", "no Dask scheduler answers at nonsense"),
    ],
)
def test_a_cluster_that_cannot_be_had_is_one_sentence(address, message, capsys, monkeypatch):
    monkeypatch.setattr(cluster.connect.__wrapped__, "__defaults__", (0.5,))
    assert main(["train", "a-baseline", "--data", "sketches", "--cluster", address]) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and "Traceback" not in "".join(said)


def test_without_the_package_it_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    assert main(["train", "a-baseline", "--data", "sketches", "--cluster", "local:2"]) == 2
    assert cluster.INSTALL in capsys.readouterr().err
    assert cluster.INSTALL.split()[-1] in (ROOT / "tests" / "requirements.txt").read_text()
