"""Trainings in processes of their own: twice, over two devices, killed at random moments. Prints what each left.

TensorFlow is imported once, before the forks; none of it runs in the process that forks.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import keras
import tensorflow as tf
import tiny_training

from utils.training import loop, run

flush = os.fsync
config = tiny_training.config(
    epochs=8, dropout=0.0, class_weights=True, augment="light", schedule="cosine", seed=3, batch_size=8
)


def train(name, told_of_epochs):
    tf.config.experimental.enable_op_determinism()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = None
    if name == "two":
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.HierarchicalCopyAllReduce())
    os.fsync = lambda descriptor: (time.sleep(0.05), flush(descriptor))  # so that kills fall into writes too
    told = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: os.write(told_of_epochs, b"."))  # once it is kept
    done = loop.train(config, photos, folder=folder / name, strategy=strategy, verbose=0, callbacks=[told])
    weights = run.read_arrays(done.folder / "weights.npz")
    left = {
        "history": done.history.drop(columns="seconds").to_dict("records"),
        "best_epoch": done.best_epoch,
        "files": sorted(path.name for path in done.folder.iterdir()),
        "weights": {layer: values.tolist() for layer, values in weights.items()},
    }
    (folder / f"{name}.json").write_text(json.dumps(left))


def start(name):
    """The process that trains, and a file descriptor with a byte for each epoch that it has kept."""
    epochs, writer = os.pipe()
    if not (child := os.fork()):
        try:
            train(name, writer)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    return child, epochs


def end(*started):
    for child, _ in started:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


if __name__ == "__main__":  # pytest imports every file in search of examples
    folder = pathlib.Path(sys.argv[1])
    photos = tiny_training.squares(folder / "photos", per_class=(8, 5, 0))
    os.environ["CLOTHING_CACHE_DIR"] = str(folder / "cache")
    tiny_training.add_backbone(dict.__setitem__, setattr)
    end(start("once"))
    moments, killed, number = random.Random(3), [], 1
    while len(killed) < 3:
        child, epochs = start(f"killed-{number}")
        os.read(epochs, 1)
        time.sleep(moments.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            killed.append(f"killed-{number}")  # the next one goes on with the same run
        else:
            number += 1
    end(*map(start, {*killed, "again", "two"}))
    print(json.dumps({path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}))
