"""Remote databases: values, requests and bytes over a real HTTP server and S3, and what a bad answer leads to."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from ccassets import open_database
from ccassets.database import remote_file
from ccassets.errors import CcassetsError, DatabaseError, StorageError
from ccassets.exports.formats import export_checked
from ccassets_tests.cli.command_line import run
from ccassets_tests.database.made_files import DIM, SPLITS, TOKENS, write_database
from ccassets_tests.database.range_server import RangeServer, serve
from ccassets_tests.exports.test_formats import legacy

ROW, TOKEN = 2 * DIM, 2 * DIM
ROW_TOKENS = TOKENS * TOKEN


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    write_database(folder / "a.h5")
    with serve(folder) as running:
        yield running


def add_references(server: RangeServer) -> None:
    with open_database(server.folder / "a.h5") as database:
        export_checked(database, server.folder / "a.refs.json", url=f"{server.url}/")


def assert_same_content(url: str, path: Path) -> None:
    with open_database(url) as remote, open_database(path) as local:
        assert remote.is_remote
        assert len(remote) == len(local)
        assert dict(remote.attributes) == dict(local.attributes)
        assert dict(remote.splits) == dict(local.splits)
        assert remote.to_pandas().equals(local.to_pandas())
        for rows in (None, slice(3, 9), [5, 2, 2, -1], [0, 1, 2, 7], np.arange(len(local)) % 3 == 0, [], 4):
            ours, theirs = remote.select(rows=rows), local.select(rows=rows)
            assert np.array_equal(ours.image_features, theirs.image_features)
            if local.image_token_features is not None:
                assert np.array_equal(ours.image_token_features, theirs.image_token_features)
        for key in (0, -1, slice(2, 5), [3, 1], (2, 1), (slice(0, 3), 1), (1, slice(0, 2)), (2, -1, 3), ..., (..., 0)):
            for name in ("image_features", "image_token_features"):
                expected = getattr(local, name)
                if isinstance(expected, np.ndarray) and (name == "image_token_features" or key != (2, -1, 3)):
                    assert np.array_equal(np.asarray(getattr(remote, name)[key]), np.asarray(expected)[key]), key
        assert list(remote.templates) == list(local.templates)
        for name, template in local.templates.items():
            assert remote.templates[name].texts == template.texts
            assert np.array_equal(remote.templates[name].text_token_features, template.text_token_features)
        if local.templates and local.keys is not None:
            assert np.array_equal(remote.concept_features(), local.concept_features())
            remote.select(rows=[3, 1]).verify()


@pytest.mark.parametrize("references", [False, True], ids=["alone", "references"])
def test_a_remote_database_is_the_database(server: RangeServer, references: bool) -> None:
    if references:
        add_references(server)
    assert_same_content(f"{server.url}/a.h5", server.folder / "a.h5")


def test_a_remote_file_of_the_original_scripts_is_read_by_its_chunks(server: RangeServer) -> None:
    assert_same_content(f"{server.url}/b.h5", legacy(server.folder / "b.h5"))


@pytest.mark.parametrize("references", [False, True], ids=["alone", "references"])
def test_requests_and_bytes_are_those_of_the_rows(server: RangeServer, references: bool) -> None:
    if references:
        add_references(server)
    with open_database(f"{server.url}/a.h5") as database:
        server.count()
        _ = database.keys, database.labels, database.split, database.attributes, database.splits
        _ = [template.texts for template in database.templates.values()]
        _ = database.image_features, database.image_token_features
        requests, _ = server.count()
        assert not (requests and references)
        assert (database.image_features[7], server.count())[1] == (1, ROW)
        assert (database.image_token_features[7], server.count())[1] == (1, ROW_TOKENS)
        assert (database.image_token_features[7, 2], server.count())[1] == (1, TOKEN)
        assert (database.select("val").image_features, server.count())[1] == (1, SPLITS["val"] * ROW)
        assert (database.select(rows=[9, 3, 4, 3]).image_features, server.count())[1] == (2, 3 * ROW)


@pytest.mark.timeout(120)
def test_garbage_of_another_file_does_not_stop_a_file_that_is_being_opened(server: RangeServer) -> None:
    cycle: list[object] = [h5py.File(server.folder / "a.h5", "r")["labels"]]
    cycle.append(cycle)
    held = [cycle]
    del cycle
    server.before_answer = (
        held.clear
    )  # From now on it is garbage, and the next thread that makes an object collects it.
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        with open_database(f"{server.url}/a.h5") as database:
            assert len(database.keys) == len(database)
    finally:
        gc.set_threshold(*thresholds)
    assert not held


def test_rows_reach_the_workers_of_a_data_loader(server: RangeServer) -> None:
    add_references(server)
    with open_database(f"{server.url}/a.h5") as database:
        rows = database.torch_dataset("train", tokens=True)
        features = np.concatenate([one[0] for one in DataLoader(rows, batch_size=4, num_workers=1)])
        assert np.array_equal(features, database.select("train").image_features)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("cut", "cannot be read"),
        ("short", "expected 24 bytes at .*, received 23"),
        ("whole", "cannot be read"),
        ("slow", "did not answer in time"),
        ("refused", "refuses access"),
    ],
)
def test_a_bad_answer_is_a_sentence_and_never_a_row(
    server: RangeServer, fault: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "_SECONDS", 0.3)
    add_references(server)
    address = server.url.replace("http://", "http://anna:secret@")
    with open_database(f"{address}/a.h5?signature=secret") as database:
        server.fault = fault
        with pytest.raises(StorageError, match=sentence) as caught:
            _ = database.image_features[3]
        assert f"{server.url}/a.h5" in str(caught.value)
        assert "secret" not in f"{caught.value} {database} {database.path}"
        server.fault = ""
        server.released.set()
        with open_database(server.folder / "a.h5") as local:
            assert np.array_equal(database.image_features[3], local.image_features[3])


def test_a_file_that_is_replaced_while_it_is_read_gives_no_row(server: RangeServer) -> None:
    add_references(server)
    with open_database(f"{server.url}/a.h5") as database:
        os.utime(server.folder / "a.h5", ns=(1, 1))
        with pytest.raises(DatabaseError, match="was replaced since it was opened"):
            _ = database.image_features[3]


def test_rows_that_references_no_longer_fit_are_not_verified(server: RangeServer) -> None:
    add_references(server)
    with h5py.File(server.folder / "a.h5", "r+") as file:
        file["image_features"][3] = 0
    with open_database(f"{server.url}/a.h5") as database:
        database.select(rows=[2, 4]).verify()
        with pytest.raises(DatabaseError, match="row 3 does not have the bytes that were written"):
            database.select(rows=[2, 3]).verify()
    with (server.folder / "a.h5").open("ab") as file:
        file.write(b"0")
    with pytest.raises(DatabaseError, match=r"a\.refs\.json: expected references to a file of"):
        open_database(f"{server.url}/a.h5")


def test_what_is_not_a_database_is_said(server: RangeServer, tmp_path: Path) -> None:
    (server.folder / "text.h5").write_text("no HDF5" * 99)
    (server.folder / "linked.h5").write_bytes((server.folder / "a.h5").read_bytes())
    with h5py.File(server.folder / "linked.h5", "r+") as file:
        del file["labels"]
        file["labels"] = h5py.ExternalLink(str(server.folder / "a.h5"), "labels")
    with pytest.raises(DatabaseError, match=r"text\.h5 cannot be opened as HDF5"):
        open_database(f"{server.url}/text.h5")
    with pytest.raises(DatabaseError, match=r"none\.h5: there is no such file"):
        open_database(f"{server.url}/none.h5")
    with open_database(f"{server.url}/linked.h5") as database, pytest.raises(DatabaseError, match="external link"):
        _ = database.labels
    with pytest.raises(CcassetsError, match=r"nowhere://host/a\.h5"):
        open_database("nowhere://host/a.h5")


def test_texts_that_would_be_read_for_ever_are_refused(server: RangeServer) -> None:
    data = bytearray((server.folder / "a.h5").read_bytes())
    for match in re.finditer(re.escape(remote_file.HEAP_SIGNATURE), bytes(data)):
        data[match.start() + 16 : match.start() + 4096] = bytes(4080)
    (server.folder / "endless.h5").write_bytes(data)
    with (
        pytest.raises(DatabaseError, match="would read for ever"),
        open_database(f"{server.url}/endless.h5") as database,
    ):
        _ = database.keys


def test_commands_take_an_address_and_tell_the_cost_of_a_search(server: RangeServer) -> None:
    result = run("search", f"{server.url}/a.h5", "--row", "0", "-k", "2")
    assert result.code == 0, result.err
    assert "Reading 0.0 MB of features over the network." in result.err
    assert run("info", f"{server.url}/none.h5").code == 2


def test_a_bucket_of_s3(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[s3,server]'")
    add_references(server)
    bucket = moto.ThreadedMotoServer(port=0, verbose=False)
    bucket.start()
    try:
        host, port = bucket.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("bucket")
        for name in ("a.h5", "a.refs.json"):
            system.put_file(server.folder / name, f"bucket/{name}")
        with open_database("s3://bucket/a.h5") as remote, open_database(server.folder / "a.h5") as local:
            assert remote.to_pandas().equals(local.to_pandas())
            assert np.array_equal(remote.select(rows=[5, 2]).image_token_features, local.image_token_features[[5, 2]])
            system.put_file(server.folder / "a.refs.json", "bucket/a.h5")
            with pytest.raises(DatabaseError, match="was replaced since it was opened"):
                _ = remote.image_features[3]
        with pytest.raises(DatabaseError, match=r"s3://bucket/none\.h5: there is no such file"):
            open_database("s3://bucket/none.h5")
    finally:
        bucket.stop()
