"""From runs and their evaluations to the rows of a record, and from records to the tables that notebooks show."""

import collections
import itertools

import pandas as pd

from study import claims, readme, records
from utils import files, flops, models, training
from utils.training import find_finished

PUBLISHED_F1 = {name: f1 for name, (_, _, f1) in claims.CLASSES.items()}
MINUTES = ("fine_tune", "scratch")  # modes that take more than two minutes on photos


def finished(row, dataset, retrain=False):
    """The finished run of a row: loaded where it ships or was trained before.

    On drawings, and for heads on frozen features, what is missing is trained at once; `retrain` trains it though it
    ships. A run of many minutes that is not here is a LookupError, which says which command trains it.
    """
    if retrain:
        return training.train(row.run, dataset, verbose=0, shipped=False)
    found = find_finished(row.run.run_id_for(dataset.fingerprint), files.runs_dir())
    if found is not None:
        return found
    if dataset.stand_in or row.run.mode not in MINUTES:
        return training.train(row.run, dataset, verbose=0)
    raise LookupError(f"{row.title} is not trained on these photos; python -m study train {row.id} trains it")


def judge(row, dataset, retrain=False):
    """The finished run of a row and its Evaluation on the test set, see :func:`finished`."""
    from utils import evaluation

    run = finished(row, dataset, retrain)
    return run, evaluation.evaluate(run.predict, dataset.part("test"), dataset.classes, name=row.title)


def best_by_validation(runs):
    """Name of the run with the highest validation accuracy (the first of equals); nothing is chosen on test."""
    return max(runs, key=lambda name: records.validation_accuracy(runs[name]))


def result_rows(rows, runs, verdicts, data, grouped=None):
    """The rows of `results/01_data_and_training.json`, in the order of the study: a list of dictionaries fit for JSON.

    Rows that this run did not load, and folds that it did not compute, stay as the committed record holds them
    (`recorded`).

    Args:
        rows, runs, verdicts: row id -> recipes.Row, Run, Evaluation on the test set.
        data: study ("A", "B") -> Dataset.
        grouped: (dataset name, model) -> GroupedCV of a frozen backbone with a linear probe, for the frozen rows; and
            row id -> GroupedCV of a fine-tuned one.
    """
    try:
        recorded = {line["id"]: line for line in records.read("01_data_and_training")["metrics"]["rows"]}
    except FileNotFoundError:
        recorded = {}
    lines = []
    for name, row in rows.items():
        old = {} if data[row.study].stand_in else recorded.get(name, {})
        if name in runs:
            line = _row(row, runs[name], verdicts[name], data[row.study]) | _folds(row, data[row.study], grouped or {})
            if "grouped" not in line and "grouped" in old and old["run_id"] == line["run_id"]:
                line["grouped"] = old["grouped"]
            lines.append(line)
        elif old:
            lines.append(old | {"recorded": True})
    return lines


def _folds(row, dataset, grouped):
    """Sender-grouped folds of the same recipe or frozen backbone, or why there are none."""
    from study import recipes

    conditions = "linear probe on the same frozen features"
    probed = row.run.mode == "frozen" and not row.run.views  # a probe on the plain photos stands for these alone
    found = grouped.get((dataset.name, row.run.model)) if probed else grouped.get(row.id)
    if found is None:
        apart = dataset.split == "grouped"
        return {"grouped_reason": "its own split is grouped by sender already" if apart else "not measured"}
    if row.run.mode != "frozen":
        run = recipes.folds()[row.id.replace("fine", "folds")].run
        length = "shortened to" if run.epochs < row.run.epochs else "with"
        conditions = f"the same recipe {length} {run.epochs} epochs per fold, the last one kept"
        if run.clip_norm != row.run.clip_norm:
            conditions += f", gradients at most {run.clip_norm:g} long"
    return {"grouped": found.to_dict() | {"conditions": conditions}}


def _row(row, run, verdict, dataset):
    cost = flops.count(run.architecture())
    return {
        "id": row.id, "title": row.title, "study": row.study, "dataset": dataset.name, "split": dataset.split,
        "protocol": f"{dataset.split} split", "classes": len(dataset.classes), "input_size": row.run.input_size,
        "model": row.run.model, "headline": not (row.run.balance_to or row.run.views),
        "published_accuracy": row.published, "conditions": row.note, "status": "measured",
        "params": int(cost.total_params), "macs": int(cost.total_macs), "flops": int(cost.total_flops),
        "n_train": run.n_train, "n_validation": run.n_validation,
        "validation_accuracy": records.validation_accuracy(run), "epochs": len(run.history),
        "best_epoch": int(run.best_epoch), "seed": row.run.seed, "run_id": run.run_id,
        "duration_s": float(run.duration_s), "weights": run.weights_source, **verdict.to_dict(),
    }  # fmt: skip


def neighbours(verdicts, folds, probes):
    """Each model against the next better one on the same photos: a list of dictionaries fit for JSON.

    Args:
        verdicts: row id -> Evaluation on the test set.
        folds: row id -> GroupedCV of a fine-tuned row; other keys are passed over.
        probes: dataset name -> {"random" or "grouped": GroupedCV} of one frozen probe.
    """
    from study import recipes
    from utils import evaluation

    groups, known = collections.defaultdict(dict), recipes.rows()
    for judged in verdicts.values():
        groups[f"{len(judged.classes)} classes, test set"][judged.name] = judged
    for row in (row for row in known if row in folds):
        groups[f"{len(folds[row].evaluation.classes)} classes, folds"][known[row].title] = folds[row].evaluation
    for name, pair in probes.items():
        groups[f"{name}, one frozen probe"] = {f"{kind} folds": cv.evaluation for kind, cv in pair.items()}
    lines = []
    for photos, judged in groups.items():
        for worse, better in itertools.pairwise(sorted(judged, key=lambda name, of=judged: of[name].accuracy)):
            pair = evaluation.compare(judged[worse], judged[better]).to_dict()
            lines.append({"photos": photos} | pair | {"name_a": worse, "name_b": better})
    return lines


def closing_table(closing):
    """The rows of :func:`result_rows` for readers: published and measured accuracy, Wilson interval, n."""
    return pd.DataFrame([
        {
            "model": row["title"],
            "published": "–" if row["published_accuracy"] is None else readme.printed(row["published_accuracy"]),
            "measured": f"{row['accuracy']:.1%}",
            "95% Wilson": f"{row['accuracy_low']:.1%}–{row['accuracy_high']:.1%}",
            "n": f"{row['n']:,}",
        }
        for row in closing if not row.get("recorded")
    ])  # fmt: skip


def cost_points(closing):
    """Accuracy for new photographers against cost, as plots.accuracy_against_cost takes it: six rows at most.

    All bars are over photographers, of folds or of a test set. `closing`: of :func:`result_rows`.
    """
    kinds = {"baseline": "from scratch", "frozen": "frozen", "fine": "fine-tuned"}
    shown = ("b-lite0-fine", "b-mobilenet-fine", "b-lite0-frozen", "b-mobilenet-frozen", "a-lite0-fine", "a-baseline")
    points = []
    for row in (row for row in closing if row["id"] in shown):
        found = row.get("grouped") or row | {f"accuracy_{end}": row[f"sender_{end}"] for end in ("low", "high")}
        classes = row["classes"] if isinstance(row["classes"], int) else len(row["classes"])  # or their names
        points.append({
            "model": row["title"].split(",")[0], "trained": kinds[row["id"].rsplit("-", 1)[1]],
            "classes": f"{classes} classes", "macs": row["macs"],
            **{key: found[key] for key in ("accuracy", "accuracy_low", "accuracy_high")},
        })  # fmt: skip
    return pd.DataFrame(points)


def dataset_facts(*sets):
    """Name, size, senders (and their effective number by part), split and fingerprint of each dataset."""

    def effective(frame):
        sizes = frame["sender"].value_counts()
        return float(sizes.sum() ** 2 / (sizes**2).sum())

    return [
        {
            "name": data.name, "photos": len(data.frame), "classes": list(data.classes),
            "senders": int(data.frame["sender"].nunique()), "split": data.split,
            "parts": {part: int(n) for part, n in data.frame["split"].value_counts().items()},
            "effective_senders": {part: effective(data.part(part)) for part in data.frame["split"].unique()},
            "train_per_class": {label: int(n) for label, n in data.part("train")["label"].value_counts().items()},
            "fingerprint": data.fingerprint, "stand_in": data.stand_in,
        }
        for data in {data.name: data for data in sets}.values()
    ]  # fmt: skip


def save_figures(figures):
    """Save figures (file name without suffix -> matplotlib Figure) as PNG in `records.output_dir("repo_images")`."""
    for name, figure in figures.items():
        with files.atomic_path(records.output_dir("repo_images") / f"{name}.png") as part:
            figure.savefig(part, dpi=100, bbox_inches="tight")
    return sorted(figures)


def scheme_rows(table, run, dataset, price=None):
    """Rows for `results/03_quantization.json`: accuracy, bytes and time of each scheme of a converted run.

    `table` is of quantization.evaluate_schemes; `price` of runtimes.price_list(...).to_frame(), None: not timed.
    """
    timed = price.set_index("name") if price is not None else pd.DataFrame()
    conditions = f"{dataset.name}, {dataset.split} test set, input {run.config.input_size}; {run.weights_source}"
    common = {
        "model": models.BACKBONES[run.config.model].title, "row": run.config.name, "status": "measured",
        "n": int((dataset.frame["split"] == "test").sum()), "classes": len(dataset.classes), "conditions": conditions,
    }  # fmt: skip
    rows = []
    for scheme, found in table.iterrows():
        time = timed.loc[f"LiteRT {scheme}"] if f"LiteRT {scheme}" in timed.index else {}
        times = {"latency_ms": time.get("median_ms"), "latency_ratio": time.get("ratio")}
        rows.append(common | {"scheme": scheme} | times | found.to_dict())
    return rows
