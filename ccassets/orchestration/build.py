"""Building a study from Python or the command line: `build` and `run_build`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from typing_extensions import Unpack

from ccassets.database.reader import as_list
from ccassets.extraction import assemble_database
from ccassets.orchestration.builder import Build, BuildResult
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.steps import progress_listener
from ccassets.progress import Listener
from ccassets.study.loading import load_study
from ccassets.study.schema import Study


class BuildOptions(TypedDict, total=False):
    """How a study is built; every option can be left out.

    Attributes:
        splits: Stop after the features of this split, or of these; by default the whole study is built.
        fresh: Encode all rows and prompts again, including those that parts hold.
        allow_loss: Replace the database although no part and no other database holds some of its rows.
        output: Write the database here as well.
        listener: Called with (what, done, total, remark) while steps work.
        store: Where the study's files lie, as in a project of one's own; by default below `CCASSETS_STORAGE`.
        encoder: Where the encoder runs, as in a project of one's own; by default on this machine's devices.
    """

    splits: str | Sequence[str] | None
    fresh: bool
    allow_loss: bool
    output: str | os.PathLike[str] | None
    listener: Listener | None
    store: StoreResource
    encoder: EncoderResource


def build(study: Study | str | os.PathLike[str], **options: Unpack[BuildOptions]) -> Path | None:
    """Materialize a study through Dagster.

    Sources are read again where their files changed; then only what is stale, missing or lost runs. An analysis that
    cannot be made is warned of.

    Args:
        study: The study, its name, or the path of its file.
        options: Those of `BuildOptions`.

    Returns:
        The path of the database; with `splits` None.

    Raises:
        StudyError: There is no such study, its file is wrong, or it has no such split.
        BuildError: A step failed, with its sentence; everything finished until then is kept.
    """
    result = run_build(study, **options)
    for notice in result.notices:
        warnings.warn(notice, stacklevel=2)
    return result.path


def run_build(study: Study | str | os.PathLike[str], **options: Unpack[BuildOptions]) -> BuildResult:
    """Do what `build` does, and return what ran.

    Args:
        study: The study, its name, or the path of its file.
        options: Those of `BuildOptions`.

    Returns:
        The path, what was materialized, and the notices, which `build` warns of.

    Raises:
        StudyError: There is no such study, its file is wrong, or it has no such split.
        BuildError: A step failed, with its sentence; everything finished until then is kept.
    """
    study = study if isinstance(study, Study) else load_study(study)
    splits = as_list(options.get("splits") or ())
    study.require_splits(splits)
    allow_loss = options.get("allow_loss", False)
    token = progress_listener.set(options.get("listener"))
    try:
        with dagster_instance() as instance:
            running = Build(
                study,
                instance,
                store=options.get("store") or StoreResource(),
                encoder=options.get("encoder") or EncoderResource(),
                fresh=options.get("fresh", False),
                allow_loss=allow_loss,
            )
            result = running.run(splits)
    finally:
        progress_listener.reset(token)
    output = options.get("output")
    if output is not None and result.path is not None:
        path = Path(output).absolute()
        result.path = assemble_database(study, store=running.store, output=path, allow_loss=allow_loss).path
    return result
