"""The commands of a build: build, extract, prune, ui, studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccassets.cli.options import HomeOption, JsonOption, StudyArgument
from ccassets.cli.terminal import progress_bars

if TYPE_CHECKING:
    from ccassets.study.schema import Study


def build(
    study: StudyArgument,
    split: Annotated[list[str] | None, typer.Option("--split", help="Stop after the features of this split.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be encoded.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Encode everything again.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write the database here as well.")] = None,
    home: HomeOption = None,
) -> None:
    """Materialize a study through Dagster; prints the database's path last."""
    from ccassets.study.loading import load_study

    loaded = load_study(study)
    if plan:
        _print_plan(loaded, split, fresh)
        return
    from ccassets.orchestration.build import run_build

    with progress_bars() as listener:
        result = run_build(loaded, splits=split, fresh=fresh, output=output, listener=listener)
    for notice in result.notices:
        typer.echo(f"ccassets: {notice}", err=True)
    if not (result.materialized or result.notices):
        typer.echo(f"Nothing is stale: {loaded.name} is up to date.", err=True)
    if result.path is not None:
        typer.echo(result.path)


def extract(
    study: StudyArgument,
    shards: Annotated[
        str, typer.Option("--shards", metavar="I/N", help="This is job I of N jobs that share the work.")
    ] = "1/1",
    home: HomeOption = None,
) -> None:
    """Encode images without Dagster, as one job of an array; the next build takes up what all of them encoded."""
    from ccassets.extraction import extract_shards
    from ccassets.extraction.runners import choose_runner
    from ccassets.progress import StageTimes
    from ccassets.study.loading import load_study

    number, _, count = shards.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise typer.BadParameter(f"two numbers such as 3/8 are expected; found {shards!r}", param_hint="--shards")
    loaded = load_study(study)
    times = StageTimes()
    with progress_bars() as listener:
        done = extract_shards(
            loaded,
            int(number),
            int(count),
            runner=choose_runner(),
            progress=lambda done, total: listener("images encoded", done, total, str(times)),
            times=times,
        )
    told = f"{done.encoded} images encoded in {done.shards} shards; {done.times}" if done.shards else "Nothing encoded."
    typer.echo(told, err=True)
    if done.left_to_others:
        typer.echo(f"{done.left_to_others} shards were encoded elsewhere meanwhile, or still are.", err=True)


def prune(
    study: StudyArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    home: HomeOption = None,
) -> None:
    """Remove parts that no known study needs, and what dead processes left behind."""
    from ccassets.extraction.pruning import prune as remove
    from ccassets.study.loading import load_study

    found = remove(load_study(study), dry_run=dry_run)
    for item in found:
        typer.echo(f"{item.bytes:>15,} bytes  {item.path}  ({item.reason})")
    verdict = "could be removed" if dry_run else "were removed"
    typer.echo(f"{len(found)} files of {sum(item.bytes for item in found):,} bytes {verdict}.")


def ui(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on loopback; 0: any free one.")] = 3000,
    token: Annotated[
        bool, typer.Option("--token", help="Ask every browser for a token: for a machine that others use, too.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME[:PORT]", help="Answer under this address, too: a proxy, a tunnel."),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Start the Dagster UI and daemon on this machine, until Ctrl-C."""
    from ccassets.orchestration.ui_server import serve_ui

    serve_ui(port, allowed_hosts=allow_host or (), with_token=token)


def studies(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the studies, with what is built, stale and failed."""
    from ccassets.orchestration.component import definitions_of
    from ccassets.orchestration.status import status_of_studies
    from ccassets.study.loading import load_study, study_files

    loaded = [load_study(path) for path in study_files().values()]
    states = status_of_studies(loaded, definitions_of(*loaded))
    if as_json:
        typer.echo(json.dumps(states, indent=2, ensure_ascii=False))
        return
    width = max((len(name) for name in states), default=0)
    for name, state in states.items():
        counts = ", ".join(f"{len(assets)} {word}" for word, assets in state.items() if assets)
        typer.echo(f"{name:<{width}}  {counts}")


def _print_plan(study: Study, splits: list[str] | None, fresh: bool) -> None:
    from ccassets.extraction import identify_encoder, plan_study, read_images
    from ccassets.extraction.sources import fetched
    from ccassets.study.storage import Store

    store = Store.of(study)
    identify_encoder(study, store=store)
    dataset = fetched(study, store)
    for split in study.splits:
        read_images(study, split, store=store, dataset=dataset)
    plan = plan_study(study, splits, fresh=fresh)
    for part in plan.images:
        typer.echo(f"{part.split}: {part.to_encode} of {part.rows} images to encode, in {len(part.shards)} shards")
    typer.echo(f"templates to encode: {', '.join(plan.templates) or 'none'}")
    typer.echo(f"parts to write: {plan.part_bytes / 1e9:.3f} GB; the database: {plan.database_bytes / 1e9:.3f} GB")
    if plan.seconds is not None:
        typer.echo(f"time, at the speed of the last parts: {plan.seconds:.0f} s")
    elif plan.to_encode:
        typer.echo("time: not known before the first shard of this encoder was encoded")
