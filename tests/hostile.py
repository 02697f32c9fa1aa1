"""Thousands of damaged and hostile files, each in front of the reader that would meet it, in processes that may die.

    python tests/hostile.py --count 10000

prints, by kind of file: inputs tried, accepted, refused by one sentence that names the file, and what must not be
(crashes, hangs, other errors), with the peak memory; one JSON line at the end; exit code 1 where anything must not be.
A bit that flips inside a photo's pixels or a model's weights leaves a valid file: accepting it is right. A bare .tflite
without the JSON that names its SHA-256 reaches LiteRT's native code, which ends the process on a few of them: these are
counted as crashes of the kind "tflite" and are no failure of this script; with the JSON ("shipped") none gets so far.
"""

import argparse
import functools
import hashlib
import io
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

PATIENCE_S = 30  # without a verdict: the reader hangs
MEMORY_MB = 2_500  # TensorFlow alone takes a third of it
SHARES = {
    "jpeg": 20,
    "png": 15,
    "webp": 15,
    "csv": 15,
    "pth": 15,
    "results": 8,
    "labels": 4,
    "tflite": 4,
    "shipped": 4,
    "macs": 2,
    "keras": 2,
}

NATIVE = ("tflite",)  # kinds whose bytes reach native code with nothing to check them against


def mutate(data, rng):
    """`data` with bits flipped, cut off, or a part overwritten, doubled or made of zeros; never as it was."""
    changed = data
    while changed == data:
        kind, copy = rng.integers(0, 6), bytearray(data)
        start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 65))
        if kind == 0:
            del copy[start:]
        elif kind in (1, 2):
            for place in rng.integers(0, len(data), rng.integers(1, 9)):
                copy[place] ^= 1 << rng.integers(0, 8)
        elif kind == 3:
            copy[start : start + length] = rng.bytes(length)
        elif kind == 4:
            copy[start:start] = copy[start : start + length]
        else:
            copy[start : start + length] = bytes(length)
        changed = bytes(copy)
    return changed


def picture(kind):
    """A small photo as bytes."""
    from PIL import Image

    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(stream, kind, quality=80)
    return stream.getvalue()


INDEX = "image,sender_id,label,kids\n" + "".join(
    f"a-{i},{i % 7},{'Hat' if i % 2 else 'Dress'},False\n" for i in range(40)
)


def csv_trick(rng):
    """A table that is wrong in one of the ways tables are wrong in."""
    tricks = (
        INDEX.replace("label", "class"), "\ufeff" + INDEX, INDEX.replace(",", ";"), INDEX + "a-1,3,Hat,False\n",
        INDEX + "../../etc/passwd,3,Hat,False\n", INDEX + "/etc/passwd,3,Hat,False\n", INDEX + "x\n", "", "\n\n",
        INDEX.replace("False", "maybe"), INDEX * 2, INDEX.replace("\n", "\r\n"), INDEX + '"open,3,Hat,False\n',
    )  # fmt: skip
    return tricks[rng.integers(0, len(tricks))].encode()


def result_record():
    """A record as a notebook writes it."""
    from study import results

    with tempfile.TemporaryDirectory() as folder:
        rows = [{"id": "x", "title": "x", "status": "measured", "n": 4, "accuracy": 0.5}]
        path = results.write("01_data_and_training", {"SEED": 0}, {"rows": rows}, "quick", "clothing-10", folder)
        return path.read_bytes()


@functools.cache
def seeds(kind):
    """The whole file that is damaged."""
    if kind in ("jpeg", "png", "webp"):
        return picture(kind.upper())
    if kind == "csv":
        return INDEX.encode()
    if kind == "results":
        return result_record()
    if kind == "labels":
        return (HERE.parent / "models" / "clothing-10-int8.json").read_bytes()
    if kind == "pth":
        from test_torch_weights import small

        return small()
    import quantization_models

    if kind == "shipped":
        return (HERE.parent / "models" / "clothing-10-int8.tflite").read_bytes()
    if kind in ("tflite", "macs"):
        return quantization_models.files()["int8"]
    from utils.models import saved_models

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        saved_models.save(quantization_models.network(), path)
        return path.read_bytes()


def reader(kind):
    """(ending, function of a path): what a user's file of this kind meets."""
    if kind in ("jpeg", "png", "webp"):
        from utils.classify.photo import read_photo

        # the ending does not decide: some are called by another kind's name
        return {"jpeg": ".jpg", "png": ".jpg", "webp": ".webp"}[kind], lambda path: read_photo(path, 32)
    if kind == "csv":
        from utils.datasets import audit

        return ".csv", audit.read_index
    if kind == "results":
        from study import results

        return ".json", lambda path: results.read("01_data_and_training", path.parent)
    if kind == "labels":
        from utils.classify import interpreter as tflite_model

        return ".tflite", tflite_model.read_description
    if kind == "pth":
        from utils.models.torch_weights import read_state_dict

        return ".pth", read_state_dict
    if kind == "macs":
        from utils import flops

        return ".tflite", flops.count_tflite
    if kind in ("tflite", "shipped"):
        from utils.classify.interpreter import TFLiteModel

        def run(path):
            model = TFLiteModel(path, num_threads=1)
            return model(np.zeros((1, *model.input_size, 3), np.uint8))

        return ".tflite", run
    from utils.models import saved_models

    return ".keras", saved_models.load


def work(kind, seed, start, count, folder):
    """Try inputs `start` .. `count` - 1; a line before and after each, so that a death tells its input."""
    ending, read = reader(kind)
    name = "01_data_and_training" if kind == "results" else "input"
    path = pathlib.Path(folder) / f"{name}{ending}"
    target = path.with_suffix(".json") if kind == "labels" else path
    whole = seeds(kind)
    if kind == "shipped":  # as quantization.save leaves it: the JSON beside a file names its SHA-256
        path.with_suffix(".json").write_text(json.dumps({"sha256": hashlib.sha256(whole).hexdigest()}))
    for number in range(start, count):
        rng = np.random.default_rng([seed, number, len(kind)])
        data = csv_trick(rng) if kind == "csv" and number % 3 == 0 else mutate(whole, rng)
        target.write_bytes(data)
        print(f"try {number}", flush=True)
        try:
            read(path)
            verdict = "accepted"
        except (ValueError, FileNotFoundError) as error:
            named = target.name in str(error) or path.name in str(error)
            verdict = "refused" if named else f"unnamed {type(error).__name__}: {error!s:.150}"
        except BaseException as error:
            verdict = f"wrong {type(error).__name__}: {error!s:.150}"
        print(f"verdict {' '.join(verdict.split())}", flush=True)
    print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}", flush=True)


def supervise(kind, count, seed, folder):
    """Run the worker of a kind to its end, however often it dies; returns the figures."""
    told = {"tried": 0, "accepted": 0, "refused": 0, "crashes": 0, "hangs": 0, "other": 0, "memory_mb": 0}
    examples, started, start = [], time.perf_counter(), 0
    while start < count:
        command = [sys.executable, __file__, "--worker", kind, "--seed", str(seed), "--start", str(start)]
        child = subprocess.Popen(
            [*command, "--count", str(count), "--folder", str(folder)], stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        heard, hung = [time.monotonic()], []

        def watch(child=child, heard=heard, hung=hung):
            while child.poll() is None:
                if time.monotonic() - heard[0] > 4 * PATIENCE_S or (
                    len(heard) > 1 and time.monotonic() - heard[0] > PATIENCE_S
                ):
                    hung.append(True)
                    child.kill()
                time.sleep(0.2)

        threading.Thread(target=watch, daemon=True).start()
        number = start - 1
        waiting = False
        for line in child.stdout:
            heard[0] = time.monotonic()
            word, _, rest = line.strip().partition(" ")
            if word == "try":
                number, waiting = int(rest), True
                heard.append(0)
            elif word == "verdict":
                told["tried"] += 1
                waiting = False
                told[rest if rest in ("accepted", "refused") else "other"] += 1
                if rest not in ("accepted", "refused"):
                    examples.append(f"{kind} {number}: {rest}")
            elif word == "memory":
                told["memory_mb"] = max(told["memory_mb"], int(rest))
        code = child.wait()
        if not waiting and code == 0:
            break
        if not waiting:
            raise RuntimeError(f"the worker of {kind} ended with {code} between inputs; run it by hand: {command}")
        told["tried"] += 1
        told["hangs" if hung else "crashes"] += 1
        examples.append(f"{kind} {number}: {'hung' if hung else f'died with {code}'}")
        start = number + 1
    return {"kind": kind, **told, "seconds": round(time.perf_counter() - started, 1)}, examples


def main(arguments=None):
    """Command line; returns 1 where anything crashed, hung, or raised what it should not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--worker", choices=SHARES, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.worker, options.seed, options.start, options.count, options.folder)
        return 0
    whole = sum(SHARES[kind] for kind in options.kinds)
    rows, examples = [], []
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            row, found = supervise(kind, -(-options.count * SHARES[kind] // whole), options.seed, folder)
        rows.append(row)
        examples += found
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    for line in examples[:40]:
        print(line)
    total = {
        key: sum(row[key] for row in rows) for key in ("tried", "accepted", "refused", "crashes", "hangs", "other")
    }
    total["memory_mb"] = max(row["memory_mb"] for row in rows)
    print(json.dumps(total))
    known = sum(row["crashes"] for row in rows if row["kind"] in NATIVE)
    bad = total["crashes"] - known + total["hangs"] + total["other"]
    return int(bool(bad) or total["memory_mb"] > MEMORY_MB)


if __name__ == "__main__":
    sys.exit(main())
