"""What a number was measured with: machine, versions, threads. Imports none of the packages that it names."""

import contextlib
import functools
import importlib.metadata
import os
import pathlib
import platform
import sys
import warnings

PACKAGES = (
    "tensorflow", "keras", "numpy", "pandas", "scikit-learn", "ai-edge-litert", "ai-edge-quantizer", "keras-flops",
)  # fmt: skip


@functools.cache
def cpu_name():
    """The processor's name with its vector extensions that matter to inference, e.g. "AMD EPYC (AVX2)"."""
    name, flags = platform.processor() or platform.machine(), ""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":") for line in reversed(cpuinfo.read_text(errors="replace").splitlines())]
        facts = {key.strip(): value.strip() for key, _, value in lines}  # of the first core
        name, flags = facts.get("model name", name), facts.get("flags", "").split()
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI"}
    marks = [mark for flag, mark in known.items() if flag in flags]
    return f"{name} ({', '.join(marks)})" if marks else name


def memory_gib():
    """Physical memory in GiB, or None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def versions():
    """Installed versions of PACKAGES; those that are not installed are left out."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe():
    """The environment as a flat dictionary fit for JSON: processor, cores, memory, system, Python and packages.

    Example:
        >>> list(describe())[:3]
        ['cpu', 'cores', 'memory_gib']
    """
    return {
        "cpu": cpu_name(),
        "cores": _cores(),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions(),
    }


def sentence():
    """One line for captions: "AMD EPYC (AVX2), 2 cores, 23.5 GiB, TensorFlow 2.21.0, Keras 3.15.1"."""
    facts = describe()
    parts = [facts["cpu"], f"{facts['cores']} cores"]
    if facts["memory_gib"]:
        parts.append(f"{facts['memory_gib']} GiB")
    parts += [
        f"{label} {facts[key]}" for key, label in (("tensorflow", "TensorFlow"), ("keras", "Keras")) if key in facts
    ]
    return ", ".join(parts)


def default_threads():
    """The cores that this process may use, at most 4."""
    return min(_cores(), 4)


@contextlib.contextmanager
def quiet():
    """Hold back what Python and C++ code print (file descriptors 1 and 2); warnings are ignored too.

    Errors are raised as ever; only the noise of converters and delegates goes. While the block runs, output of other
    threads is lost as well.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    sink = _sink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
        finally:
            for target, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, target)
                os.close(descriptor)


@functools.cache
def _sink():
    # never closed: a library that is imported inside the block may keep a log handler on it
    return pathlib.Path(os.devnull).open("w")
