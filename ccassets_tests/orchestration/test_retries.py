"""What may pass by itself is tried again by a run that nobody watches; a build at a terminal says it at once."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import medmnist
import pytest

from ccassets.errors import CcassetsError
from ccassets.files import storage_error
from ccassets.orchestration.build import run_build
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import ENCODER_POOL, job_name
from ccassets.orchestration.steps import errors_as_failures
from ccassets.study.schema import Study
from ccassets_tests.datasets.made_datasets import BLOOD_WORDS, MedMnistSite
from ccassets_tests.http_server import answering
from ccassets_tests.made_studies import edit_study


@dataclass
class Hub:
    """A server of one archive, which first gives the answers it was told to give instead."""

    archive: Path
    answers: list[int] = field(default_factory=list)
    requests: int = 0


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "site").mkdir()
    hub = Hub(MedMnistSite(tmp_path / "site", monkeypatch).archive("bloodmnist"))

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests += 1
            status = hub.answers.pop(0) if hub.answers else 200
            body = hub.archive.read_bytes() if status == 200 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("ccassets.orchestration.steps.RETRY_SECONDS", (0, 0, 0))
    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Answer)) as address:
        monkeypatch.setitem(medmnist.INFO["bloodmnist"], "url", f"{address}/blood")
        yield hub


@pytest.fixture
def asking(study: Study, hub: Hub, tmp_path: Path) -> Study:
    """A study whose data set has to be fetched from the hub."""
    dataset = {"kind": "medmnist", "name": "bloodmnist", "size": 28, "root": str(tmp_path / "mine"), "download": True}
    edit_study(study, lambda a: a["vocabulary"]["labels"].update(words=BLOOD_WORDS))
    return edit_study(study, lambda a: a.update(dataset=dataset))


def read_images(study: Study) -> tuple[bool, str]:
    """What happens in the UI: whether it went well in the end, and the run's log."""
    with dagster_instance() as instance:
        job = definitions_of(study).resolve_job_def(job_name(study, "read_images"))
        result = job.execute_in_process(instance=instance, partition_key="train", raise_on_error=False)
        log = "\n".join(entry.user_message for entry in instance.all_logs(result.run_id))
        failed = [event.step_failure_data for event in result.all_events if event.is_step_failure]
        sentences = [data.user_failure_data.description or "" for data in failed if data.user_failure_data]
    return result.success, "\n".join([log, *sentences])


def test_a_hub_that_is_busy_is_asked_again(asking: Study, hub: Hub) -> None:
    hub.answers = [503, 429]
    went_well, said = read_images(asking)
    assert went_well
    assert hub.requests == 3
    assert said.count("This failure is transient: the step is tried again in") == 2
    assert "503" in said


def test_the_pool_is_free_while_a_step_waits_for_its_next_attempt(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots: list[int] = []

    def record(_: float) -> None:
        slots.append(claimed())

    @dg.op(pool=ENCODER_POOL)
    def encode() -> None:
        with errors_as_failures():
            slots.append(claimed())
            if len(slots) == 1:
                raise storage_error(OSError(errno.EBUSY, "busy"), Path("weights"))

    @dg.job(executor_def=dg.in_process_executor)
    def encoding() -> None:
        encode()

    with dagster_instance() as instance:

        def claimed() -> int:
            return len(instance.event_log_storage.get_concurrency_info(ENCODER_POOL).claimed_slots)

        monkeypatch.setattr("ccassets.orchestration.steps.time", SimpleNamespace(sleep=record))
        assert encoding.execute_in_process(instance=instance).success
        assert slots == [1, 0, 1]
        assert claimed() == 0


def test_a_hub_that_stays_busy_ends_with_the_sentence(asking: Study, hub: Hub) -> None:
    hub.answers = [503] * 9
    went_well, said = read_images(asking)
    assert not went_well
    assert hub.requests == 4
    assert "could not be downloaded to" in said.splitlines()[-1]


def test_a_page_that_is_not_there_is_asked_for_once(asking: Study, hub: Hub) -> None:
    hub.answers = [404]
    went_well, said = read_images(asking)
    assert not went_well
    assert hub.requests == 1
    assert "tried again" not in said


def test_a_build_at_a_terminal_says_it_at_once(asking: Study, hub: Hub) -> None:
    hub.answers = [503]
    with pytest.raises(CcassetsError, match=r"503: .*Try again"):
        run_build(asking)
    assert hub.requests == 1


@pytest.mark.parametrize(("number", "transient"), [(errno.EBUSY, True), (errno.ESTALE, True), (errno.ENOSPC, False)])
def test_a_busy_disk_is_transient_and_a_full_one_is_not(number: int, transient: bool) -> None:
    assert storage_error(OSError(number, "no"), Path("a")).transient == transient
