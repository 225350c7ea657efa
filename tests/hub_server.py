"""A server on loopback that speaks as much of the Hub's protocol as its clients use, and misbehaves on request.

Reading: HEAD and GET of ``/{repo}/resolve/{revision}/{file}`` with ranges, ``/api/models/{repo}``. Writing: create,
preupload, LFS batch, upload and verify, commit. A commit's name is the sha1 of its content.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_loopback"


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""
    private: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        tree = {**self.commits.get(self.head, {}), **files}
        self.head = hashlib.sha1(repr(sorted(tree.items())).encode()).hexdigest()
        self.commits[self.head] = tree
        return self.head


@dataclass
class Faults:
    """How the server misbehaves on GET of a file; each may be changed between requests."""

    status: int | None = None  # answered to every request of a file ...
    error_code: str | None = None  # ... with this X-Error-Code
    message: str | None = None
    times: int | None = None  # ... only so many times
    cut_after: int | None = None  # bytes of a response after which the connection breaks
    cuts: int | None = None  # how many responses are cut
    ignore_range: bool = False
    etag: str | None = None
    corrupt: bool = False  # same size, other bits
    corrupt_times: int | None = None
    delay: float = 0.0
    slow: float = 0.0  # seconds for every 64 KiB


class Hub:
    """The server; use as a context manager."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.log: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.blobs: dict[str, bytes] = {}
        self.token: str | None = None  # the only one accepted, where set
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes]) -> str:
        """Commit files; returns the revision."""
        return self.repos.setdefault(repo_id, Repo()).commit(files)

    def gets(self, name: str) -> list[str | None]:
        """The ranges asked for of a file, None for all of it."""
        return [ranges for method, path, ranges in self.log if method == "GET" and path.endswith(name)]

    def take(self, counter: str) -> bool:
        """Whether a fault limited to so many times is to happen once more."""
        with self.lock:
            left = getattr(self.faults, counter)
            if left is not None:
                setattr(self.faults, counter, max(left - 1, 0))
            return left is None or left > 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str | None, message: str | None = None) -> None:
        headers = {"X_Error_Code": code} if code else {}
        if message:
            headers["X_Error_Message"] = message
        self.reply(status, b"{}", **headers)

    def json(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def route(self, routes: list[tuple[str, Callable[..., None]]]) -> None:
        hub = self.hub
        hub.log.append((self.command, self.path, self.headers.get("Range")))
        body = self.body()
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if hub.token and sent and sent != hub.token:
            return self.refuse(401, None, "Invalid credentials in Authorization header")
        path = self.path.partition("?")[0]
        for pattern, action in routes:
            if match := re.fullmatch(pattern, path):
                return action(*match.groups(), body=body)
        return self.refuse(404, None)

    def do_HEAD(self) -> None:
        self.route([(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.file)])

    def do_GET(self) -> None:
        self.route(
            [
                (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.file),
                (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.info),
            ]
        )

    def do_PUT(self) -> None:
        self.route([(r"/upload/([0-9a-f]{64})", self.upload)])

    def do_POST(self) -> None:
        self.route(
            [
                (r"/api/repos/create", self.create),
                (r"/api/validate-yaml", lambda body: self.json({"errors": [], "warnings": []})),
                (r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", self.preupload),
                (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
                (r"/verify", lambda body: self.json({})),
                (r"/api/models/([^/]+/[^/]+)/commit/[^/]+", self.commit),
            ]
        )

    def file(self, repo_id: str, revision: str, name: str, body: bytes) -> None:
        hub, faults = self.hub, self.hub.faults
        time.sleep(faults.delay)
        if faults.status is not None and hub.take("times"):
            return self.refuse(faults.status, faults.error_code, faults.message)
        repo = hub.repos.get(repo_id)
        if repo is None:
            return self.refuse(401 if not self.headers.get("Authorization") else 404, "RepoNotFound")
        commit = repo.head if revision == "main" else revision
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound")
        if name not in repo.commits[commit]:
            return self.refuse(404, "EntryNotFound")
        data = repo.commits[commit][name]
        etag = faults.etag or hashlib.sha256(data).hexdigest()
        if faults.corrupt and hub.take("corrupt_times"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "X-Linked-Etag": f'"{etag}"'}
        headers |= {"X-Linked-Size": str(len(data)), "Accept-Ranges": "bytes"}
        status = 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and not faults.ignore_range:
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            if first >= len(data):
                return self.refuse(416, None)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if faults.cut_after is not None and hub.take("cuts"):
            self.wfile.write(data[: faults.cut_after])
            self.wfile.flush()
            self.close_connection = True
            return None
        try:
            for start in range(0, len(data), 1 << 16):
                time.sleep(faults.slow)
                self.wfile.write(data[start : start + (1 << 16)])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        return None

    def info(self, repo_id: str, revision: str | None, body: bytes) -> None:
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            return self.refuse(404, "RepoNotFound")
        files = repo.commits.get(repo.head, {})
        siblings = [{"rfilename": name} for name in files]
        return self.json({"id": repo_id, "sha": repo.head, "private": repo.private, "siblings": siblings})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if not self.headers.get("Authorization"):
            return self.refuse(401, None)
        if repo_id in self.hub.repos:
            return self.reply(409, json.dumps({"url": f"{self.hub.url}/{repo_id}", "name": repo_id}).encode())
        repo = self.hub.repos[repo_id] = Repo(private=asked.get("visibility") == "private")
        repo.commit({".gitattributes": b""})
        return self.json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def preupload(self, repo_id: str, body: bytes) -> None:
        def mode(path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        files = json.loads(body)["files"]
        self.json({"files": [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]})

    def batch(self, repo_id: str, body: bytes) -> None:
        def actions(oid: str) -> dict[str, Any]:
            return {"upload": {"href": f"{self.hub.url}/upload/{oid}"}, "verify": {"href": f"{self.hub.url}/verify"}}

        objects = [{**o, "actions": actions(o["oid"])} for o in json.loads(body)["objects"]]
        self.json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, None)
        self.hub.blobs[oid] = body
        return self.reply(200)

    def commit(self, repo_id: str, body: bytes) -> None:
        files = {}
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                files[item["value"]["path"]] = self.hub.blobs[item["value"]["oid"]]
        oid = self.hub.repos[repo_id].commit(files)
        self.json({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None})
