"""Building a study from Python or the command line: `build` and `run_build`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from ccassets.extraction import assemble_database
from ccassets.orchestration.builder import Build, BuildResult
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.resources import EncoderResource
from ccassets.orchestration.steps import progress_listener
from ccassets.progress import Listener
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store


def build(
    study: Study | str | os.PathLike[str],
    *,
    splits: str | Sequence[str] | None = None,
    fresh: bool = False,
    allow_loss: bool = False,
    output: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
) -> Path | None:
    """Materialize a study through Dagster.

    Sources are read again where their files changed; then only what is stale or missing runs. An analysis that cannot
    be made is warned of.

    Args:
        study: The study, its name, or the path of its file.
        splits: Stop after the features of this split, or of these; by default the whole study is built.
        fresh: Encode again even what parts already hold.
        allow_loss: Replace the database although no part and no other database holds some of its rows.
        output: Write the database here as well.
        listener: Called with (what, done, total, remark) while steps work.

    Returns:
        The path of the database; with `splits` None.

    Raises:
        StudyError: There is no such study, its file is wrong, or it has no such split.
        BuildError: A step failed, with its sentence; everything finished until then is kept.
    """
    result = run_build(study, splits=splits, fresh=fresh, allow_loss=allow_loss, output=output, listener=listener)
    for notice in result.notices:
        warnings.warn(notice, stacklevel=2)
    return result.path


def run_build(
    study: Study | str | os.PathLike[str],
    *,
    splits: str | Sequence[str] | None = None,
    fresh: bool = False,
    allow_loss: bool = False,
    output: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
) -> BuildResult:
    """Materialize a study as `build` does, and say what ran.

    Args:
        study: The study, its name, or the path of its file.
        splits: Stop after the features of this split, or of these; by default the whole study is built.
        fresh: Encode again even what parts already hold.
        allow_loss: Replace the database although no part and no other database holds some of its rows.
        output: Write the database here as well.
        listener: Called with (what, done, total, remark) while steps work.

    Returns:
        The path, what was materialized, and what `build` would warn of.

    Raises:
        StudyError: There is no such study, its file is wrong, or it has no such split.
        BuildError: A step failed, with its sentence; everything finished until then is kept.
    """
    study = study if isinstance(study, Study) else load_study(study)
    splits = [splits] if isinstance(splits, str) else splits
    study.require_splits(splits or ())
    store = Store.of(study)
    repository = definitions_of(study).get_repository_def()
    token = progress_listener.set(listener)
    try:
        with dagster_instance() as instance:
            result = Build(
                study,
                repository,
                instance,
                store=store,
                encoder=EncoderResource(),
                fresh=fresh,
                allow_loss=allow_loss,
            ).run(splits)
    finally:
        progress_listener.reset(token)
    if output is not None and result.path is not None:
        output = Path(output).absolute()
        result.path = assemble_database(study, store=store, output=output, allow_loss=allow_loss).path
    return result
