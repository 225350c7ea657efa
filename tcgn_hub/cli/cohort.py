"""tcgn cohort: what became of the slides of a folder that `tcgn predict` has written."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tcgn_hub.cli.common import command, make_parser, say
from tcgn_hub.cli.options import add
from tcgn_hub.progress import Progress, duration
from tcgn_hub.text import aligned, counted

if TYPE_CHECKING:
    from tcgn_hub.prediction.cohort.ledger import Ledger


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn cohort."""
    parser = make_parser(
        prog,
        "What became of the slides that `tcgn predict SLIDES -o DIR` has predicted, by DIR/cohort.jsonl.",
        epilog="Exit code: 0 all is well, 1 slides failed or files are not what was written, 2 there is no cohort.",
    )
    commands = parser.add_subparsers(dest="action", required=True, metavar="action")
    for name, text in (
        ("status", "a line for each slide: state, tiles, seconds and error"),
        ("verify", "read every file again, and compare it with what was written"),
        ("summary", "write cohort.csv and bulk.csv, and name outliers; with -o FILE.h5ad|.zarr all tiles too"),
    ):
        one = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        add(one, "cohort")
        if name == "status":
            add(one, "json")
        if name == "summary":
            add(one, "output")
    return parser


def _cohort(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.errors import OutputError
    from tcgn_hub.prediction.cohort.ledger import Ledger

    ledger = Ledger(args.cohort)
    if not ledger.records:
        raise OutputError(
            f"{ledger.path} does not exist or names no slide; give the folder that slides were written to."
        )
    return {"status": _status, "verify": _verify, "summary": _summary}[args.action](ledger, args, prog)


def _status(ledger: Ledger, args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.prediction.cohort.claims import Claims
    from tcgn_hub.prediction.cohort.ledger import DONE, HIDDEN, NO_TISSUE, counts

    records = ledger.records
    if args.json:
        sys.stdout.writelines(json.dumps(record.to_dict()) + "\n" for record in records)
    else:
        head = ["slide", "state", "tiles", "time", "attempt", "error"]
        rows = [
            [
                record.slide,
                record.state,
                str(record.tiles) if record.state == DONE else "-",
                duration(record.seconds),
                str(record.attempt),
                record.error,
            ]
            for record in records
        ]
        sys.stdout.write(aligned([head, *rows], left=(0, 1, 5)))
    at_work = Claims(ledger.folder / HIDDEN / "claims").held() if (ledger.folder / HIDDEN).is_dir() else {}
    for output, holder in at_work.items():
        say(prog, f"{output} is claimed by process {holder.get('pid')} on {holder.get('host')}")
    tiles, seconds = sum(record.tiles for record in records), sum(record.seconds for record in records)
    states = ", ".join(f"{number} {state}" for state, number in counts(records).items())
    say(
        prog,
        f"{counted(len(records), 'slide')}: {states}; {counted(tiles, 'tile')} in {duration(seconds)} of all processes",
    )
    return 0 if all(record.state in (DONE, NO_TISSUE) for record in records) else 1


def _verify(ledger: Ledger, args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.prediction.cohort.ledger import DONE, check_outputs

    done = [record for record in ledger.records if record.state == DONE]
    wrong = 0
    for record, why in Progress(len(done), "slide").over(check_outputs(ledger, records=done)):
        if why:
            wrong += 1
            say(prog, f"{record.slide}: {why}")
    say(prog, f"{counted(len(done) - wrong, 'slide')} of {len(done)} as written")
    return 1 if wrong else 0


def _summary(ledger: Ledger, args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.prediction.cohort.ledger import DONE, NO_TISSUE
    from tcgn_hub.prediction.cohort.summary import BULK, MEASURES, SLIDES, concatenate, write_summary

    rows = write_summary(ledger, ledger.records)
    runs = len({record.run for record in ledger.records})
    if runs > 1:
        say(prog, f"these slides are of {runs} runs, by different weights or options, and may not be compared")
    odd = [row for row in rows if row["outlier"]]
    shown = ("slide", "tiles", *MEASURES, "outlier")
    if odd:
        sys.stdout.write(aligned([list(shown), *([str(row[name]) for name in shown] for row in odd)], left=(0, 7)))
    failed = [row for row in rows if row["state"] not in (DONE, NO_TISSUE)]
    for row in failed:
        say(prog, f"{row['slide']}: {row['error']}")
    written = [str(path) for name in (SLIDES, BULK) if (path := ledger.folder / name).exists()]
    if args.output:
        concatenate(ledger, args.output)
        written.append(str(Path(args.output)))
    say(
        prog,
        f"{counted(len(rows), 'slide')}, {counted(len(odd), 'outlier')}, {len(failed)} failed,"
        f" written to {', '.join(written)}",
    )
    return 1 if failed else 0


main = command(build_parser, _cohort, "tcgn cohort")
