"""The six sections of her2st that the default weights were trained on, from the repository of its authors.

    python examples/fetch_her2st.py her2st && tcgn crossval her2st/data --genes her2st_785 -o folds

Each file is taken at the commit that `her2st.tsv` names, and has the sha256 that it had when the weights were trained,
or is refused. Files that are there are checked and kept, so that the same command continues. Data: Andersson et al.,
Nature Communications 12, 6012 (2021), CC BY 4.0 (zenodo.org/records/4751624).
"""

import argparse
import csv
import hashlib
import sys
from pathlib import Path

from torch.hub import download_url_to_file

REPOSITORY = "https://raw.githubusercontent.com/almaan/her2st"


def fetch(folder: Path, repository: str) -> None:
    with (Path(__file__).parent / "her2st.tsv").open(newline="") as table:
        files = list(csv.DictReader(table, delimiter="\t"))
    for i, file in enumerate(files, 1):
        path = folder / file["path"]
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]:
            continue
        print(f"{i} of {len(files)}: {path}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        # whole and with this checksum, or not there
        download_url_to_file(
            f"{repository}/{file['commit']}/{file['path']}", str(path), file["sha256"], progress=sys.stderr.isatty()
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where it goes: FOLDER/data/ST-cnts, ST-imgs and ST-spotfiles")
    parser.add_argument("--repository", default=REPOSITORY, help="another place that has it (default: %(default)s)")
    asked = parser.parse_args()
    try:
        fetch(asked.folder, asked.repository)
    except (OSError, RuntimeError) as err:  # no network, no such file, no room; another checksum
        print(f"{asked.folder} is not complete: {err}. Run the same command to continue.", file=sys.stderr)
        sys.exit(2)
