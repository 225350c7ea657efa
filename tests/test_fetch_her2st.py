"""examples/fetch_her2st.py against a server on loopback."""

import csv
import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def repository(tmp_path):
    """A copy of the script whose table is of other contents, and the server that has them."""
    with (EXAMPLES / "her2st.tsv").open(newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    contents = {f"/{row['commit']}/{row['path']}": row["path"].encode() * 100 for row in rows}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = contents.get(self.path)
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    lines = [
        f"{row['path']}\t{row['commit']}\t{hashlib.sha256(row['path'].encode() * 100).hexdigest()}" for row in rows
    ]
    script = tmp_path / "fetch_her2st.py"
    script.write_bytes((EXAMPLES / "fetch_her2st.py").read_bytes())
    (tmp_path / "her2st.tsv").write_text("\n".join(["path\tcommit\tsha256", *lines]) + "\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run():
        command = [sys.executable, str(script), str(tmp_path / "her2st"), "--repository"]
        address = f"http://127.0.0.1:{server.server_port}"
        return subprocess.run([*command, address], capture_output=True, text=True, timeout=120)

    yield run, tmp_path / "her2st", contents, asked, rows
    server.shutdown()
    server.server_close()


def test_every_file_is_fetched_once_and_one_that_is_not_right_is_refused(repository):
    run, folder, contents, asked, rows = repository
    wrong = rows[7]
    place = f"/{wrong['commit']}/{wrong['path']}"
    right, contents[place] = contents[place], b"something else"
    refused = run()
    assert refused.returncode == 2
    assert "hash" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (folder / wrong["path"]).exists()
    assert {p for p in folder.rglob("*") if p.is_file()} == {folder / row["path"] for row in rows[:7]}  # nothing half

    contents[place] = b""
    missing = run()
    assert missing.returncode == 2
    assert "404" in missing.stderr
    assert "Traceback" not in missing.stderr

    contents[place] = right
    asked.clear()
    assert run().returncode == 0
    assert len(asked) == len(rows) - 7  # what was there stays
    assert all((folder / row["path"]).read_bytes() == row["path"].encode() * 100 for row in rows)

    (folder / wrong["path"]).write_bytes(b"changed")
    asked.clear()
    assert run().returncode == 0
    assert asked == [place]
    assert (folder / wrong["path"]).read_bytes() == right


def test_the_table_is_of_the_six_sections(repository):
    rows = repository[-1]
    names = [f"data/ST-cnts/{name}.tsv.gz" for name in ("B4", "C2", "C3", "C4", "C5", "C6")]
    assert [row["path"] for row in rows if "ST-cnts" in row["path"]] == names
    assert len(rows) == 18
    assert all(len(row["commit"]) == 40 and len(row["sha256"]) == 64 for row in rows)
