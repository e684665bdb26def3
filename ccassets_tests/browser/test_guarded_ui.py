"""The guard of the UI in Chromium: its own pages work, and a page of another server reaches nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ccassets.orchestration.instance import dagster_instance
from ccassets_tests.browser.pages import chromium
from ccassets_tests.browser.person import Person
from ccassets_tests.http_server import answering
from ccassets_tests.orchestration.test_ui_server import ASSET, materialize_by_hand, mutations
from ccassets_tests.orchestration.ui_process import UiProcess, running_ui

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

EVIL = "evil.example"
ATTACKS = """<title>busy</title><iframe name="target"></iframe><iframe src="{ui}/"></iframe>
<script>
const ui = "{ui}", mutations = {mutations};
const outcomes = [];
function image(address) {{
  return new Promise((done) => {{
    const image = new Image();
    image.onload = image.onerror = done;
    image.src = address;
  }});
}}
function post(address) {{
  const form = Object.assign(document.createElement("form"), {{ action: address, method: "post", target: "target" }});
  document.body.append(form);
  form.submit();
  return new Promise((done) => document.querySelector("iframe").addEventListener("load", done, {{ once: true }}));
}}
function socket(address) {{
  return new Promise((done) => {{
    const socket = new WebSocket(address, "graphql-ws");
    socket.onopen = () => done("open");
    socket.onerror = () => done("refused");
  }});
}}
onload = async () => {{
  for (const mutation of mutations) {{
    const address = `${{ui}}/graphql?query=${{encodeURIComponent(mutation)}}`;
    const body = JSON.stringify({{ query: mutation }});
    await image(address);
    await post(address);
    await fetch(address, {{ mode: "no-cors" }}).catch(() => null);
    await fetch(`${{ui}}/graphql`, {{ method: "POST", mode: "no-cors", body }}).catch(() => null);
    const headers = {{ "Content-Type": "application/json" }};
    await fetch(`${{ui}}/graphql`, {{ method: "POST", headers, body }}).catch(() => null);
    navigator.sendBeacon(address, body);
  }}
  const opened = await socket(ui.replace("http", "ws") + "/graphql");
  document.title = `websocket ${{opened}}, ${{frames[1].length}} frames inside`;
}};
</script>"""


@pytest.fixture
def ui(tmp_path: Path, home: Path) -> Iterator[UiProcess]:
    with running_ui(home, tmp_path / "ui.log") as ui:
        yield ui


@pytest.fixture
def run_id(ui: UiProcess) -> str:
    """A run in the records of the UI, which a page may try to delete."""
    return materialize_by_hand()


@pytest.fixture
def browser(run_id: str) -> Iterator[Any]:
    """Chromium, which finds the other server under its name; started last, since runs of Dagster end its event loop."""
    with chromium(f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as browser:
        yield browser


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """The folder and the port of another web server on this machine."""
    folder = tmp_path / "pages"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    with answering(server):
        yield folder, server.server_port


def test_an_asset_is_materialized_by_its_button_and_the_log_arrives_by_websocket(browser: Any, ui: UiProcess) -> None:
    person = Person(browser, ui, "demo", width=2200, height=1400)
    complaints: list[str] = []
    messages: list[str] = []
    person.page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
    person.page.on("response", lambda got: got.status >= 400 and complaints.append(f"{got.status} {got.url}"))
    person.page.on("websocket", lambda opened: opened.on("framereceived", lambda text: messages.append(text)))
    [run] = person.materialize("encoder")
    assert person.ending(run) == "Success"
    assert any("pipelineRunLogs" in message for message in messages)
    assert complaints == []


@pytest.mark.parametrize("host", [EVIL, "127.0.0.1"])
def test_a_page_of_another_server_changes_and_shows_nothing(
    browser: Any, ui: UiProcess, other_server: tuple[Path, int], host: str, run_id: str
) -> None:
    folder, port = other_server
    own = f"http://{ui.host}"
    (folder / "index.html").write_text(ATTACKS.format(ui=own, mutations=json.dumps(mutations(run_id))))
    page = browser.new_page()
    sent: list[str] = []
    statuses: list[int] = []
    page.on("request", lambda request: request.url.startswith(own) and sent.append(request.method))
    # The browser shows no answer to what the page loads into itself: the answer itself forbids that.
    page.on("response", lambda got: got.url.startswith(own) and statuses.append(got.status))
    page.goto(f"http://{host}:{port}/")
    page.wait_for_function("document.title != 'busy'", timeout=120_000)
    assert page.title() == "websocket refused, 0 frames inside"
    assert {method: sent.count(method) >= 2 * 3 for method in ("GET", "POST")} == {"GET": True, "POST": True}
    assert len(statuses) >= 3, "the forms and the frame"
    assert set(statuses) <= {403, 405}
    with dagster_instance() as instance:
        assert [run.run_id for run in instance.get_runs()] == [run_id]
        assert instance.get_latest_materialization_event(ASSET) is not None


def test_a_link_or_a_name_of_another_server_changes_and_shows_nothing(browser: Any, ui: UiProcess, run_id: str) -> None:
    page = browser.new_page()
    deletion = f"/graphql?query={quote(mutations(run_id)[0])}"
    assert page.goto(f"http://{ui.host}{deletion}").status == 405
    rebound = page.goto(f"http://{EVIL}:{ui.port}/")
    assert rebound.status == 403
    assert page.inner_text("body").startswith("Host: expected 127.0.0.1:")
    with dagster_instance() as instance:
        assert [run.run_id for run in instance.get_runs()] == [run_id]
