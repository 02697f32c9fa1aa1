"""The tables of README, docs/ and models/README.md, filled from `results/` by the templates beside this file.

A page holds ``<!-- table:NAME -->…<!-- /table:NAME -->``; NAME is a part of one of `templates/*.jinja`, which
begins with the line ``== NAME``. A value that a record does not hold is an error, never an empty cell.
"""

import collections
import difflib
import pathlib
import re
import statistics

import jinja2

from study import records
from utils import files

PAGES = tuple(
    files.PROJECT / name
    for name in ("README.md", "docs/results.md", "docs/studies.md", "docs/method.md", "docs/engineering.md",
                 "docs/running.md", "docs/instruments.md", "models/README.md")
)  # fmt: skip
MARKER = re.compile(r"<!-- (/?)table:([\w-]+) -->")
# What tells recipes apart in the table of trials; some of these options are gone from RunConfig.
TOLD_APART_BY = (
    "learning_rate", "class_weights", "balance_to", "epochs", "warmup_epochs", "patience", "progressive", "augment",
    "clip_norm", "ema", "seed",
)  # fmt: skip


def percent(share, digits=1):
    """0.935 -> "93.5%"."""
    return f"{100 * _number(share):.{digits}f}%"


def printed(share):
    """As many digits as a study printed: 0.8548 -> "85.48%", 0.92 -> "92%"."""
    return f"{round(100 * _number(share), 4):g}%"


def number(value, digits=0, unit=1):
    """2124380736 with digits=1, unit=1e6 -> "2,124.4"."""
    return f"{_number(value) / unit:,.{digits}f}"


def interval(row, low="accuracy_low", high="accuracy_high"):
    """The two ends of an interval: "90.3–95.4"."""
    return f"{100 * _number(row[low]):.1f}–{100 * _number(row[high]):.1f}"


def judged(row, *ends):
    """Accuracy with its interval: "93.3% (90.3–95.4)"."""
    return f"{percent(row['accuracy'])} ({interval(row, *ends)})"


def words(value):
    """Words out of a record as one Markdown cell: no line break, column or tag of their own."""
    plain = " ".join(str(value).split())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def recipe_words(config):
    """What sets a recipe apart from others, out of RunConfig.to_dict(): "learning rate 0.0003, epochs 8"."""
    config = {"learning_rate": 0.001} | config  # to_dict leaves out what has its default
    told = {key.replace("_", " "): config[key] for key in TOLD_APART_BY if key in config}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in told.items())


def effective(people):
    """The effective number of photographers of a test set, (sum n)^2 / sum n^2: 42 of whom one took most are few."""
    counts = [person["n"] for person in people]
    return sum(counts) ** 2 / sum(n * n for n in counts)


def shortfall(value, floor, goal=None, n=None):
    """Floor or goal reached, or by how much it was missed: shares of `n` photos, or points (n None).

    Example:
        >>> shortfall(0.933, 0.93, 0.95, n=372)
        'floor reached; 1.7 points (7 photos) short of the goal'
    """

    def short(aim):
        if n is None:
            return f"{aim - value:.1f} points short"
        missing = -int(-round(aim * n, 6) // 1) - round(value * n)
        return f"{100 * (aim - value):.1f} points ({missing} {'photo' if missing == 1 else 'photos'}) short"

    if value < floor:
        return f"{short(floor)} of the floor"
    if goal is None:
        return "floor reached"
    return "goal reached" if value >= goal else f"floor reached; {short(goal)} of the goal"


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number in the records, got {value!r:.40}")
    return value


def environment():
    """The Jinja2 environment: every value must be there; numbers and words are set by filters."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    made.filters |= {
        "percent": percent, "printed": printed, "number": number, "interval": interval, "judged": judged,
        "words": words, "recipe": recipe_words, "mean": statistics.mean, "stdev": statistics.stdev,
        "effective": effective, "keyed": lambda line, key: (line[key], line),
    }  # fmt: skip
    made.globals["shortfall"] = shortfall
    return made


def context(ledger):
    """What templates see: the metrics of each record by its name, and lookups that several tables share."""
    training, costs, quantization = (ledger[name]["metrics"] for name in records.NOTEBOOKS)
    deployment = ledger["deployment"]["metrics"]
    seeds = collections.defaultdict(list)
    for line in ledger["seeds"]["metrics"]["seeds"]:
        seeds[line["title"], line["dataset"], line["split"], line["n"]].append(line["accuracy"])
    return {
        **{name: ledger[name]["metrics"] for name in ledger},
        "training": training, "costs": costs, "quantization": quantization, "ledger": ledger, "seeds": dict(seeds),
        "people": {one["name"]: one["senders"] for one in training["datasets"]},
        "rows": {row["id"]: row for row in training["rows"]},
        "split_of": {(line["row"], line["split"]): line for line in ledger["splits"]["metrics"]["splits"]},
        "files": {line["row"]: line for line in deployment["models"]},
        "time_of": {(line["row"], line["scheme"], line["cpu"]): line for line in deployment["times"]},
        # the processor on which most files were timed
        "cpu": collections.Counter(line["cpu"] for line in deployment["times"]).most_common(1)[0][0],
        "scheme_of": {(line["row"], line["scheme"]): line for line in quantization["schemes"]},
    }  # fmt: skip


def tables(ledger):
    """Every table by name -> Markdown; ValueError where a template asks for what no record of the ledger holds."""
    made, values, found = environment(), context(ledger), {}
    for file in made.list_templates(extensions=["jinja"]):
        try:
            text = made.get_template(file).render(values)
        except (jinja2.UndefinedError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"templates/{file} asks for what the records do not hold: {error}") from error
        names = re.split(r"^== (\w+)\n", text, flags=re.MULTILINE)[1:]
        found |= dict(zip(names[::2], (table.strip() for table in names[1::2]), strict=True))
    return found


def fill(text, tables):
    """The text of a page with every table between its markers made anew; ValueError names a wrong marker.

    Example:
        >>> fill("<!-- table:a -->old<!-- /table:a -->", {"a": "new"}).splitlines()[2]
        'new'
    """
    parts, place, opened = [], 0, None
    for marker in MARKER.finditer(text):
        closing, name = marker.groups()
        if bool(closing) != (opened is not None) or (closing and name != opened):
            raise ValueError(f"expected {f'/table:{opened}' if opened else 'table:…'}, got {marker.group()}")
        if name not in tables:
            raise ValueError(f"expected one of the tables {', '.join(tables)}, got {name!r}")
        if not closing:
            parts += [text[place : marker.end()], f"\n\n{tables[name]}\n\n"]
        opened, place = (None, marker.start()) if closing else (name, marker.end())
    if opened:
        raise ValueError(f"table {opened} has no closing marker; add <!-- /table:{opened} -->")
    return "".join(parts) + text[place:]


def update(check=False, pages=PAGES, folder=None):
    """Fill the pages, or (with `check`) write none; returns unified diffs, one per page that differs."""
    made, diffs = tables(records.read_all(folder)), []
    for page in pages:
        old = page.read_text(encoding="utf-8")
        new = fill(old, made)
        if old != new:
            diffs.append("\n".join(difflib.unified_diff(
                old.splitlines(), new.splitlines(), f"{page.name} as it is", f"{page.name} from results/", lineterm=""
            )))  # fmt: skip
            if not check:
                files.write_text(page, new)
    return diffs
