"""The explorer of a small study, built and served once for a module of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccassets.database.reader import open_database
from ccassets_tests.pages.explorer_process import BuiltStudy, Client, build_study, served


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltStudy:
    return build_study(tmp_path_factory.mktemp("explorer"))


@pytest.fixture(scope="module")
def client(built: BuiltStudy) -> Iterator[Client]:
    with open_database(built.store.database) as database, served(database, built.study) as client:
        yield client
