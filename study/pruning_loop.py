"""Study A's pruning loop: score importance, remove the least, fine-tune, repeat until the target is reached.

The study described it and did not run it. Here it runs over single weights (:mod:`utils.pruning`) or over whole
expansion channels (:mod:`utils.pruning.channels`). Every round removes the same share of what is left, as Han et al.
2015 (arXiv:1506.02626) prune iteratively, and is kept on disk, so that an interrupted loop goes on.
"""

import dataclasses
import hashlib
import json
import pathlib

import keras
import pandas as pd

from utils import files
from utils.pruning import fine_tune, gzip_bytes, prune, sparsity_report, steps_of
from utils.pruning.channels import find_blocks, prune_channels
from utils.pruning.magnitude import check_share, prunable

KINDS = ("weights", "channels")


@dataclasses.dataclass(frozen=True, repr=False)
class PruningLoop:
    """What the loop did.

    Attributes:
        model: the last round's Keras model.
        kind: "weights" or "channels".
        rounds: DataFrame, one row a round, round 0 being the model as given: round, removed (share of the prunable
            weights, or of the expansion channels), parameters, nonzero_weights (kernels), macs, gzip_bytes (float32
            weights), before_tuning and score (what `score` said before and after fine-tuning; NaN without it).
    """

    model: keras.Model
    kind: str
    rounds: pd.DataFrame

    def to_frame(self):
        """The table of rounds."""
        return self.rounds

    def __repr__(self):
        return f"Pruning loop over {self.kind}, {len(self.rounds) - 1} rounds\n{self.rounds.to_string(index=False)}"

    def _repr_html_(self):
        return self.rounds.to_html(index=False)


def iterative_prune(
    model, train_batches, target, rounds=4, kind="weights", epochs=1, score=None, importance="l1", folder=None,
    norm_photos=None, **tuning,
):  # fmt: skip
    """Score, remove, fine-tune, repeat until `target` of the weights or channels are gone.

    After round i of n the share 1 - (1 - target)^(i / n) is removed.

    Args:
        model: a built Keras 3 classifier; it is copied, not changed.
        train_batches: (images, labels) batches, see `pruning.fine_tune`.
        target: share to remove in the end, in [0, 1).
        rounds: how many, 1 or more.
        kind: "weights" (magnitudes) or "channels" (expansion channels; the target is met up to multiples of 8).
        epochs: of fine-tuning in each round.
        score: function of a model that returns a number (validation accuracy, say), for the table.
        importance: of channels, "l1" or "gamma".
        folder: where every round is kept; calling again with the same arguments goes on after the last one there.
        norm_photos: photos by which batch-norm statistics follow each removal, see `pruning.fine_tune`.
        tuning: learning_rate, steps_per_epoch, loss, verbose for `pruning.fine_tune`.

    Returns:
        PruningLoop.

    Raises:
        ValueError: target outside [0, 1), fewer than one round, unknown kind, nothing to prune, or a folder that
            holds another loop.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, activation="softmax")])
        >>> loop = iterative_prune(model, [], 0.75, rounds=2, epochs=0)
        >>> loop.rounds["removed"].round(2).tolist()
        [0.0, 0.5, 0.75]
    """
    check_share(target, "target")
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; give 1 or more")
    whole = _size(model, kind)
    plan = {"target": target, "rounds": rounds, "kind": kind, "epochs": epochs, "importance": importance}
    plan["norm_photos"] = 0 if norm_photos is None else len(norm_photos)
    plan["steps"] = steps_of(train_batches, tuning.get("steps_per_epoch")) if epochs else 0
    store = _Store(folder, {**plan, "tuning": repr(sorted(tuning.items())), "model": _fingerprint(model)})
    tuning["norm_photos"] = norm_photos
    current, rows = store.load(model)
    if not rows:
        value = _value(score, model)
        rows.append(_row(0, 0.0, model, value, value))
    for number in range(len(rows), rounds + 1):
        due = 1 - (1 - target) ** (number / rounds)
        if kind == "weights":
            smaller = prune(current, train_batches, due, epochs=0, norm_photos=norm_photos).model
            before = _value(score, smaller)
            # the masks have to hold while the weights are tuned, so the loop prunes again with training
            current = prune(current, train_batches, due, epochs, "one_shot", **tuning).model if epochs else smaller
            removed = 1 - _size(current, kind) / whole
        else:
            fraction = max(1 - (1 - due) * whole / _size(current, kind), 0.0)
            current = prune_channels(current, fraction).model
            fine_tune(current, [], 0, norm_photos=norm_photos)  # trains nothing: statistics only
            before = _value(score, current)
            if epochs:
                fine_tune(current, train_batches, epochs, **tuning)
            removed = 1 - _size(current, kind) / whole
        rows.append(_row(number, removed, current, before, _value(score, current)))
        store.save(current, rows)
    return PruningLoop(current, kind, pd.DataFrame(rows))


def _size(model, kind):
    """Prunable weights that are not zero, or expansion channels."""
    if kind == "channels":
        return sum(block.channels for block in find_blocks(model))
    report = sparsity_report(model)
    if not report["prunable"].any():
        prunable(model)  # says what is missing
    return int(report.loc[report["prunable"], "nonzero"].sum())


def _row(number, removed, model, before, after):
    from utils import flops

    report = flops.count(model, unsupported="ignore")
    return {
        "round": number, "removed": float(removed), "parameters": int(model.count_params()),
        "nonzero_weights": int(sparsity_report(model)["nonzero"].sum()), "macs": int(report.total_macs),
        "gzip_bytes": gzip_bytes(model), "before_tuning": before, "score": after,
    }  # fmt: skip


def _value(score, model):
    return float("nan") if score is None else float(score(model))


def _fingerprint(model):
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]


class _Store:
    """The last round on disk: a Keras file, then the table that names it (written last, so that it is never ahead)."""

    def __init__(self, folder, plan):
        self.folder = None if folder is None else pathlib.Path(folder)
        self.plan = plan

    def load(self, model):
        if self.folder is None or not (self.folder / "loop.json").exists():
            return model, []
        found = files.read_json(self.folder / "loop.json")
        if found.get("plan") != json.loads(json.dumps(self.plan)):
            raise ValueError(f"{self.folder} holds another pruning loop; delete it, or choose another folder")
        rows = [
            {name: float("nan") if value is None else value for name, value in row.items()} for row in found["rows"]
        ]
        path = self.folder / found["model"]
        if not path.is_file():
            raise ValueError(f"{path} of the interrupted loop is gone; delete {self.folder} to start again")
        return keras.saving.load_model(path, compile=False), rows

    def save(self, model, rows):
        if self.folder is None:
            return
        name = f"round_{len(rows) - 1}.keras"
        with files.atomic_path(self.folder / name) as part:
            model.save(part)
        plain = [{key: None if value != value else value for key, value in row.items()} for row in rows]
        files.write_json(self.folder / "loop.json", {"plan": self.plan, "model": name, "rows": plain})
        for old in self.folder.glob("round_*.keras"):
            if old.name != name:
                old.unlink()
