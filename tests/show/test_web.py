"""The live page: what its server answers and refuses, and what a browser shows while a run grows."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from rankgap.cli import main
from rankgap.run.folder import RunFolder
from rankgap.show.web import LivePage, LiveServer

SHORT = ["--epochs", "2", "--batch-size", "64", "--limit", "256", "--rank-every", "1", "--protocol", "none"]
EVERY = 0.1  # seconds


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    assert main(["train", *SHORT, "--out", str(out)]) == 0
    return out


def beat(folder: RunFolder, state: str = "training", **change: Any) -> None:
    now = time.time()
    found = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), "step": 3, "seconds": 65.0}
    (folder.path / "heartbeat.json").write_text(json.dumps(found | {"moved": now, "time": now} | change))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    """A run that has done half of its steps and is training."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished, folder.path)
    (folder.path / "results.json").unlink()
    for file, lines in ((folder.metrics_file, 5), (folder.spectra_file, 4)):  # 4 readings, below their names
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))
    beat(folder)
    return folder


def add_reading(run: RunFolder, **change: float) -> dict[str, float]:
    row = run.last_reading()
    row |= {"step": row["step"] + 1, "epoch": row["epoch"] + 0.25} | change
    run.add_metrics(row)
    return row


@contextlib.contextmanager
def serving(folder: RunFolder) -> Iterator[LiveServer]:
    with LiveServer(LivePage(folder, EVERY)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(run: RunFolder) -> Iterator[LiveServer]:
    with serving(run) as server:
        yield server


def ask(server: LiveServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def state(server: LiveServer) -> dict[str, str]:
    status, _, body = ask(server, "/state.json")
    assert status == 200
    found: dict[str, str] = json.loads(body)
    return found


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/state.json", "application/json"),
        ("/contents.json", "application/json"),
        ("/page.js", "text/javascript"),
        ("/live.js", "text/javascript"),
        ("/plotly.js", "text/javascript"),
    ],
)
def test_known_names_are_answered_with_headers_that_shut_the_page_off(
    path: str, kind: str, server: LiveServer
) -> None:
    status, headers, body = ask(server, path)
    assert status == 200
    assert headers["Content-Type"].startswith(kind)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert "Access-Control-Allow-Origin" not in headers
    assert "Python" not in headers["Server"]
    assert int(headers["Content-Length"]) == len(body) > 0
    status, same, nothing = ask(server, path, "HEAD")
    assert (status, nothing, same["Content-Type"]) == (200, b"", headers["Content-Type"])


@pytest.mark.parametrize(
    "path",
    [
        "/config.yaml",
        "/../config.yaml",
        "/%2e%2e/config.yaml",
        "//config.yaml",
        "/state.json/",
        "/?a",
        "/state.json?",
        "*",
    ],
)
def test_no_other_name_is_answered(path: str, server: LiveServer) -> None:
    status, headers, body = ask(server, path)
    assert (status, body) == (404, b"Not Found\n")
    assert "Content-Security-Policy" in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(method: str, server: LiveServer) -> None:
    status, headers, _ = ask(server, "/state.json", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost:9000", 200),
        ("[::1]:9000", 200),
        ("localhost", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost:80@evil.example", 403),
        ("", 403),
    ],
)
def test_only_this_machine_s_names_are_served(host: str, status: int, server: LiveServer) -> None:
    answered, _, said = ask(server, "/", Host=host)
    assert answered == status
    assert (b"ssh -L %d:127.0.0.1:%d with" % (server.server_port, server.server_port) in said) == (status == 403)
    assert server.server_address[0] == "127.0.0.1"


def test_strange_clients_do_not_end_the_server(server: LiveServer, capfd: pytest.CaptureFixture[str]) -> None:
    for sent in (
        b"\x00\xff\r\n\r\n",
        b"GET /plotly.js HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # reset, do not wait
            client.sendall(sent)
    assert state(server)["kind"] == "running"
    assert capfd.readouterr().err == ""


def test_the_state_says_what_the_run_does_and_the_version_follows_its_files(
    run: RunFolder, server: LiveServer
) -> None:
    first = state(server)
    assert first["kind"] == "running"
    assert first["said"].startswith("4 of 8 steps, ")
    assert "1 min 5 s so far" in first["said"]
    beat(run, step=5)
    assert state(server)["said"].startswith("5 of 8 steps")
    assert state(server)["version"] == first["version"]
    add_reading(run)
    assert state(server)["version"] != first["version"]
    beat(run, pid=10**9)
    assert state(server)["said"].startswith("Dead: its process 1000000000 is gone, last seen 0 s ago; resume with")
    beat(run, "evaluating")
    assert state(server)["said"].startswith("Trained; now evaluating its features. 5 of 8 steps")


def test_a_finished_run_says_its_verdict(finished: Path) -> None:
    with serving(RunFolder(finished)) as server:
        found = state(server)
    assert found["kind"] == "ended"
    assert found["said"].startswith(f"Finished. Verdict: {RunFolder(finished).verdict()}")


def test_a_run_that_has_no_reading_yet_says_so(run: RunFolder, server: LiveServer) -> None:
    run.metrics_file.unlink()
    run.spectra_file.unlink()
    assert state(server)["said"].startswith("No reading yet. 3 of 8 steps")
    body = json.loads(ask(server, "/contents.json")[2])["body"]
    assert all(said in body for said in ("No reading yet.", "No spectra yet.", "No alarm so far."))
    assert "kept no spectra" not in body


@pytest.mark.parametrize("file", ["config.yaml", "metrics.csv", "spectra.jsonl", "heartbeat.json"])
def test_a_damaged_file_is_named_and_the_last_contents_stay(file: str, run: RunFolder, server: LiveServer) -> None:
    before = json.loads(ask(server, "/contents.json")[2])
    whole = (run.path / file).read_text()
    (run.path / file).write_text("[damaged\n" * 3)
    found = state(server)
    assert found["kind"] == "problem"
    assert file in found["said"]
    assert ask(server, "/")[0] == 200
    assert json.loads(ask(server, "/contents.json")[2]) == before
    (run.path / file).write_text(whole)
    assert state(server)["kind"] == "running"


def test_a_file_that_stays_damaged_is_read_once(
    run: RunFolder, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.spectra_file.write_text("[damaged\n")
    assert state(server)["kind"] == "problem"
    monkeypatch.setattr("rankgap.show.web.contents", None)
    assert state(server)["kind"] == "problem"


@pytest.fixture
def opened(server: LiveServer, browser: Browser) -> Iterator[Page]:
    """The live page in a browser, which must say nothing in its console."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(20_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(server.url)
    yield page
    page.close()
    assert [text for text in said if "Failed to load resource" not in text] == []


def ranks(page: Page) -> list[float]:
    found: list[float] = page.evaluate(
        "Array.from(document.getElementById('ranks-0')?.data?.find((t) => t.name === 'online')?.y ?? [])"
    )
    return found


def wait_for_ranks(page: Page, count: int) -> None:
    page.wait_for_function(
        "(n) => document.getElementById('ranks-0')?.data?.find((t) => t.name === 'online')?.y.length === n",
        arg=count,
    )


def test_a_new_reading_is_shown_without_a_reload_and_the_reader_keeps_the_place(
    run: RunFolder, opened: Page
) -> None:
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    opened.locator("#ranks-0").scroll_into_view_if_needed()
    wait_for_ranks(opened, 4)
    opened.locator("#theme").click()
    opened.locator("details").last.locator("summary").click()
    slider = opened.locator(".slider input").first
    slider.fill("48")
    slider.focus()
    opened.evaluate("window.mark = document.getElementById('ranks-0').mark = 1")
    place = opened.evaluate("scrollY")
    row = add_reading(run, erank_online=7.5)
    wait_for_ranks(opened, 5)
    assert ranks(opened)[-1] == 7.5
    assert opened.locator("figure:has(#ranks-0) small").inner_text().startswith(f"epoch {row['epoch']:.1f}: ")
    assert opened.evaluate("window.mark + document.getElementById('ranks-0').mark") == 2
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"
    assert opened.locator("details").last.get_attribute("open") is not None
    assert slider.input_value() == "48"
    assert slider.evaluate("(input) => input === document.activeElement")
    assert opened.locator(".slider output").first.inner_text() == "after 48% of training"
    assert opened.evaluate("scrollY") == place > 0
    assert set(asked) == {"state.json", "contents.json"}


def test_a_page_opened_before_the_run_shows_it_when_it_begins_and_how_it_ends(
    finished: Path, run: RunFolder, browser: Browser
) -> None:
    folder = RunFolder(run.path.with_name("later"))
    with serving(folder) as server:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.goto(server.url)
        assert page.locator("#state").inner_text() == f"Waiting for a run to begin in {folder.path}."
        assert page.locator("main").inner_text() == ""
        shutil.copytree(run.path, folder.path)
        page.wait_for_selector("#state.running")
        page.locator("#ranks-0").scroll_into_view_if_needed()
        wait_for_ranks(page, 4)
        assert page.title() == "rankgap: simsiam"
        (folder.path / "metrics.csv").write_text("damaged\nx\n")
        page.wait_for_selector("#state.problem")
        assert "metrics.csv" in page.locator("#state").inner_text()
        assert len(ranks(page)) == 4
        shutil.copytree(finished, folder.path, dirs_exist_ok=True)
        page.wait_for_selector("#state.ended")
        assert page.locator("#state").inner_text().startswith("Finished. Verdict: ")
        wait_for_ranks(page, 8)
        assert page.locator("#verdicts b").inner_text() != "… no verdict: the run has not finished"
        page.context.set_offline(True)  # as if the server had ended
        page.wait_for_selector("#state.gone")
        assert re.fullmatch(
            r"Not updating since .*\d.*: the server does not answer\.", page.locator("#state").inner_text()
        )
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_state_fits_a_phone_in_both_themes(scheme: Any, run: RunFolder, opened: Page) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": 400, "height": 800})
    opened.wait_for_function("(s) => document.documentElement.dataset.theme === s", arg=scheme)
    opened.wait_for_function("() => document.documentElement.scrollWidth === 400")  # no eval on this page
    beat(run, pid=10**9)
    opened.wait_for_selector("#state.ended")
    box = opened.locator("#state").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 400
    colours = opened.locator("#state").evaluate(
        "(p) => [getComputedStyle(p).color, getComputedStyle(document.body).backgroundColor]"
    )
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (light > dark) == (scheme == "dark")


def test_ctrl_c_ends_the_page_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rankgap", "watch", "not there yet", "--web"]
    watching = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert watching.stdout is not None
    line = watching.stdout.readline()
    assert re.fullmatch(r"not there yet: http://127\.0\.0\.1:\d+/ \(Ctrl-C ends the page, not the run\)\n", line)
    watching.send_signal(signal.SIGINT)
    assert watching.communicate(timeout=30) == ("", "")
    assert watching.returncode == 0
    assert list(tmp_path.iterdir()) == []
