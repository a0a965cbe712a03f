"""The report of a run as a page that keeps itself up to date while the run trains, on this machine alone.

The server listens on the loopback address and answers GET and HEAD for a few names. Nothing in a request reaches
the file system or the run, and a request that names another host is refused, so that no web site can read the page
(DNS rebinding). Others who are logged in to the same machine can open it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socketserver
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from plotly.offline import get_plotlyjs

from rankgap.data.names import shown
from rankgap.errors import UserError
from rankgap.run.folder import RunFolder
from rankgap.show.report.page import Contents, contents, escaped, own_file, page
from rankgap.show.status import Follower
from rankgap.show.terminal import say

HOST = "127.0.0.1"
_HERE = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")  # a tunnel may change the port
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class State(NamedTuple):
    """What the page's first line says.

    Attributes:
        said: the line.
        kind: "waiting" for a run, "running", "ended", or "problem" if its files cannot be read.
        version: of the contents; it changes when they do.
    """

    said: str
    kind: str
    version: str


class LivePage:
    """The page on a run. On request, its contents are built again if the run's files have changed.

    Args:
        folder: the run's folder, which need not exist yet.
        every: seconds between two updates.
    """

    def __init__(self, folder: RunFolder, every: float) -> None:
        self.folder, self.every = folder, every
        self._follower = Follower(folder)
        self._contents = self._nothing = Contents(escaped(f"rankgap: {folder.name}"), "one", "", {})
        self._version = self._tried = self._problem = ""
        self._lock = threading.Lock()  # each request has a thread

    def state(self) -> State:
        """The state of the run now."""
        with self._lock:
            if not self.folder.config_file.is_file():
                self._contents, self._version, self._tried = self._nothing, "", ""
                return State(f"Waiting for a run to begin in {shown(str(self.folder.path))}.", "waiting", "")
            try:
                self._refresh()
                now = self._follower.look()
                ending = now.ending
            except UserError as error:
                return State(f"This run cannot be read: {shown(str(error))}", "problem", self._version)
            unread = "" if now.metrics.get("step") else "no reading yet"
            parts = [*(text for text, _ in reversed(ending)), unread, now.progress, now.times]
            said = " ".join(f"{part[:1].upper()}{part[1:].rstrip('.')}." for part in parts if part)
            return State(said, "running" if now.end is None else "ended", self._version)

    def _refresh(self) -> None:
        """Build the contents again if one of their files has changed; those of a damaged run stay as they were."""
        files = ("config.yaml", "metrics.csv", "spectra.jsonl", "results.json")
        version = " ".join(_stamp(self.folder.path / name) for name in files)
        if version != self._tried:
            self._tried, self._problem = version, ""
            try:
                self._contents = contents([self.folder])
                self._version = version
            except UserError as error:
                self._problem = str(error)
        if self._problem:
            raise UserError(self._problem)

    def state_json(self) -> str:
        """The state as JSON."""
        return json.dumps(self.state()._asdict())

    def contents_json(self) -> str:
        """The newest contents as JSON."""
        self.state()
        found = self._contents
        return json.dumps({name: getattr(found, name) for name in ("title", "kind", "body", "figures")})

    def html(self) -> str:
        """The whole page."""
        state = self.state()
        return page(
            self._contents,
            about=f'<p id="state" role="status" class="{state.kind}" data-version="{state.version}" '
            f'data-every="{1000 * self.every:.0f}">{escaped(state.said)}</p>',
            scripts="".join(f'<script src="{name}.js"></script>' for name in ("plotly", "page", "live")),
        )


def _stamp(file: Path) -> str:
    """What changes whenever a file does."""
    try:
        found = file.stat()
    except OSError:
        return "-"
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


class LiveServer(ThreadingHTTPServer):
    """Serves a live page on the loopback address, at a free port.

    Args:
        live: the page.
    """

    def __init__(self, live: LivePage) -> None:
        json_type, script = "application/json", "text/javascript; charset=utf-8"
        self.answers: dict[str, tuple[str, Callable[[], str]]] = {
            "/": ("text/html; charset=utf-8", live.html),
            "/state.json": (json_type, live.state_json),
            "/contents.json": (json_type, live.contents_json),
            "/plotly.js": (script, get_plotlyjs),
            "/page.js": (script, lambda: own_file("page.js")),
            "/live.js": (script, lambda: own_file("live.js")),
        }
        super().__init__((HOST, 0), _Handler)

    def server_bind(self) -> None:
        """Bind, without asking a name server for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves before it has the whole answer is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version, sys_version = "rankgap", ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be silent

    def do_GET(self) -> None:
        if not _HERE.fullmatch(self.headers.get("Host", "")):
            port = self.server.server_port
            self._refuse(
                HTTPStatus.FORBIDDEN,
                f"this page answers browsers on its own machine alone. From another one, run "
                f"ssh -L {port}:{HOST}:{port} with this machine's name, and open {self.server.url} there.",
            )
        elif self.path not in self.server.answers:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            kind, answer = self.server.answers[self.path]
            self._send(HTTPStatus.OK, kind, answer())

    do_HEAD = do_GET

    def _not_allowed(self) -> None:
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _not_allowed

    def _refuse(self, status: HTTPStatus, why: str = "") -> None:
        self.close_connection = True  # there may be a body that nobody reads
        self._send(status, "text/plain; charset=utf-8", f"{status.phrase}{': ' if why else ''}{why}\n")

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        more = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            more["Allow"] = "GET, HEAD"
        for header, value in (_HEADERS | more).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not reported."""


def serve(folder: RunFolder, every: float) -> None:
    """Serve a run's live page until Ctrl-C, also after the run has ended.

    Args:
        folder: the run's folder, which need not exist yet.
        every: seconds between two updates.
    """
    with contextlib.suppress(KeyboardInterrupt), LiveServer(LivePage(folder, every)) as server:
        say(f"{shown(str(folder.path))}: {server.url} (Ctrl-C ends the page, not the run)", wrap=False)
        server.serve_forever()
