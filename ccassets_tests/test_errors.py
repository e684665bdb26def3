"""The exceptions: one tree, drawn in the docstring of their module."""

from __future__ import annotations

import re

import ccassets.errors
import ccassets.h5
from ccassets.errors import AdoptionError, CcassetsError, StorageError
from ccassets.findings import Finding


def drawn(page: str) -> dict[str, str]:
    """By exception: the one that it is drawn below."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for indent, name in re.findall(r"^([│├└─ ]*)([\w.]*Error)\b", page, re.MULTILINE):
        del path[len(indent) // 4 :]
        if path:
            parents[name] = path[-1]
        path.append(name)
    return parents


def full_name(exception: type[BaseException]) -> str:
    return f"ccassets.h5.{exception.__name__}" if exception.__name__ in ccassets.h5.__all__ else exception.__name__


def test_the_tree_in_the_docstring_is_that_of_the_classes() -> None:
    public = [getattr(module, name) for module in (ccassets.errors, ccassets.h5) for name in module.__all__]
    exceptions = [one for one in public if isinstance(one, type) and issubclass(one, Exception)]
    parents = {full_name(one): full_name(one.__bases__[0]) for one in exceptions if one is not CcassetsError}
    assert drawn(ccassets.errors.__doc__ or "") == parents


def test_every_exception_of_the_package_is_in_the_tree() -> None:
    pending, classes = [CcassetsError], []
    while pending:
        classes.append(pending.pop())
        pending += [one for one in classes[-1].__subclasses__() if one.__module__.startswith("ccassets.")]
    names = set(drawn(ccassets.errors.__doc__ or "")) | {"CcassetsError"}
    assert {full_name(one) for one in classes} == names


def test_an_error_says_whether_it_may_pass_by_itself() -> None:
    assert StorageError("the disk is busy", transient=True).transient
    assert not StorageError("the disk is full").transient


def test_an_adoption_error_lists_the_errors_and_keeps_all_findings() -> None:
    findings = [
        Finding("rows_written_twice", "error", "expected 4 rows, found 8", "split train"),
        Finding("no_keys", "warning", "expected keys, found none", "/keys"),
    ]
    error = AdoptionError("cells.h5 is not adopted:", findings)
    assert str(error) == "cells.h5 is not adopted:\nrows_written_twice at split train: expected 4 rows, found 8"
    assert error.findings == findings
