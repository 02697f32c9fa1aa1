"""`.tflite` files that others made: those of MediaPipe's wheel, fetched from the package registry once."""

import functools
import os
import subprocess
import sys
import zipfile

import pytest

from utils import files

MEDIAPIPE = "mediapipe==0.10.14"  # the last releases carry no files; its dependencies clash with ours, so no install


@functools.cache
def mediapipe():
    """name -> bytes of the .tflite files; where the registry cannot be reached CI fails, and others skip and say so."""

    def download(folder):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
        target = ["--python-version=3.11", "--platform=manylinux2014_x86_64", MEDIAPIPE]
        done = subprocess.run([*command, folder, *target], capture_output=True, text=True, check=False)
        if done.returncode:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {MEDIAPIPE}: {done.stderr[-300:]}")

    folder = files.build_once(files.cache_dir() / MEDIAPIPE, download)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".tflite")]
        return {name.rsplit("/", 1)[-1]: wheel.read(name) for name in names}
