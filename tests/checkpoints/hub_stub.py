"""A hub on this machine: serves one model, and its files as a data set, or refuses them in the hub's ways."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
NAME = "org/tiny"


@dataclass
class Hub:
    """refusal: status and headers for all that is asked, or for files alone (where `open_card`)."""

    directory: Path
    revisions: tuple[str, ...] = ("main", "v1")
    refusal: tuple[int, dict[str, str]] | None = None
    open_card: bool = False
    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # paths, and who asked

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        card = path.startswith("/api/")
        path = path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
        if self.refusal is not None and not (card and self.open_card):
            return *self.refusal, b"{}"
        if path.startswith(f"/api/models/{NAME}/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": file.relative_to(self.directory).as_posix(), "size": file.stat().st_size, "oid": _etag(file.read_bytes())}
                for file in sorted(self.directory.rglob("*.*"))
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if path.startswith(f"/api/models/{NAME}/revision/"):
            if path.rpartition("/revision/")[2] not in (*self.revisions, COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            return 200, {"Content-Type": "application/json"}, json.dumps({"id": NAME, "sha": COMMIT, "siblings": []}).encode()
        if path.startswith(f"/{NAME}/resolve/{COMMIT}/"):
            body = (self.directory / path.partition(f"/{COMMIT}/")[2]).read_bytes()
            return 200, {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": COMMIT}, body
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def take(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """An upload: a model is made, files are announced, and come in one commit, each a line of it."""
        if self.refusal is not None:
            return *self.refusal, b"{}"
        if path == "/api/validate-yaml":  # the head of a card
            said: dict = {"errors": [], "warnings": []}
        elif path == "/api/repos/create":
            said = {"url": f"{self.url}/{NAME}", "name": NAME}
        elif path == f"/api/models/{NAME}/preupload/main":
            said = {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]}
        elif path == f"/api/models/{NAME}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    (self.directory / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
            said = {"commitUrl": f"{self.url}/{NAME}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        else:
            return 404, {}, b"{}"
        return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()


def _etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@contextmanager
def serving(directory: Path) -> Iterator[Hub]:
    """A hub with the model of this directory."""
    hub = Hub(directory)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((path, self.headers.get("Authorization")))
            self.reply(*hub.answer(path))

        do_HEAD = do_GET

        def do_POST(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self.rfile.read(int(self.headers["Content-Length"]))
            hub.asked.append((path, self.headers.get("Authorization")))
            self.reply(*hub.take(path, body))

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
