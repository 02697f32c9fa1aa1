"""Work that is killed with SIGKILL at random moments and started again, until it is done.

    python tests/interruptions.py --kills 200

trains tiny runs under such kills and compares each with an undisturbed one; it prints its figures as one JSON line and
ends with 1 if a run came out differently. :func:`survive` serves any other work.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Survived:
    """How often the work was started and killed, and how long one undisturbed process of it took at most."""

    starts: int = 0
    kills: int = 0


def survive(work, rng, longest_s, kills=10**9, patience=10_000):
    """Run `work` in forked processes, killing each at a random moment, until one of them ends by itself.

    Args:
        work: callable without arguments; the process must not have used TensorFlow before (forked threads are lost).
        rng: random.Random, of the moments.
        longest_s: kills come after 0 to so many seconds.
        kills: after so many, the next process is left alone.
        patience: most processes to start.

    Returns:
        Survived.

    Raises:
        RuntimeError: a process ended with an error of its own, or patience was lost.
    """
    report = Survived()
    for _ in range(patience):
        report.starts += 1
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if report.kills < kills:
            deadline = time.monotonic() + rng.uniform(0, longest_s)
            while time.monotonic() < deadline:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    break
                time.sleep(0.002)
            else:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                report.kills += 1
                continue
        else:
            _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise RuntimeError("the work ended with an error of its own, see above")
        return report
    raise RuntimeError(f"not done after {patience} processes")


def slow_disk(seconds):
    """Make every flush to disk take longer, so that kills fall into writes more often than they would."""
    flush = os.fsync

    def slow(descriptor):
        time.sleep(seconds)
        flush(descriptor)

    os.fsync = slow


def run_again_and_again(kills, folder, seed=0, longest_s=None, modes=("fine_tune", "frozen")):
    """Train tiny runs under kills until there were `kills` of them; each run must equal an undisturbed one.

    Args:
        kills: how many.
        folder: an empty folder.
        seed: of the moments.
        longest_s: kills come after 0 to so many seconds; default: 1.2 times an undisturbed run.
        modes: of the runs, in turn.

    Returns:
        dict: kills, starts, runs, different (runs that did not equal the undisturbed one), leftovers (files that no
        state names), damaged (folders that were set aside).
    """
    import tiny_training

    folder, rng = pathlib.Path(folder), random.Random(seed)
    photos = tiny_training.squares(folder / "photos", per_class=(6, 3, 0))
    slow_disk(0.02)
    choices = {
        "fine_tune": {"augment": "light", "schedule": "cosine", "ema": 0.8, "mixup": 0.2, "epochs": 4},
        "frozen": {"epochs": 8},
        "scratch": {"epochs": 2, "model": "baseline_cnn", "input_size": 24},
    }
    total = {"kills": 0, "starts": 0, "runs": 0, "different": 0, "leftovers": 0, "damaged": 0}
    calm, took = {}, {}

    def work(config, runs):
        def train():
            os.environ["CLOTHING_CACHE_DIR"] = str(runs / "cache")
            tiny_training.add_backbone(dict.__setitem__, setattr)
            from utils import training

            training.train(config, photos, folder=runs, verbose=0)

        return train

    number = 0
    while total["kills"] < kills:
        mode = modes[number % len(modes)]
        config = tiny_training.config(mode, **choices[mode])
        run_id = config.run_id_for(photos.fingerprint)
        if mode not in calm:
            started = time.monotonic()
            survive(work(config, folder / f"calm-{mode}"), rng, 0, kills=0)
            took[mode] = time.monotonic() - started
            calm[mode] = json.loads((folder / f"calm-{mode}" / run_id / "state.json").read_text())
        runs = folder / f"runs-{number}"
        report = survive(work(config, runs), rng, longest_s or 1.2 * took[mode], kills=kills - total["kills"])
        state = json.loads((runs / run_id / "state.json").read_text())
        named = {entry["name"] for entry in state["files"].values()} | {"state.json"}
        total["kills"] += report.kills
        total["starts"] += report.starts
        total["runs"] += 1
        total["different"] += not same(calm[mode], state)
        total["leftovers"] += len({path.name for path in (runs / run_id).iterdir()} - named)
        total["damaged"] += len(list(runs.glob("*.damaged-*")))
        number += 1
    return total


def same(a, b, tolerance=1e-4):
    """Whether two finished states tell of the same training: the same epochs, none twice, metrics within tolerance."""
    if [a["status"], a["epochs_done"]] != [b["status"], b["epochs_done"]] or len(a["history"]) != len(b["history"]):
        return False
    return all(
        x["epoch"] == y["epoch"] == number + 1
        and all(abs(x[key] - y[key]) <= tolerance * max(1, abs(x[key])) for key in x if key != "seconds")
        for number, (x, y) in enumerate(zip(a["history"], b["history"], strict=True))
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description="Kill training at random moments; it must come out the same.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-s", type=float, default=None)
    parser.add_argument("--modes", nargs="+", default=["fine_tune", "frozen"])
    options = parser.parse_args(argv)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import utils.training.loop  # noqa: F401  imported once, before the forks; nothing of TensorFlow runs here

    with tempfile.TemporaryDirectory() as folder:
        total = run_again_and_again(options.kills, folder, options.seed, options.longest_s, options.modes)
    print(json.dumps(total))
    return int(any(total[key] for key in ("different", "leftovers", "damaged")))


if __name__ == "__main__":
    sys.exit(main())
