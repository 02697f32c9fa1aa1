"""The pages: tables made from the records, prose that names no other numbers, cards for all that ships."""

import re

import nbformat
import pytest
from conftest import ROOT

from study import readme, recipes, records

LEDGER = records.read_all()
TABLES = readme.tables(LEDGER)
# Numbers of the prose that are no measurement: definitions, versions, sizes of downloads, budgets.
STRUCTURAL = {
    "95%", "2.19", "3.10", "3.11", "3.12", "3.13", "17", "32", "64", "224", "256", "400", "500", "255",
    "260", "2.0", "25", "2020", "93.0%", "2016", "2.13",
    "267", "915,712",  # read from figures of notebook 2: a box, and 112,896 + 802,816
}  # fmt: skip
NUMBER = re.compile(r"(?<![\w.,/-])\d[\d,]*(?:\.\d+)?%?(?![\w-])")


def numbers(text):
    return {found.rstrip(",") for found in NUMBER.findall(text)}


def facts():
    """What prose says of the records in another form than a table does."""
    row = next(row for row in LEDGER["01_data_and_training"]["metrics"]["rows"] if row["id"] == "b-lite0-fine")
    busiest = max(person["n"] for person in row["per_sender"])
    return {f"{busiest / row['n']:.0%}", f"{row['macs'] / 1e6:,.0f}", f"{row['n_validation']}"}


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_says_what_the_records_say(page):
    text = page.read_text()
    assert readme.fill(text, TABLES) == text, "run python -m study tables"


EXAMPLES = ROOT / "docs" / "instruments.md"  # its prose holds worked examples, which the instruments' own tests check


@pytest.mark.parametrize("page", [page for page in readme.PAGES if page != EXAMPLES], ids=lambda page: page.name)
def test_prose_names_no_number_that_no_record_holds(page):
    prose = re.sub(r"<!-- table:(\w+) -->.*?<!-- /table:\1 -->", "", page.read_text(), flags=re.S)
    prose = re.sub(r"^---\n.*?^---\n", "", prose, count=1, flags=re.S | re.M)  # the head that model hubs read
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", prose, flags=re.S)
    held = numbers(" ".join(TABLES.values())) | facts() | STRUCTURAL | {str(number) for number in range(11)}
    assert numbers(prose) - held == set()


def held_by(value):
    """A record's numbers in the forms in which prose writes them."""
    if isinstance(value, dict):
        return set().union(*map(held_by, value.values()))
    if isinstance(value, list):
        return set().union(*map(held_by, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return set()
    plain = {f"{value:,}", f"{value:,.0f}", f"{value:.1f}", f"{value:.2f}"}
    scaled = {f"{value / 1e6:,.0f}", f"{value / 1e6:,.2f}", f"{value:.0%}", f"{value:.1%}", f"{100 * value:.1f}"}
    return plain | scaled


@pytest.mark.parametrize("name", records.NOTEBOOKS)
def test_prose_of_a_notebook_names_no_number_that_neither_a_record_nor_an_output_holds(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    shown = [cell.source for cell in cells if cell.cell_type == "code"]
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        shown += [output.get("text", ""), data.get("text/plain", ""), re.sub("<[^>]+>", " ", data.get("text/html", ""))]
    held = numbers(" ".join(shown)) | numbers(" ".join(TABLES.values())) | STRUCTURAL | {str(n) for n in range(13)}
    held |= set().union(*(held_by(record["metrics"]) for record in LEDGER.values()))
    prose = " ".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|\$\$.*?\$\$|\$[^$]*\$", " ", prose, flags=re.S)
    assert numbers(prose) - held == set()


def test_every_table_stands_on_a_page():
    told = set(re.findall(r"<!-- table:(\w+) -->", " ".join(page.read_text() for page in readme.PAGES)))
    assert told == set(TABLES)


def test_no_cell_is_empty_and_all_rows_are_equally_long():
    for name, table in TABLES.items():
        lines = [line.replace("\\|", "").strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
        assert all(cell.strip() for line in lines for cell in line), name
        blocks = re.split(r"\n(?!\|)", table)
        for block in blocks:
            assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1, name


def test_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 8_000 and len(text.split()) <= 1_100


def test_a_template_that_asks_for_what_is_not_there_says_so(monkeypatch):
    hurt = {**LEDGER, "seeds": {"metrics": {"seeds": [{"title": "Net", "dataset": "x", "split": "y", "n": 1,
                                                       "accuracy": "many"}]}}}  # fmt: skip
    with pytest.raises(ValueError, match=r"results.jinja asks for what the records do not hold"):
        readme.tables(hurt)
    with pytest.raises(ValueError, match="expected a number in the records, got None"):
        readme.percent(None)
    for text, message in (("<!-- table:costs -->", "no closing marker"),
                          ("<!-- table:hats --><!-- /table:hats -->", "got 'hats'")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            readme.fill(text, TABLES)
    assert readme.words("a | b\n<i>") == "a \\| b &lt;i&gt;"


@pytest.mark.parametrize(
    ("value", "floor", "goal", "n", "said"),
    [
        (0.85, 0.8548, None, 100, "0.5 points (1 photo) short of the floor"),
        (347 / 372, 0.93, 0.95, 372, "floor reached; 1.7 points (7 photos) short of the goal"),
        (0.95, 0.93, 0.95, 372, "goal reached"),
        (3.0, 4, None, None, "1.0 points short of the floor"),
        (10.0, 8, None, None, "floor reached"),
    ],
)
def test_how_near_a_target_came(value, floor, goal, n, said):
    assert readme.shortfall(value, floor, goal, n) == said


def test_every_shipped_folder_is_in_the_model_cards():
    page, known = (ROOT / "models" / "README.md").read_text(), recipes.rows()
    for folder in (path for path in (ROOT / "models").iterdir() if path.is_dir()):
        row = re.sub(r"-[0-9a-f]{8}(-\d+fold)?$", "", folder.name)
        if row in known and known[row].run.mode == "frozen" and (folder / "weights.npz").exists():
            assert f"`{row}`" in TABLES["card_heads"]
        else:
            assert f"`{row}-*/`" in page
