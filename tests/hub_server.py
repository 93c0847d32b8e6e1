"""A server on this machine that answers as the Hugging Face Hub does to what is asked of a model.

Repositories are folders of files by commit. Small files come from `resolve/…` at once; weights by a redirect
with X-Linked-ETag, by ranges. A private repository wants the token "secret".
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "secret"


@dataclass
class Repository:
    """What one model on the Hub has."""

    files: dict[str, bytes]
    commit: str = "1" * 40
    branches: dict[str, str] = field(default_factory=dict)  # others than main, by name
    private: bool = False
    gated: bool = False
    cut_once: bool = False  # the first answer with weights breaks off in the middle


class Hub(ThreadingHTTPServer):
    """The server; `asked` are the requests that came, as "METHOD path"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.broken: int | None = None  # a status that answers everything
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def files_asked(self) -> set[str]:
        """The names of the files of which bytes were sent."""
        return {path.rpartition("/")[2] for path in self.asked if path.startswith("GET /files/")} | {
            path.rpartition("/")[2]
            for path in self.asked
            if path.startswith("GET /") and "/resolve/" in path and not path.endswith(".safetensors")
        }


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Headers alone."""
        self.answer()

    def do_GET(self) -> None:
        """Headers and bytes."""
        self.answer()

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def answer(self) -> None:
        """Route a request."""
        hub = self.server
        hub.asked.append(f"{self.command} {self.path}")
        if hub.broken:
            return self.refuse(hub.broken, "")
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.list_files(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self.list_tree(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(*found.groups())
        elif found := re.fullmatch(r"/files/([^/]+/[^/]+)/(.+)", path):
            self.send_range(hub.repositories[found[1]], found[2])
        else:
            self.refuse(404, "")

    def repository(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the commit of a revision; None where it was refused."""
        found = self.server.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not allowed):
            return self.refuse(401, "RepoNotFound")
        if found.gated and not allowed:
            return self.refuse(403, "GatedRepo")
        commits = {"main": found.commit, found.commit: found.commit, **found.branches}
        if revision not in commits:
            return self.refuse(404, "RevisionNotFound")
        return found, commits[revision]

    def list_files(self, name: str, revision: str) -> None:
        """What `model_info` asks for."""
        if found := self.repository(name, revision):
            repository, commit = found
            listed = [{"rfilename": file} for file in sorted(repository.files)]
            body = {"id": name, "modelId": name, "sha": commit, "siblings": listed, "tags": []}
            self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def list_tree(self, name: str, revision: str) -> None:
        """What `hf download` asks for."""
        if found := self.repository(name, revision):
            files = sorted(found[0].files.items())
            body = [{"type": "file", "path": file, "size": len(data), "oid": file} for file, data in files]
            self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def resolve(self, name: str, revision: str, file: str) -> None:
        """A file of a revision, or where its bytes are."""
        found = self.repository(name, revision)
        if not found:
            return
        repository, commit = found
        data = repository.files.get(file)
        if data is None:
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.endswith(".safetensors"):
            to = f"http://localhost:{self.server.server_address[1]}/files/{name}/{file}"  # another host
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data)), "Location": to}
            return self.send(302, b"", headers | linked)
        self.send(200, data, headers | {"ETag": f'"{digest[:40]}"'})

    def send_range(self, repository: Repository, file: str) -> None:
        """The bytes of a file from where they are asked for; the first time cut off, if that is wanted."""
        data = repository.files[file]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, "0"])[1])
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if repository.cut_once and self.command == "GET":
            repository.cut_once = False
            self.send(200, data[start:], headers, sent=len(data) // 2)
            self.close_connection = True
            return
        self.send(206 if start else 200, data[start:], headers)

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        """An error, with the Hub's own code for it."""
        self.send(status, b"", {"X-Error-Code": code, **(headers or {})} if code else {})

    def send(self, status: int, body: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        """Status, headers and the first `sent` bytes of the body."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])
