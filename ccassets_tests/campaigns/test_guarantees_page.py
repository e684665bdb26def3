"""docs/guarantees.md names commands that are there, and `make guarantees` runs all of them."""

from __future__ import annotations

import re

from ccassets_tests.campaigns.__main__ import CAMPAIGNS, PAGE, ROOT, named_tests


def test_what_the_page_names_is_there_and_run() -> None:
    assert len(named_tests()) > 10
    for name in named_tests():
        path, _, function = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not function or f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), name
    campaigns = set(re.findall(r"python -m ccassets_tests\.campaigns\.(\w+)", PAGE.read_text(encoding="utf-8")))
    assert campaigns == set(CAMPAIGNS)
