"""The published 3.2 s: one EfficientNetB0 in float32, dynamic range and int8 under the runtimes of 2020 to 2023.

    python -m benchmarks.bench_old_runtimes --python /path/to/python3.8             # 15 minutes, 10 GB of disk
    python -m benchmarks.bench_old_runtimes --sittings 1 --versions 2.4.4 2.12.0    # a quick try
    python -m benchmarks.bench_old_runtimes --fresh --record                        # also results/old_runtimes.json

Each TensorFlow gets an environment of its own under build/runtimes/, made once; today's LiteRT is this project's.
TensorFlow 2.4.4 makes the files (17 classes, 224 pixels, random weights: they do not change the time). Its dynamic
range has one range per channel. That of 2.3.4 is added: one range per tensor, and depthwise convolutions in float32.
What a runtime cannot run is named; 2.3.4 runs neither kind of dynamic range.

A sitting goes through all runtimes in random order. Each is a process that calls the files in turn, by the plain Python
interpreter with the kernels that it chooses, on one thread. Times are CPU milliseconds, because other work on the
machine changes them least; run it on a quiet machine all the same. Ratios refer to float32 in the same process, and
ranges reach over sittings. What was timed is kept: the same command continues where it was interrupted.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

# The processes of the old environments run this file too: only Python 3.8 and its standard library up here.
ROOT = pathlib.Path(__file__).resolve().parent.parent
SCHEMES = ("float32", "dynamic_range", "dynamic_range_per_tensor", "int8")
MAKERS = {"2.4.4": ("float32", "dynamic_range", "int8"), "2.3.4": ("dynamic_range_per_tensor",)}
# TensorFlow -> the newest NumPy and protobuf that it works with
PINS = {
    "2.3.4": ("1.18.5", "3.19.6"), "2.4.4": ("1.19.5", "3.19.6"), "2.5.3": ("1.19.5", "3.19.6"),
    "2.6.5": ("1.19.5", "3.19.6"), "2.7.4": ("1.21.6", "3.19.6"), "2.8.4": ("1.21.6", "3.19.6"),
    "2.9.3": ("1.21.6", "3.19.6"), "2.10.1": ("1.21.6", "3.19.6"), "2.11.1": ("1.23.5", "3.19.6"),
    "2.12.0": ("1.23.5", "3.20.3"),
}  # fmt: skip
LITERT = "LiteRT"
CLASSES, SIDE, WARMUP = 17, 224, 2


def make_files(folder):
    """Run by each of MAKERS: its files."""
    import numpy as np
    import tensorflow as tf

    tf.random.set_seed(0)
    model = tf.keras.applications.EfficientNetB0(weights=None, classes=CLASSES)
    photos = np.random.RandomState(0).uniform(0, 255, (2, 1, SIDE, SIDE, 3)).astype("float32")
    for scheme in MAKERS[tf.__version__]:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if scheme != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if scheme == "int8":
            converter.representative_dataset = lambda: ([photo] for photo in photos)
        part = folder / f"{scheme}.part"
        part.write_bytes(converter.convert())
        part.replace(folder / f"{scheme}.tflite")


def time_files(folder, calls):
    """Run by each runtime: {"version", "times": {scheme: [[wall ms, CPU ms], one a call]}, "not_run": [schemes]}."""
    import numpy as np

    try:
        import importlib.metadata

        from ai_edge_litert.interpreter import Interpreter

        version = importlib.metadata.version("ai-edge-litert")
    except ImportError:
        import tensorflow as tf

        Interpreter, version = tf.lite.Interpreter, tf.__version__

    photo = np.random.RandomState(0).uniform(0, 255, (1, SIDE, SIDE, 3)).astype("float32")

    def call(interpreter):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], photo)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    times, interpreters, not_run = {}, {}, []
    for scheme in SCHEMES:
        content = (folder / f"{scheme}.tflite").read_bytes()
        try:
            # left out, TensorFlow 2.10 to 2.12 compute float32 in part on a second thread
            interpreter = Interpreter(model_content=content, num_threads=1)
            interpreter.allocate_tensors()
            call(interpreter)  # the first warm-up: an operator that a runtime does not know may fail only here
        except (RuntimeError, ValueError):
            not_run.append(scheme)
        else:
            times[scheme], interpreters[scheme] = [], interpreter
    for turn in range(WARMUP - 1 + calls):
        for scheme, interpreter in interpreters.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call(interpreter)
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= WARMUP - 1:
                times[scheme].append([round(1000 * seconds, 3) for seconds in spent])
    return {"version": version, "times": times, "not_run": not_run}


def find_python(given=None):
    """A Python 3.8 that starts: the old wheels exist for no newer one."""
    python = given or shutil.which("python3.8")
    try:
        done = subprocess.run([python or "", "--version"], capture_output=True, text=True, check=False)
        told = (done.stdout or done.stderr).strip().partition("\n")[0]
    except OSError as error:
        told = str(error)
    if python is None or not told.startswith("Python 3.8."):
        raise ValueError(
            f"expected a Python 3.8 for the old wheels, got {python or 'none on PATH'} ({told}); "
            "pass --python /path/to/python3.8"
        )
    return python


def environment_of(version, folder, python=None):
    """The Python of a version's own environment, which is made where it is not there or has other pins."""
    if version == LITERT:
        return sys.executable
    numpy, protobuf = PINS[version]
    packages = [f"tensorflow-cpu=={version}", f"numpy=={numpy}", f"protobuf=={protobuf}"]
    home, ready = folder / version, folder / version / ".ready"
    if not ready.exists() or ready.read_text().split() != packages:
        print(f"installing {' '.join(packages)}", flush=True)
        subprocess.run([find_python(python), "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(home / "bin" / "pip"), "install", "--quiet", "--no-cache-dir", *packages], check=True)
        ready.write_text(" ".join(packages))
    return str(home / "bin" / "python")


def run(python, *arguments):
    """This file in another environment, apart from the caller's PYTHONPATH; its last line of output as JSON."""
    done = subprocess.run(
        [python, "-I", str(pathlib.Path(__file__).resolve()), *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{python} {' '.join(map(str, arguments))} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder, versions, sittings, calls, python=None):
    """All raw sittings: one dictionary a process, with sitting, runtime, version, load, times.

    What sittings.jsonl holds of this processor, these files and this number of calls is not measured again.
    """
    from utils import environment

    files, kept = folder / "files", folder / "sittings.jsonl"
    pythons = {version: environment_of(version, folder, python) for version in versions}
    files.mkdir(parents=True, exist_ok=True)
    for version, schemes in MAKERS.items():
        if not all((files / f"{scheme}.tflite").exists() for scheme in schemes):
            print(f"TensorFlow {version} makes {', '.join(schemes)}", flush=True)
            run(environment_of(version, folder, python), "--make", files)
    made = [(files / f"{scheme}.tflite").stat().st_mtime for scheme in SCHEMES]
    same = {"cpu": environment.cpu_name(), "calls": calls, "files": made}
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    lines = [line for line in lines if all(line[key] == value for key, value in same.items())]
    for sitting in range(sittings):
        done = {line["runtime"] for line in lines if line["sitting"] == sitting}
        for version in random.sample(versions, len(versions)):
            if version in done:
                continue
            load = os.getloadavg()[0]
            line = {"sitting": sitting, "runtime": version, "load": load, **same,
                    **run(pythons[version], "--time", files, "--calls", calls)}  # fmt: skip
            check_threads(line)
            lines.append(line)
            with kept.open("a") as file:
                file.write(json.dumps(line) + "\n")
            middle = {name: round(statistics.median(cpu for _, cpu in times)) for name, times in line["times"].items()}
            print(f"sitting {sitting + 1}, {version}, load {load:.1f}, CPU ms: {middle}", flush=True)
    return [line for line in lines if line["runtime"] in versions and line["sitting"] < sittings]


def check_threads(line):
    """CPU time beyond wall time means several threads. A busy machine hides them: it lengthens wall time alone."""
    for scheme, times in line["times"].items():
        wall, cpu = (sum(column) for column in zip(*times))  # noqa: B905 - Python 3.8 has no strict
        if cpu > 1.1 * wall:
            raise RuntimeError(f"{line['runtime']} {scheme}: expected one thread, got {cpu / wall:.1f} busy at once")


def summarize(lines):
    """Rows of the record from raw sittings.

    A sitting's time is the median of its calls, its ratio that of this median to float32's in the same process. Times
    and ratios are medians over sittings, low and high the least and the greatest sitting.

    Returns:
        list of dict: runtime, version, scheme, calls, sittings, median_cpu_ms, cpu_ms_low, cpu_ms_high, cpu_ms (one a
        sitting), median_wall_ms, ratio_to_float32, ratio_low, ratio_high.
    """
    rows = []
    for runtime in (*PINS, LITERT):
        own = sorted((line for line in lines if line["runtime"] == runtime), key=lambda line: line["sitting"])
        for scheme in own[0]["times"] if own else ():
            cpu, ratios, walls = [], [], []
            for line in own:
                middle = {name: statistics.median(spent for _, spent in of) for name, of in line["times"].items()}
                cpu.append(middle[scheme])
                ratios.append(middle[scheme] / middle["float32"])
                walls.append(statistics.median(wall for wall, _ in line["times"][scheme]))
            rows.append({
                "runtime": LITERT if runtime == LITERT else "TensorFlow", "version": own[0]["version"],
                "scheme": scheme, "calls": sum(len(line["times"][scheme]) for line in own), "sittings": len(own),
                "median_cpu_ms": statistics.median(cpu), "cpu_ms_low": min(cpu), "cpu_ms_high": max(cpu),
                "cpu_ms": cpu, "median_wall_ms": statistics.median(walls),
                "ratio_to_float32": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
            })  # fmt: skip
    return rows


def metrics_of(lines):
    """The `metrics` of results/old_runtimes.json from raw sittings; `load` is the load average as a process starts."""
    loads = [line["load"] for line in lines]
    measured = {line["runtime"] for line in lines}
    return {
        "runtimes": summarize(lines),
        "not_run": {line["runtime"]: line["not_run"] for line in lines if line["not_run"]},
        "file_made_by": {scheme: f"TensorFlow {version}" for version, names in MAKERS.items() for scheme in names},
        "weights": "random",
        "classes": CLASSES,
        "input_size": SIDE,
        "cpu": lines[0]["cpu"],
        "load": {"median": statistics.median(loads), "low": min(loads), "high": max(loads)},
        "pins": {
            version: {"numpy": numpy, "protobuf": protobuf}
            for version, (numpy, protobuf) in PINS.items() if version in measured
        },
    }  # fmt: skip


def text_of(metrics):
    """The rows as a table for a terminal."""
    lines = [f"{'runtime':<18}{'scheme':<26}{'CPU ms':>8}{'low':>8}{'high':>8}{'ratio':>8}{'low':>8}{'high':>8}"]
    for row in metrics["runtimes"]:
        lines.append(
            f"{row['runtime'] + ' ' + row['version']:<18}{row['scheme']:<26}{row['median_cpu_ms']:>8.0f}"
            f"{row['cpu_ms_low']:>8.0f}{row['cpu_ms_high']:>8.0f}{row['ratio_to_float32']:>8.2f}"
            f"{row['ratio_low']:>8.2f}{row['ratio_high']:>8.2f}"
        )
    load = metrics["load"]
    note = f"{metrics['cpu']}, load average {load['median']:.1f} ({load['low']:.1f} to {load['high']:.1f}), one thread"
    return "\n".join([*lines, note])


def parse(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_old_runtimes", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    names = [*PINS, LITERT]
    parser.add_argument("--python", help="a Python 3.8 for the old environments; without it the python3.8 on PATH")
    parser.add_argument("--versions", nargs="+", choices=names, default=names, metavar="VERSION", help=", ".join(names))
    parser.add_argument("--sittings", type=int, default=3)
    parser.add_argument("--calls", type=int, default=5, help="timed calls of each file in each sitting")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build" / "runtimes", help="for all it makes")
    parser.add_argument("--fresh", action="store_true", help="forget the sittings that were timed before")
    parser.add_argument("--record", action="store_true", help="write results/old_runtimes.json")
    parser.add_argument("--make", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--time", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    for name in ("sittings", "calls"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be a positive integer, got {getattr(options, name)}")
    if options.record and (options.sittings < 3 or set(options.versions) != set(names)):
        parser.error("--record needs all versions and at least 3 sittings; leave --versions and --sittings out")
    return options


def main(argv=None):
    options = parse(argv)
    if options.make or options.time:
        print(json.dumps(make_files(options.make) if options.make else time_files(options.time, options.calls)))
        return 0
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        (folder / "sittings.jsonl").unlink(missing_ok=True)
    if os.getloadavg()[0] > 0.5:
        print(f"other work keeps this machine busy (load average {os.getloadavg()[0]:.1f}); a quiet one is better")
    try:
        lines = measure(folder, options.versions, options.sittings, options.calls, options.python)
    except (ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    metrics = metrics_of(lines)
    print(text_of(metrics))
    if options.record:
        from study import records

        parameters = {"sittings": options.sittings, "calls": options.calls}
        print(f"wrote {records.write('old_runtimes', parameters, metrics, 'none', records.RESULTS).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
