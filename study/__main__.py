"""``python -m study COMMAND``: everything that trains, measures, renders or fills a page.

Nothing heavy is imported before the command line is read and checked.
"""

import argparse
import dataclasses
import os
import sys


def parser():
    """The command line: one subcommand per kind of work."""
    made = argparse.ArgumentParser(
        prog="python -m study", description="Train, measure, render: all that this study does."
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text, rows=None):
        added = commands.add_parser(name, help=text, description=text)
        if rows:
            added.add_argument("rows", nargs=rows, metavar="ROW", help="row of `python -m study list`")
        return added

    command("list", "list the rows and trials: what is trained on which photos")
    train = command("train", "train rows, or go on with them, or find them finished", "+")
    train.add_argument("--data", choices=("photos", "sketches"), default="photos", help="sketches: synthetic drawings")
    folds = command(
        "folds", "train a row's recipe once per sender-grouped fold (default: the shortened b-lite0-fine)", "?"
    )
    folds.add_argument("--k", type=int, default=5, help="folds (default 5)")
    folds.add_argument("--keep", action="store_true", help="ship what the folds predicted -> models/")
    command("choose", "compare recipes of ten classes on folds of their own, two hours -> results/fold_trials.json")
    seeds = command("seeds", "train rows with several seeds -> results/seeds.json", "+")
    seeds.add_argument("--count", type=int, default=3, help="seeds 0 .. COUNT-1 (default 3)")
    splits = command("splits", "train rows on their own and on a random split -> results/splits.json", "+")
    for added in (train, folds, seeds, splits):
        added.add_argument(
            "--cluster", metavar="ADDRESS", help="Dask scheduler (tcp://host:8786), or local:N processes here"
        )
    command("trials", "record what finished trials gave on validation -> results/trials.json")
    command("keep", "ship what finished rows predicted, without their weights -> models/", "+")
    deployed = command("files", "convert, judge and time finished rows -> results/deployment.json", "*")
    deployed.add_argument("--rounds", type=int, default=20, help="interleaved rounds (default 20)")
    deployed.add_argument("--causes", action="store_true", help="what int8 loses rows by -> results/int8_causes.json")
    deployed.add_argument(
        "--times", action="store_true", help="time the files alone, trained or not, on a quiet machine"
    )
    command("elsewhere", "what the shipped files say of sample pictures of packages -> results/elsewhere.json")
    command("further", "judge ten-class rows on a second test set -> results/further.json")
    command("pruning", "run the pruning sweep of notebook 3, hours -> results/pruning.json")
    command("claims", "count what the studies print of costs, half a minute -> results/claims.json")
    tables = command("tables", "fill the tables of README, docs/ and models/README.md from results/")
    tables.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff where a page differs")
    books = command("notebooks", "execute notebooks into build/")
    books.add_argument("notebooks", nargs="*", help="1, 2, 3 or names; none: all")
    books.add_argument("--render", action="store_true", help="replace the committed notebooks, records and figures")
    books.add_argument("--retrain", action="store_true", help="train everything again (hours, resumable)")
    books.add_argument("--data", choices=("auto", "sketches"), default="auto", help="sketches: synthetic drawings")
    return made


def main(argv=None):
    """Run one command; returns the exit code: 0 fine, 1 pages differ or a notebook failed, 2 bad input."""
    made = parser()
    options = made.parse_args(argv)
    for name, least in (("k", 2), ("count", 1), ("rounds", 1)):
        if getattr(options, name, least) < least:
            made.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    try:
        return {"tables": tables, "claims": count_claims, "notebooks": notebooks}.get(options.command, rows)(
            options, made
        )
    except KeyboardInterrupt:
        print("\nStopped. What is finished is kept; the same command goes on where this one was.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head`: what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, LookupError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def tables(options, _):
    from study import readme

    differing = readme.update(options.check)
    if not options.check:
        print(f"{len(differing)} pages written")
    elif differing:
        print("\n".join(differing), flush=True)
        print("pages differ from results/; run python -m study tables", file=sys.stderr)
    return int(options.check and bool(differing))


def count_claims(*_):
    from study import claims, records

    print(records.write("claims", {}, claims.measure(), "none", records.RESULTS))
    return 0


def notebooks(options, made):
    if options.render and (options.retrain or options.data != "auto"):
        made.error("--render executes the committed source as it stands; leave out --retrain and --data")
    from study import notebooks as runner

    parameters = {"RETRAIN": True} if options.retrain else {}
    if options.data != "auto":
        parameters["DATA"] = options.data
    return runner.run(runner.chosen(options.notebooks), parameters, options.render)


def rows(options, made):
    from study import recipes

    known = recipes.rows(stand_in=getattr(options, "data", "photos") == "sketches")
    if getattr(options, "data", "photos") == "photos":
        known = recipes.trials() | known
    if options.command == "folds":
        known |= recipes.folds()
        options.rows = [options.rows or "b-lite0-folds"]
    for name in getattr(options, "rows", []):
        if name not in known:
            made.error(f"unknown row {name!r}; expected one of {', '.join(known)}")
    if options.command == "list":
        for row in known.values():
            print(f"{row.id:24} study {row.study}  {row.title:42} {row.note}")
        return 0
    from utils import datasets

    loaded = {}

    def data(row):
        key = row.dataset, row.split
        loaded[key] = loaded.get(key) or datasets.load(row.dataset, split=row.split)
        return loaded[key]

    _WORK[options.command](options, known, data)
    return 0


def _trained(options, rows, data):
    """The finished run of each row, trained here or (--cluster) by the workers of a cluster."""
    if options.cluster:
        from study import cluster

        with cluster.connect(options.cluster) as client:
            jobs = [(row.run, data(row), {"name": row.dataset, "split": row.split}) for row in rows]
            yield from cluster.train(client, jobs)
        return
    from utils import training

    for row in rows:
        yield training.train(row.run, data(row), verbose=2)


def _train(options, known, data):
    runs = _trained(options, [known[name] for name in options.rows], data)
    for name, run in zip(options.rows, runs, strict=True):
        print(f"{name}: {run.run_id}, best epoch {run.best_epoch}, {run.duration_s / 60:.0f} minutes", flush=True)


def _folds(options, known, data):
    from study import folds

    row = known[options.rows[0]]

    def on_cluster(jobs):
        from study import cluster

        load = {"name": row.dataset, "split": row.split}
        with cluster.connect(options.cluster) as client:
            cluster.train(client, [(config, photos, load | {"fold": fold}) for config, photos, fold in jobs])

    elsewhere = on_cluster if options.cluster else None
    found = folds.cross_validate(row.run, data(row), options.k, verbose=2, tie=row.tie, elsewhere=elsewhere)
    print(*found.values(), sep="\n", flush=True)
    if options.keep:
        print(folds.export(row.run, data(row), k=options.k, tie=row.tie).name)


def _choose(options, known, data):
    from study import folds, recipes, records

    rows, reported = recipes.candidates().values(), (recipes.folds()["b-lite0-folds"], recipes.longer_folds())
    photos = data(reported[0])
    metrics = {"trials": folds.compare(rows, photos, verbose=2)}
    metrics["trials"] += folds.soup(recipes.candidates()["try-b-clipped"], photos, verbose=2)
    metrics["reported"] = folds.compare(reported, photos, numbers=(0, 1), seed=0, verbose=2)
    ten, wide = recipes.folds()["b-lite0-folds"], recipes.folds()["a-lite0-folds"]
    metrics["shared"] = folds.among_shared_classes(wide, data(wide), ten, photos)
    print(records.write("fold_trials", {}, metrics, photos.name, records.RESULTS))


def _seeds(options, known, data):
    from study import records

    for row in (known[name] for name in options.rows):
        configs = [dataclasses.replace(row.run, seed=seed) for seed in range(options.count)]
        runs = list(_trained(options, [dataclasses.replace(row, run=config) for config in configs], data))
        print(f"{row.id}: {options.count} seeds in {records.record_seeds(row, data(row), runs).name}", flush=True)


def _splits(options, known, data):
    from study import recipes, records

    for row in (known[name] for name in options.rows):
        both = row, recipes.at_random(row)
        for judged, run in zip(both, _trained(options, both, data), strict=True):
            print(f"{run.run_id}: {records.record_split(row, data(judged), run).name}", flush=True)


def _finished(names, known, data, weights=False):
    """Row id -> (Row, Run, Dataset) of those that are finished here; the others are named."""
    from utils import files
    from utils.training import find_finished

    found = {}
    for name in names:
        row = known[name]
        run = find_finished(row.run.run_id_for(data(row).fingerprint), files.runs_dir())
        if run is None or (weights and run.recorded):
            print(f"{name}: left out, {'it is not trained' if run is None else 'its weights are not'} here", flush=True)
        else:
            found[name] = row, run, data(row)
    if not found:
        raise LookupError("none of these rows is finished here; python -m study train ROW trains one")
    return found


def _trials(options, known, data):
    from study import recipes, records

    found = _finished(recipes.trials(), known, data)
    print(records.record_trials({name: (dataset, run) for name, (_, run, dataset) in found.items()}))


def _keep(options, known, data):
    from utils import training

    for name, (_, run, dataset) in _finished(options.rows, known, data).items():
        print(f"{name}: {training.export_record(run, dataset).name}", flush=True)


def _files(options, known, data):
    from study import deployment, recipes

    wanted = options.rows or list(recipes.rows())
    if options.times:
        print(deployment.record_times({name: known[name] for name in wanted}, data, options.rounds))
        return
    found = _finished(wanted, known, data, weights=True)
    print(deployment.record_causes(found) if options.causes else deployment.record(found, options.rounds))


def _elsewhere(options, known, data):
    from study import elsewhere

    print(elsewhere.record(lambda name: data(next(row for row in known.values() if row.dataset == name))))


def _further(options, known, data):
    from study import further

    found = _finished(further.ROWS, known, data)
    print(further.record(found, data(known["b-lite0-fine"]), data(known["a-lite0-fine"])))


def _pruning(options, known, data):
    from study import pruning, recipes, records

    ((_, run, dataset),) = _finished(["b-lite0-fine"], known, data, weights=True).values()
    metrics = pruning.measure(run, dataset, recipes.sizes())
    print(records.write("pruning", {"row": "b-lite0-fine"}, metrics, dataset.name, records.RESULTS))


_WORK = {
    "train": _train, "folds": _folds, "choose": _choose, "seeds": _seeds, "splits": _splits, "trials": _trials,
    "keep": _keep, "files": _files, "pruning": _pruning, "elsewhere": _elsewhere, "further": _further,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
