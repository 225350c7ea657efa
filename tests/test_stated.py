"""What README and docs state is what commands of this repository printed, whose outputs lie in docs/results."""

import json
import re
from pathlib import Path

import pytest

from tcgn_hub.evaluation.tables import method_table, section_table
from tcgn_hub.result import Evaluation
from tcgn_hub.weights.manifest import load_manifest

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
    summary = json.loads((RESULTS / "folds.json").read_text())
    assert (
        f"{summary['significant_genes']} of 785; by the plain PCC it would be {summary['significant_genes_pcc']}"
        in text
    )
    assert f"held the truth in {summary['interval_simulated']:.0%}".replace("%", " %") in text
    shares = [f"{share:.0%}".replace("%", " %") for share in summary["interval_coverage"].values()]
    assert f"hold {shares[0]} of the measurements of B4 if they come from C6, and {shares[1]} the other way" in text


def test_the_manifest_states_what_the_folds_gave():
    stated = load_manifest()["tcgn_base.her2st"].info
    summary = json.loads((RESULTS / "folds.json").read_text())
    assert stated.significant == frozenset(summary["significant"])
    for key in ("median_pcc", "median_pcc_given_depth", "median_one_factor", "effective_rank", "hvg50"):
        assert stated.held_out[key] == pytest.approx(summary[key], abs=1e-4)
