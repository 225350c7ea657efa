"""What README and docs state is what commands of this repository printed, whose outputs lie in docs/results."""

import json
import re
from pathlib import Path

import pytest

from tcgn_hub.evaluation.tables import method_table, section_table
from tcgn_hub.result import Evaluation

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKED = re.compile(r"^<!-- from ([\w./ -]+) -->\n\n?((?:\|.*\n)+)", re.M)


def rendered(name: str) -> list[str]:
    """The lines of a stored output: of metrics the table that the command prints."""
    text = (RESULTS / name).read_text()
    if name.endswith(".json"):
        evaluation = Evaluation(summary=json.loads(text), per_gene=[], pcc={})
        text = section_table(evaluation, markdown=True) + method_table(evaluation, markdown=True)
    return text.splitlines()


def cells(line: str) -> list[str]:
    """What stands in a line of a table, in Markdown or aligned with spaces."""
    parts = line.strip().strip("|").split("|") if line.strip().startswith("|") else re.split(r" {2,}", line.strip())
    return [part.strip() for part in parts if part.strip()]


def tables() -> list[tuple[Path, str, str]]:
    return [(page, *found) for page in PAGES for found in MARKED.findall(page.read_text())]


def test_there_are_such_tables():
    assert {page.name for page, _, _ in tables()} >= {"README.md", "weights.md", "concepts.md"}


@pytest.mark.parametrize(("page", "names", "table"), tables(), ids=lambda value: str(value).split("\n")[0][-40:])
def test_a_table_is_what_its_command_printed(page, names, table):
    known = [cells(line) for name in names.split() for line in rendered(name)]
    head, _, *rows = table.splitlines()
    # where the first column has a name, which the output leaves out
    assert cells(head) in known or cells(head)[1:] in known
    for row in rows:
        assert cells(row) in known, f"{page.name}: {row}"


def test_numbers_in_the_text_about_the_weights_are_of_stored_outputs():
    readme = (ROOT / "README.md").read_text()
    text = readme[readme.index("## The bundled weights") : readme.index("## Speed")]
    stored = " ".join(
        line for path in sorted(RESULTS.iterdir()) for line in rendered(path.name) if path.suffix != ".png"
    )
    numbers = set(re.findall(r"[-+]?\b0\.\d{3}\b", text))
    assert len(numbers) > 8
    assert {number for number in numbers if number.lstrip("+") not in stored} == set()
