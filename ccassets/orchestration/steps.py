"""Behaviour of every step: it reports progress, and fails with our sentences or tries again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import dagster as dg

from ccassets.errors import BuildError, CcassetsError
from ccassets.files import own_error
from ccassets.orchestration.names import BUILD, STARTED_BY
from ccassets.progress import Listener, Progress

T = TypeVar("T")
R = TypeVar("R")

RETRY_SECONDS = (30, 120, 600)
"""How long a step waits before each retry after a transient error."""

_LOG_SECONDS = 15.0

progress_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)
"""The listener to the steps that run in this process, with which the command line draws its bars."""


def log_progress(context: dg.AssetExecutionContext, what: str, note: Callable[[], str] | None = None) -> Progress:
    """Progress that goes to the run's log a few times a minute, with rate and time left, and to the listener always.

    `note` returns further text for the line.
    """
    started = time.monotonic()
    last = started

    def report(done: int, total: int) -> None:
        nonlocal last
        listener = progress_listener.get()
        remark = note() if note else ""
        if listener is not None:
            listener(what, done, total, remark)
        now = time.monotonic()
        if now - last < _LOG_SECONDS or not done:
            return
        last = now
        rate = done / (now - started)
        left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate))
        message = f"{what}: {done} of {total}, {rate:.1f} per second, {left} left"
        context.log.info(f"{message}; {remark}" if remark else message)

    return report


def make_each(names: Iterable[T], make: Callable[[T], R]) -> Iterator[R]:
    """Make several things in one step. If one fails, the others are still made, and the step fails at its end.

    A transient error ends the step at once: it is tried again.
    """
    errors: dict[str, CcassetsError] = {}
    for name in names:
        try:
            yield make(name)
        except (CcassetsError, OSError) as raised:
            error = own_error(raised)
            if error is None or error.transient:
                raise
            errors[str(error)] = error
    if errors:
        raise BuildError("\n".join(errors)) if len(errors) > 1 else next(iter(errors.values()))


def retry_wait(context: dg.OpExecutionContext | dg.AssetExecutionContext, raised: Exception) -> int | None:
    """After how many seconds a step that failed with this error tries again; None where it does not.

    It tries again after a transient error, unless `ccassets build` started the run, where a user reads the message.
    """
    error, waits = own_error(raised), RETRY_SECONDS[context.retry_number :]
    if error is None or not error.transient or context.run.tags.get(STARTED_BY) == BUILD:
        return None
    return waits[0] if waits else None


@contextmanager
def errors_as_failures() -> Iterator[None]:
    """Show the text of our own errors, and of the system's, as the step's failure, or try the step again."""
    try:
        yield
    except (CcassetsError, OSError) as raised:
        error = own_error(raised)
        if error is None:
            raise
        failure = dg.Failure(description=str(error), allow_retries=False)
        context = dg.OpExecutionContext.get()
        wait = retry_wait(context, error)
        if wait is None:
            raise failure from raised
        failure.__cause__ = raised
        context.log.warning(f"{error}\nThis failure is transient: the step is tried again in {wait} seconds.")
        # Others may encode meanwhile; Dagster claims a slot again before it tries again.
        step = context.get_step_execution_context().step
        context.instance.event_log_storage.free_concurrency_slot_for_step(context.run_id, step.key)
        time.sleep(wait)  # Not left to Dagster, whose own wait is deaf to Terminate.
        raise dg.RetryRequested(max_retries=len(RETRY_SECONDS)) from failure
