"""Work that is killed with `kill -9` at random moments, meets a full disk or a read-only folder, and is started again.

    python tests/killed_work.py --kills 160

kinds: a results write, a conversion, a notebook run (training has `tests/interruptions.py`). After every
kill the target is absent, or whole; in the end it is what an undisturbed run leaves. Prints a line a kind and one JSON
line; exit code 1 where anything differs, or where full disks could not be tried (that needs root).
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

SHARES = {"results": 8, "conversion": 1, "notebook": 1}


def write_results(folder):
    """The same record again and again, and a last one: a reader may come at any moment."""
    from study import results

    for number in range(60):
        rows = [{"id": str(number), "status": "measured", "accuracy": 0.5}] * 200
        results.write("01_data_and_training", {"SEED": 0}, {"rows": rows}, "quick", "clothing-10", folder)


def convert(folder):
    """A small network as int8, with its JSON."""
    import quantization_models

    from utils import quantization

    data = quantization.convert(quantization_models.network(), "int8", quantization_models.photos())
    quantization.save(folder / "small.tflite", data, quantization_models.CLASSES, scheme="int8", source="a test")


def run_notebook(folder):
    """A notebook of two cells, executed and written."""
    import nbformat

    from study import notebooks as run_notebooks
    from utils import files

    cells = [nbformat.v4.new_code_cell(source) for source in ("a = 6", "print(a * 7)")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    run_notebooks.execute(notebook, "small", "1/1", folder)
    files.write_text(folder / "small.ipynb", nbformat.writes(run_notebooks.tidy(notebook)))


WORK = {"results": write_results, "conversion": convert, "notebook": run_notebook}


def state(kind, folder):
    """What a reader finds: None, or a digest of the whole target.

    Raises:
        Exception: the reader takes the target for damaged.
    """
    if kind == "results":
        from study import results

        path = folder / "01_data_and_training.json"
        return results.read("01_data_and_training", folder)["metrics"]["rows"][0]["id"] if path.exists() else None
    name = {"conversion": "small.tflite", "notebook": "small.ipynb"}[kind]
    path = folder / name
    if not path.exists():
        return None
    if kind == "conversion":
        from utils.classify.interpreter import TFLiteModel

        TFLiteModel(path, num_threads=1)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def start(kind, folder):
    """The work as a process that leads a group of its own, with everything that it starts."""
    command = [sys.executable, __file__, "--work", kind, "--folder", str(folder)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def survive(kind, kills, rng):
    """Kill the work so often and look at what is left; returns figures."""
    told = {"kind": kind, "kills": 0, "starts": 0, "ended": 0, "different": 0, "damaged": 0, "leftovers": 0}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder, mark = pathlib.Path(place) / "whole", time.perf_counter()
        folder.mkdir()
        child = start(kind, folder)
        if child.communicate()[1] and child.returncode:
            raise RuntimeError(f"the undisturbed {kind} failed")
        longest, wanted, names = (
            time.perf_counter() - mark,
            state(kind, folder),
            {path.name for path in folder.iterdir()},
        )
        while told["kills"] < kills:
            folder = pathlib.Path(place) / f"try-{told['starts']}"
            folder.mkdir()
            for attempt in range(6):
                child = start(kind, folder)
                told["starts"] += 1
                if attempt < 5 and told["kills"] < kills:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(rng.uniform(0.2, 1.05) * longest)
                alive = child.poll() is None and attempt < 5 and told["kills"] < kills
                if alive:
                    os.killpg(child.pid, signal.SIGKILL)
                    told["kills"] += 1
                child.communicate()
                try:
                    found = state(kind, folder)
                    if kind != "results" and found not in (None, wanted):
                        told["different"] += 1
                except Exception as error:
                    print(f"{kind}: {error}")
                    told["damaged"] += 1
                if not alive:
                    break
            told["ended"] += 1
            told["different"] += state(kind, folder) != wanted
            # the parts of killed writes may lie beside the target, under names that no reader takes for it
            told["leftovers"] += any(
                not name.startswith(".") for name in {path.name for path in folder.iterdir()} - names
            )
    return told | {"seconds": round(time.perf_counter() - began, 1)}


def without_room(kind):
    """The work on a full and on a read-only disk; returns figures, or None where a disk cannot be mounted."""
    told = {"kind": f"{kind}, full or read-only disk", "tried": 0, "unnamed": 0, "damaged": 0, "different": 0}
    with tempfile.TemporaryDirectory() as place:
        (pathlib.Path(place) / "whole").mkdir()
        start(kind, pathlib.Path(place) / "whole").communicate()
        wanted = state(kind, pathlib.Path(place) / "whole")
        disk = pathlib.Path(place) / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", disk], capture_output=True).returncode:
            return None
        try:
            (disk / "filler").write_bytes(bytes(12 * 1024))
            for options in ("size=12k", "size=10m,ro"):
                subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)
                child = start(kind, disk)
                said = child.communicate()[1].strip().splitlines()
                told["tried"] += 1
                last = said[-1] if said else ""
                sentence = str(disk) in last and any(word in last for word in ("No space", "Read-only", "Errno"))
                if child.returncode == 0 or not sentence:
                    print(f"{kind} said: {last[:200]!r}")
                    told["unnamed"] += 1
                try:
                    told["different"] += state(kind, disk) not in (None, wanted)
                except Exception as error:
                    print(f"{kind}: {error}")
                    told["damaged"] += 1
            subprocess.run(["mount", "-o", "remount,size=10m,rw", disk], check=True)
            start(kind, disk).communicate()
            told["different"] += state(kind, disk) != wanted
        finally:
            subprocess.run(["umount", "-l", disk], check=False)
    return told


def main(arguments=None):
    """Command line; returns 1 where something was lost, taken for whole, or could not be tried."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=160, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        WORK[options.work](options.folder)
        return 0
    rng, rows, bad = random.Random(options.seed), [], 0
    whole = sum(SHARES[kind] for kind in options.kinds)
    for kind in options.kinds:
        for row in (survive(kind, -(-options.kills * SHARES[kind] // whole), rng), without_room(kind)):
            if row is None:
                print(f"{kind}: full and read-only disks were NOT tried: mounting needs root")
                bad += 1
                continue
            rows.append(row)
            bad += sum(row.get(key, 0) for key in ("different", "damaged", "unnamed", "leftovers"))
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(json.dumps({"kills": sum(row.get("kills", 0) for row in rows), "bad": bad, "rows": rows}))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
