"""What leaves this machine, and what a page made of data may do: nothing of the user's, and nothing."""

from __future__ import annotations

import getpass
import json
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer.testing

from ccassets.cli import app
from ccassets.orchestration.instance import dagster_instance
from ccassets.pages.report_page import ValidationReport, write_validation_report
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.campaigns.kill import analysed
from ccassets_tests.extraction.made_parts import build
from ccassets_tests.made_studies import VOCABULARY, picture, save_golden_weights, save_images, write_study
from ccassets_tests.orchestration.test_daemon import Webserver

HOSTILE = "</script><script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>.png"
TOKEN = "hf_marker0that0must0be0nowhere"
HOST = "host0that0must0be0nowhere"


@dataclass(frozen=True)
class Made:
    """Everything that a build leaves of a study whose words and file names are HTML; made with a token set."""

    folder: Path
    store: Store
    report: ValidationReport

    @property
    def files(self) -> list[Path]:
        return [path for path in self.store.root.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("exposure")
    image_folder = save_images(folder / "pictures")
    picture(1).save(image_folder / "train" / "blood" / IMAGE)
    (image_folder / "val" / "white" / "broken.png").write_bytes(b"no picture")
    words = [*VOCABULARY["concepts"]["words"], {"word": HOSTILE, "group": "<b>bold</b>"}]
    weights = save_golden_weights(folder / "weights")
    vocabulary = (weights / "vocab.txt").read_text(encoding="utf-8")
    for number, character in enumerate("</>1"):
        vocabulary = vocabulary.replace(f"[unused{number}]\n", f"{character}\n")
    (weights / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    study = write_study(
        folder / "studies" / "cells",
        images=image_folder,
        encoder=weights,
        vocabulary={**VOCABULARY, "concepts": {**VOCABULARY["concepts"], "words": words}},
        extraction={"on_bad_image": "skip"},
    )
    store = Store.of(study, folder / "storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        for module, name in ((socket, "gethostname"), (platform, "node")):
            patch.setattr(module, name, lambda: HOST)
        build(study, store=store)
        report = write_validation_report(study, store)
        analysed(study, store)
    return Made(folder, store, report)


def readable(path: Path) -> bytes:
    """What can be read of a file: its bytes, and of a compressed table its values."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    table = pq.ParquetFile(path).read()
    return json.dumps([str(table.schema.metadata), table.to_pydict()], default=str).encode() + path.read_bytes()


def test_no_artefact_holds_a_path_a_host_a_user_or_a_token(made: Made) -> None:
    kinds = {path.suffix for path in made.files}
    assert kinds >= {".h5", ".parquet", ".json", ".jsonl", ".html"}
    secrets = [TOKEN, HOST, str(made.folder), str(Path.home())]
    if len(getpass.getuser()) > 4:  # A short name is a word that stands anywhere.
        secrets.append(getpass.getuser())
    leaks = [(path.name, secret) for path in made.files for secret in secrets if secret.encode() in readable(path)]
    assert leaks == []
    assert any(b"broken.png" in readable(path) for path in made.files), "keys are there, and would be found"


class Handlers(HTMLParser):
    """The events that elements of a page handle by an attribute; ours do by no attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.events: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.events += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]


def test_words_and_names_from_data_are_text_on_every_page(made: Made) -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in made.files if path.suffix == ".html"}
    assert set(pages) == {"validation.html", "concept_atlas.html"}
    for name, page in pages.items():
        assert HOSTILE not in page, name
        assert IMAGE not in page, name
        assert Handlers(page).events == [], name
        assert "<b>bold" not in page, name
        assert "alert(1)" in page, f"{name} shows the concept, as text"
    assert HOSTILE not in made.report.markdown
    assert IMAGE not in made.report.markdown


def test_a_new_home_sends_no_telemetry(home: Path) -> None:
    with dagster_instance() as instance:
        assert not instance.telemetry_enabled


def test_the_ui_is_asked_for_on_loopback_and_can_be_nowhere_else() -> None:
    shown = typer.testing.CliRunner().invoke(app, ["ui", "--help"], env={"COLUMNS": "200"}).output
    assert "--port" in shown
    assert "--host" not in shown
    anywhere = typer.testing.CliRunner().invoke(app, ["ui", "--port", "0", "--listen", "0.0.0.0"])
    assert anywhere.exit_code == 2
    assert "--workspace" in anywhere.output


@pytest.mark.slow
def test_the_ui_listens_on_loopback_alone_and_calls_nobody(study: Study, tmp_path: Path) -> None:
    server = Webserver(study, tmp_path / "ui.log")
    try:
        server.wait(180)
        sockets = list(tcp_sockets(server.process.pid))
    finally:
        server.stop()
    assert ("127.0.0.1", server.port, True) in sockets
    assert [address for address in sockets if not address[0].startswith("127.")] == []


def tcp_sockets(session: int) -> Iterator[tuple[str, int, bool]]:
    """(address, port, whether it listens) of every TCP socket of a session: its own end, or who is called."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                inodes |= {str(fd.readlink()) for fd in (process / "fd").iterdir()}
        except OSError:
            continue  # It has ended.
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, state, *rest = line.split()
            if f"socket:[{rest[5]}]" in inodes:
                listens = state == "0A"
                address, port = (local if listens else remote).split(":")
                yield _address(address), int(port, 16), listens


def _address(text: str) -> str:
    """An address of /proc/net/tcp or tcp6, four bytes of the host's order after another."""
    data = b"".join(bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8))
    if len(data) == 16 and data[:12] != bytes(10) + b"\xff\xff":
        return "127.0.0.1" if data == bytes(15) + b"\x01" else socket.inet_ntop(socket.AF_INET6, data)
    return socket.inet_ntop(socket.AF_INET, data[-4:])
