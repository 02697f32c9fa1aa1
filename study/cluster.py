"""Independent trainings on a Dask cluster: recipes go out, run folders come back as bytes; no shared disk is needed.

Scheduler and workers run in checkouts of this commit. A worker finds or fetches the photos, trains under its own
``runs/cluster/`` (a second try on that machine goes on from the last epoch), and sends the finished folder as a zip.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import pathlib
import re
import secrets
import socket
import subprocess
import sys
import threading
import zipfile

from utils import files

INSTALL = "pip install distributed==2026.8.0"
DONE = "finished run: "


@contextlib.contextmanager
def connect(address):
    """A Dask client of the scheduler at `address`, such as ``tcp://host:8786``.

    ``local:N`` starts N worker processes of one thread on this machine for the time of the block. Raises LookupError
    without the package `distributed`, ValueError for what is no address, ConnectionError where no scheduler answers.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as error:
        raise LookupError(f"--cluster needs the package distributed ({error}); {INSTALL}") from error
    with contextlib.ExitStack() as opened:
        if address.startswith("local:"):
            if not re.fullmatch(r"local:[1-9]\d*", address):
                raise ValueError(f"--cluster must be local:N with N worker processes of at least 1, got {address!r}")
            cluster = distributed.LocalCluster(
                int(address.removeprefix("local:")), threads_per_worker=1, memory_limit=None, dashboard_address=":0"
            )
            address = opened.enter_context(cluster).scheduler_address
        try:
            client = opened.enter_context(distributed.Client(address, timeout=10))
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"no Dask scheduler answers at {address} ({error}); start one with "
                "python -m distributed.cli.dask_scheduler, or pass --cluster local:2"
            ) from error
        if not client.scheduler_info()["workers"]:
            print(f"no worker yet; in a checkout of this commit: python -m distributed.cli.dask_worker {address}")
        yield client


def train(client, jobs, folder=None):
    """Train on the cluster what is not finished here; each run folder appears whole or not at all.

    A task whose worker is lost goes to another worker. A training that fails does not stop the others; the ValueError
    at the end names each with its reason.

    Args:
        client: of :func:`connect`.
        jobs: list of (RunConfig, Dataset, dictionary of arguments for ``datasets.load`` that gives this Dataset; with
            "fold", arguments of ``folds.fold_of`` that give this FoldDataset of it).
        folder: folder of the runs; default as in ``training.train``.

    Returns:
        list of finished Runs, in the order of `jobs`.
    """
    from distributed import as_completed
    from tqdm import tqdm

    from utils import training

    home, ours, futures, failed = files.runs_dir(folder), sources(), {}, []
    names = [config.run_id_for(dataset.fingerprint) for config, dataset, _ in jobs]
    for name, (config, dataset, load) in dict(zip(names, jobs, strict=True)).items():
        if training.find_finished(name, home) is None:
            what = config.to_dict(), load, str(dataset.fingerprint), ours
            futures[client.submit(work, *what, key=f"{name}-{secrets.token_hex(4)}", pure=False)] = name
    with tqdm(total=len(futures), desc="trainings", unit="run") as bar:
        for future in as_completed(futures):
            if future.status == "finished":
                _unpack(home / futures[future], future.result())
            else:
                error = future.exception() if future.status == "error" else future.status
                failed.append(f"{futures[future]}: {error}")
            future.release()
            bar.update()
    if failed:
        raise ValueError(f"{len(failed)} of {len(futures)} trainings failed; " + "; ".join(failed))
    return [training.load(name, home) for name in names]


def work(config, load, fingerprint, expected):
    """Train one run in a process of its own and return its folder's files as a zip; this is what a worker does.

    Dask's threads draw from Python's global random numbers, so a training among them would not be repeatable. `config`
    and `load` are plain JSON; `fingerprint` and `expected` are of the caller's photos and of the caller's `sources`.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "study.cluster", json.dumps([config, load, fingerprint, expected])],
        cwd=files.PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = child.stdout.read().splitlines()
    if child.wait():
        raise ValueError(f"on {socket.gethostname()}: {said[-1] if said else f'exit code {child.returncode}'}")
    (folder,) = [line.removeprefix(DONE) for line in said if line.startswith(DONE)]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # stored: the weights are compressed already
        for path in sorted(pathlib.Path(folder).glob("[!.]*")):
            archive.write(path, path.name)
    return packed.getvalue()


def _train(config, load, fingerprint, expected):
    """The process of one training: prints its folder, and ends when the worker that holds its input ends."""
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
    if sources() != expected:
        raise ValueError("the sources of utils here are not the caller's; check out the same commit")
    from utils import datasets, training

    fold = load.pop("fold", None)
    dataset = datasets.load(**load)
    if fold:
        from study import folds

        dataset = folds.fold_of(dataset, **fold)
    if str(dataset.fingerprint) != fingerprint:
        raise ValueError(f"the photos here are {dataset.fingerprint}, the caller's {fingerprint}")
    config, home = training.RunConfig.from_dict(config), files.runs_dir() / "cluster"
    print(f"\n{DONE}{training.train(config, dataset, folder=home, verbose=0, shipped=False).folder}")


def sources():
    """SHA-256 over the Python files of ``utils``: what a training's result rests on besides recipe and photos."""
    digest = hashlib.sha256()
    for path in sorted((files.PROJECT / "utils").rglob("*.py")):
        digest.update(path.relative_to(files.PROJECT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _unpack(folder, data):
    if folder.is_dir():  # an interrupted training of this run; nothing of it is lost
        folder.rename(folder.with_name(f"{folder.name}.old-{secrets.token_hex(4)}"))
    files.build_once(folder, lambda part: zipfile.ZipFile(io.BytesIO(data)).extractall(part))


if __name__ == "__main__":
    _train(*json.loads(sys.argv[1]))
