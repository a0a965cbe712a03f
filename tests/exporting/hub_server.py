"""A stand-in for the Hugging Face Hub on the loopback address: it takes a repository and commits of files."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What was sent.

    Args:
        address: of the server.
        refuses: answer every request with an error.
        asked: the paths of the requests, in order.
        tokens: the Authorization headers.
        files: the content of the files, by name.
        commits: the number of commits.
    """

    address: str = ""
    refuses: bool = False
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    def answer(self, path: str, content: bytes) -> Any:
        if path == "/api/repos/create":
            return {"url": f"{self.address}/{json.loads(content)['organization']}/{json.loads(content)['name']}"}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(content)["files"]]
            return {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        if "/tree/" in path:
            return [{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in self.files.items()]
        if "/commit/" in path:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del self.files[line["value"]["path"]]
            self.commits += 1
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            commit = f"{self.address}/{repository}/commit/{'0' * 40}"
            return {"success": True, "commitOid": "0" * 40, "commitUrl": commit}
        return {"id": path.removeprefix("/api/models/").partition("/revision/")[0]}


@contextmanager
def hub() -> Iterator[Hub]:
    """A server that runs until the end of the block."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.asked.append(self.path)
            state.tokens.add(self.headers.get("Authorization"))
            body = json.dumps(state.answer(self.path, content)).encode()
            self.send_response(403 if state.refuses else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
