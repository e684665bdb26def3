"""The commands that build databases and look after them: build, extract, prune, ui, studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccassets.cli.options import HomeOption, JsonOption, StudyArgument
from ccassets.cli.terminal import counted, print_json, print_text, progress_bars
from ccassets.errors import EncoderError, StudyError

if TYPE_CHECKING:
    from ccassets.extraction.plan import StudyPlan
    from ccassets.study.schema import Study


def build(
    study: StudyArgument,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Stop after the features of this split; repeatable.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would be encoded, how many bytes, and how long.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore finished parts and encode everything again.")] = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Replace a database although nothing else holds some of its rows.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Also write the database to this file.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Build a study's database through Dagster; the last line printed is its path."""
    from ccassets.analysis.results import RESULT_FILES
    from ccassets.study.loading import load_study
    from ccassets.study.storage import Store

    if output and (plan or split):
        raise typer.BadParameter("--output needs a whole build: use it without --plan and --split.")
    loaded = load_study(study)
    if plan:
        _print_plan(*_plan_build(loaded, split, fresh), as_json)
        return
    from ccassets.orchestration.build import run_build

    with progress_bars() as listener:
        result = run_build(loaded, splits=split, fresh=fresh, allow_loss=allow_loss, output=output, listener=listener)
    if as_json:
        database = None if result.path is None else str(result.path)
        print_json({"database": database, "materialized": result.materialized, "notices": result.notices})
        return
    for notice in result.notices:
        print_text(f"ccassets: {notice}", err=True)
    if not (result.materialized or result.notices):
        print_text(f"Nothing is stale: {loaded.name} is up to date.", err=True)
    if result.path is not None:
        atlas = Store.of(loaded).analysis / RESULT_FILES["concept_atlas"]
        if atlas.is_file():
            print_text(f"concept atlas: {atlas.as_uri()}", err=True)
        print_text(result.path)


def extract(
    study: StudyArgument,
    shards: Annotated[str, typer.Option("--shards", metavar="I/N", help="Run as job I of N that share the work.")] = (
        "1/1"
    ),
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Encode a study's images without Dagster, as one job of an array; the next build uses the result.

    Run `ccassets build STUDY --plan` once before the jobs: it reads the images and the encoder.
    """
    from ccassets.extraction import extract_shards
    from ccassets.extraction.runners import choose_runner
    from ccassets.progress import StageTimes
    from ccassets.study.loading import load_study

    number, _, count = shards.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise typer.BadParameter(f"expected I/N with 1 <= I <= N, such as 3/8, found {shards!r}", param_hint="--shards")
    loaded = load_study(study)
    times = StageTimes()
    with progress_bars() as listener:
        extraction = extract_shards(
            loaded,
            int(number),
            int(count),
            runner=choose_runner(),
            progress=lambda done, total: listener("images encoded", done, total, str(times)),
            times=times,
        )
    if as_json:
        facts = {"images": extraction.encoded, "shards": extraction.shards}
        print_json({**facts, "shards_left_to_others": extraction.left_to_others})
        return
    if extraction.shards:
        images, encoded_shards = counted(extraction.encoded, "image"), counted(extraction.shards, "shard")
        print_text(f"Encoded {images} in {encoded_shards}; {extraction.times}.", err=True)
    else:
        print_text("Nothing encoded.", err=True)
    if extraction.left_to_others:
        print_text(f"Other processes encoded {counted(extraction.left_to_others, 'shard')} or still do.", err=True)


def prune(
    study: StudyArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed, and why.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Also remove parts younger than a day.")] = False,
    runs: Annotated[
        int | None,
        typer.Option(
            "--runs",
            min=0,
            metavar="DAYS",
            help="Also delete runs that ended longer ago, with their logs; the last two runs of an asset stay.",
        ),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Remove from a study's storage the parts that no study needs, and temporary files of dead processes.

    Removes nothing while the needs of any study are unknown. `pruned.jsonl` in the storage names what was removed.
    """
    from ccassets.extraction.pruning import prune as prune_storage
    from ccassets.study.loading import load_study

    unneeded = prune_storage(load_study(study), dry_run=dry_run, now=now)
    kept = [file for file in unneeded if file.recent and not now]
    removed = [file for file in unneeded if file not in kept]
    size = sum(file.bytes for file in removed)
    forgotten = None if runs is None else _forget_old_runs(runs, dry_run)
    if as_json:
        facts = {"files": [asdict(file) for file in removed], "kept": [asdict(file) for file in kept]}
        print_json(
            {"removed": not dry_run, "bytes": size, **facts, **({} if forgotten is None else {"runs": forgotten})}
        )
        return
    for file in removed:
        print_text(f"{file.bytes:>15,} bytes  {file.path}  ({file.reason})")
    print_text(f"{'Would remove' if dry_run else 'Removed'} {counted(len(removed), 'file')} of {size:,} bytes.")
    if kept:
        print_text(
            f"Kept {counted(len(kept), 'file')} of {sum(file.bytes for file in kept):,} bytes that no study needs and "
            "that are younger than a day; --now removes them, too."
        )
    if forgotten is not None:
        print_text(f"{'Would forget' if dry_run else 'Forgot'} {counted(len(forgotten), 'run')}.")


def _forget_old_runs(days: int, dry_run: bool) -> list[str]:
    from ccassets.orchestration.instance import dagster_instance
    from ccassets.orchestration.run_retention import forget_old_runs

    with dagster_instance() as instance:
        return forget_old_runs(instance, days, dry_run=dry_run)


def ui(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes any free port.")
    ] = 3000,
    token: Annotated[
        bool, typer.Option("--token", help="Require a token from every browser, on a machine with other users.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME[:PORT]",
            help="Also answer under this address of a proxy or tunnel.",
        ),
    ] = None,
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="ADDRESS",
            help="With --workspace, in a container: the address to listen on, with a token.",
        ),
    ] = "127.0.0.1",
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace",
            exists=True,
            dir_okay=False,
            help="Show the code servers of this workspace.yaml, and start neither a code server nor a daemon.",
        ),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Start the Dagster UI and its daemon on this machine; stop them with Ctrl-C."""
    if listen != "127.0.0.1" and workspace is None:
        raise typer.BadParameter("--listen is for containers: use it with --workspace. The UI itself is on loopback.")
    from ccassets.orchestration.ui_server import serve_ui

    serve_ui(port, address=listen, allowed_hosts=allow_host or (), with_token=token, workspace=workspace)


def studies(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List the studies, and how many of their assets are built, stale, failed and missing."""
    from ccassets.orchestration.component import definitions_of
    from ccassets.orchestration.status import status_of_studies
    from ccassets.study.loading import load_studies

    loaded, errors = load_studies()
    statuses = status_of_studies(loaded, definitions_of(*loaded))
    if as_json:
        print_json(statuses)
    else:
        width = max((len(name) for name in statuses), default=0)
        for name, status in statuses.items():
            counts = ", ".join(f"{len(assets)} {state}" for state, assets in status.items() if assets)
            print_text(f"{name:<{width}}  {counts}")
    if errors:
        raise StudyError("\n".join(map(str, errors)))


def _plan_build(study: Study, splits: Sequence[str] | None, fresh: bool) -> tuple[StudyPlan, float]:
    """Read what a plan needs, and plan; with the mean share of a picture that the encoder never sees.

    If the weights are missing, the published sizes are used, and the reason is printed.
    """
    from ccassets.extraction import identify_encoder, plan_study, read_images
    from ccassets.extraction.plan import expected_row_bytes, size_study
    from ccassets.extraction.sources import fetch_dataset, unseen_share
    from ccassets.study.storage import Store
    from ccassets.tools.doctor import without_downloads

    study.require_splits(splits or ())
    store = Store.of(study)
    card = None
    try:
        card = identify_encoder(study, store=store)
    except EncoderError as error:
        if expected_row_bytes(study) is None or not without_downloads(study)[1]:
            raise
        print_text(f"Sizes are those that are published, since the weights are missing: {error}", err=True)
    dataset = fetch_dataset(study, store)
    for split in study.splits:
        read_images(study, split, store=store, dataset=dataset)
    if card is None:
        return size_study(study, splits, store=store), 0.0
    return plan_study(study, splits, fresh=fresh), unseen_share(study, dataset, card)


def _print_plan(plan: StudyPlan, unseen: float, as_json: bool) -> None:
    from ccassets.database.token_geometry import cropping_warning

    if as_json:
        print_json({**_plan_facts(plan), "unseen_share": unseen})
        return
    print_text("\n".join(_plan_lines(plan)))
    if warning := cropping_warning(unseen):
        print_text(warning)


def _plan_facts(plan: StudyPlan) -> dict[str, Any]:
    return {
        "splits": [
            {"split": part.split, "rows": part.rows, "to_encode": part.to_encode, "shards": len(part.shards)}
            for part in plan.images
        ],
        "templates": list(plan.templates),
        "part_bytes": plan.part_bytes,
        "database_bytes": plan.database_bytes,
        "seconds": plan.seconds,
    }


def _plan_lines(plan: StudyPlan) -> Iterator[str]:
    for part in plan.images:
        shards = counted(len(part.shards), "shard")
        line = f"{part.split}: {part.to_encode} of {part.rows} images to encode, in {shards}"
        copies = part.rows - part.held - part.to_encode
        if copies:
            line += f"; {copies} more with the pixels of another"
        yield line
    yield f"templates to encode: {', '.join(plan.templates) or 'none'}"
    yield f"parts to write: {plan.part_bytes / 1e9:.3f} GB; database: {plan.database_bytes / 1e9:.3f} GB"
    if plan.seconds is not None:
        yield f"time at the speed of the last parts: {plan.seconds:.0f} s"
    elif plan.to_encode:
        yield "time: unknown until a shard of this encoder is encoded"
