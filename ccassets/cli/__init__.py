"""The command line: what it says and how it ends. The work is done by the library, and by Dagster for a build."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccassets import __version__
from ccassets.errors import AdoptionError, AnalysisError, CcassetsError, DatabaseError, StudyError

if TYPE_CHECKING:
    from ccassets.extraction.adoption import Adoption
    from ccassets.findings import Finding
    from ccassets.study.schema import Study
    from ccassets.tools.doctor import Diagnosis
    from ccassets.tools.precision_drift import Drift

app = typer.Typer(
    help="Medical images and concepts become one checked feature database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _use_home(path: Path | None) -> Path | None:
    # The environment is how the library and every process started from here learn of it.
    if path is not None:
        os.environ["CCASSETS_HOME"] = str(path.expanduser().absolute())
    return path


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


HomeOption = Annotated[
    Path | None,
    typer.Option("--home", callback=_use_home, help="Folder of Dagster's records.", show_default="./.ccassets"),
]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study, or path to a defs.yaml.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A feature database.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["CCASSETS_DEBUG"] = "1"


@app.command()
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

    with _progress_bars() as listener:
        result = run_build(loaded, splits=split, fresh=fresh, output=output, listener=listener)
    for notice in result.notices:
        typer.echo(f"ccassets: {notice}", err=True)
    if not (result.materialized or result.notices):
        typer.echo(f"Nothing is stale: {loaded.name} is up to date.", err=True)
    if result.path is not None:
        typer.echo(result.path)


@app.command()
def extract(
    study: StudyArgument,
    shards: Annotated[
        str, typer.Option("--shards", metavar="I/N", help="This is job I of N jobs that share the work.")
    ] = "1/1",
    home: HomeOption = None,
) -> None:
    """Encode images without Dagster, as one job of an array; the next build takes up what all of them encoded."""
    from ccassets.extraction import extract_shards
    from ccassets.extraction.image_shards import StageTimes
    from ccassets.extraction.runners import choose_runner
    from ccassets.study.loading import load_study

    number, _, count = shards.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise typer.BadParameter(f"two numbers such as 3/8 are expected; found {shards!r}", param_hint="--shards")
    loaded = load_study(study)
    times = StageTimes()
    with _progress_bars() as listener:
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
    if done.elsewhere:
        typer.echo(f"{done.elsewhere} shards were encoded elsewhere meanwhile, or still are.", err=True)


@app.command()
def drift(
    study: StudyArgument,
    images: Annotated[int, typer.Option("--images", min=1, help="How many, evenly spaced over the data set.")] = 64,
    compiled: Annotated[bool, typer.Option("--compiled", help="Each precision also compiled by torch.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="cuda, cuda:1, cpu, …; by default a GPU.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Compare lower precisions of an encoder with float32 on a study's images, and their speeds; stores nothing."""
    from ccassets.study.loading import load_study
    from ccassets.tools.precision_drift import measure_drift

    loaded = load_study(study)
    with _progress_bars() as listener:
        drifts = measure_drift(
            loaded,
            images,
            compiled=compiled,
            device=device,
            progress=lambda done, total: listener("images compared", done, total),
        )
    if as_json:
        typer.echo(json.dumps([drift.facts() for drift in drifts], indent=2))
        return
    typer.echo("\n".join(_drift_lines(drifts)))


@app.command()
def ui(
    port: Annotated[int, typer.Option("--port", help="Port on loopback.")] = 3000,
    home: HomeOption = None,
) -> None:
    """Start the Dagster UI and daemon on this machine, until Ctrl-C."""
    from ccassets.orchestration.status import dagster_instance
    from ccassets.study.storage import home as home_folder
    from ccassets.study.storage import storage_root

    with dagster_instance():
        pass  # Makes the home with our dagster.yaml, or says why it cannot.
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home_folder()),
        "CCASSETS_STORAGE": str(storage_root()),
    }
    typer.echo(f"The UI will answer at http://127.0.0.1:{port} (Ctrl-C stops it).", err=True)
    command = [sys.executable, "-m", "dagster", "dev", "-m", "ccassets.definitions", "-h", "127.0.0.1", "-p", str(port)]
    # Dagster stops its own processes by SIGINT, which is ignored where a script started us with `&`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.execve(sys.executable, command, environment)  # In our place: whoever stops us stops it, by any signal.


@app.command()
def studies(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the studies, with what is built, stale and failed."""
    from ccassets.orchestration.status import study_states

    states = study_states()
    if as_json:
        typer.echo(json.dumps(states, indent=2, ensure_ascii=False))
        return
    width = max((len(name) for name in states), default=0)
    for name, state in states.items():
        counts = ", ".join(f"{len(assets)} {word}" for word, assets in state.items() if assets)
        typer.echo(f"{name:<{width}}  {counts}")


@app.command()
def info(file: FileArgument, as_json: JsonOption = False) -> None:
    """Say what is in a file, in one screen."""
    from ccassets.database.sandbox import summarize_foreign

    facts = summarize_foreign(file)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join(_info_lines(facts)))


@app.command()
def validate(
    file: FileArgument,
    as_json: JsonOption = False,
    study: Annotated[str | None, typer.Option("--study", help="Compare the file with this study.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Recompute every digest.")] = False,
) -> None:
    """Check every invariant of a file; exit 1 when there is an error."""
    from ccassets.database.sandbox import validate_foreign
    from ccassets.findings import has_errors
    from ccassets.pages.report_page import findings_as_json
    from ccassets.study.loading import load_study

    findings = validate_foreign(file, study=load_study(study) if study else None, deep=deep)
    if as_json:
        typer.echo(json.dumps(findings_as_json(findings), indent=2, ensure_ascii=False))
    else:
        _print_findings(file, findings)
    if has_errors(findings):
        raise typer.Exit(1)


@app.command()
def adopt(
    file: FileArgument,
    study: StudyArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Keep what is provably right, name the rest.")] = False,
    home: HomeOption = None,
) -> None:
    """Take a file that is there already as a study's extraction; the file is never changed."""
    from ccassets.database.sandbox import require_survivable
    from ccassets.extraction.adoption import adopt as take
    from ccassets.study.loading import load_study

    loaded = load_study(study)
    require_survivable(file)
    try:
        with _progress_bars() as listener:
            adoption = take(
                file, loaded, repair=repair, progress=lambda done, total: listener("rows taken over", done, total)
            )
    except AdoptionError as error:
        _print_findings(file, error.findings)
        typer.echo(f"ccassets: {error.message}", err=True)
        raise typer.Exit(1) from None
    _print_findings(file, adoption.findings)
    typer.echo("\n".join(_adoption_lines(adoption)))


@app.command()
def apply(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A stored classifier, model.json.")],
    file: FileArgument,
    split: Annotated[str | None, typer.Option("--split", help="Only the rows of this split.")] = None,
    by_group: Annotated[bool, typer.Option("--by-group", help="One line for each patient or slide.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write here instead of printing.")] = None,
) -> None:
    """Predict the class of every row of a file as CSV; a file of another encoder is refused."""
    from ccassets.analysis.models import apply_model, load_model
    from ccassets.database.reader import open_database
    from ccassets.files import write_text

    with open_database(file) as database:
        predictions = apply_model(load_model(model), database, split)
    text = (predictions.by_group() if by_group else predictions).csv()
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)


@app.command()
def search(
    file: FileArgument,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text, as it is; needs --study.")] = None,
    concept: Annotated[list[str] | None, typer.Option("--concept", help="A concept of the file.")] = None,
    row: Annotated[list[int] | None, typer.Option("--row", help="An image, by the number of its row.")] = None,
    minus: Annotated[list[str] | None, typer.Option("--minus", help="A text to keep away from; needs --study.")] = None,
    study: Annotated[str | None, typer.Option("--study", help="The study the file was built from.")] = None,
    patches: Annotated[bool, typer.Option("--patches", help="Search patches instead of whole images.")] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    split: Annotated[str | None, typer.Option("--split", help="Only rows of this split.")] = None,
    label: Annotated[int | None, typer.Option("--label", help="Only rows with this label.")] = None,
    group: Annotated[str | None, typer.Option("--group", help="Only rows of this group.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the hits to this file too.")] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Copy the hits' images here; needs --study.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Find the images nearest to a text, a concept or an image; several together are a mixture."""
    from ccassets.analysis.search import Where, copy_images, write_csv
    from ccassets.analysis.search import search as find
    from ccassets.database.reader import open_database
    from ccassets.encoders import load_encoder
    from ccassets.study.loading import load_study

    if not (text or concept or row):
        raise typer.BadParameter("name what to search for: --text, --concept or --row")
    if study is None and (text or minus or images):
        raise typer.BadParameter("a text needs the encoder, and images need the data set: name --study")
    loaded = load_study(study) if study else None
    encoder = load_encoder(loaded) if loaded and (text or minus) else None
    where = Where(split, label, group)
    with open_database(file) as database:
        hits = find(
            database,
            texts=text or (),
            concepts=concept or (),
            rows=row or (),
            minus=minus or (),
            encoder=encoder,
            patches=patches,
            k=k,
            where=where,
        )
        if csv:
            write_csv(hits, csv)
        if images and loaded:
            from ccassets.analysis.image_source import picture_reader

            copy_images(hits, picture_reader(loaded, database), images)
    if as_json:
        typer.echo(json.dumps([asdict(hit) for hit in hits], indent=2, ensure_ascii=False))
        return
    for hit in hits:
        patch = "" if hit.patch is None else f"  patch {hit.patch}"
        typer.echo(f"{hit.score:7.4f}  row {hit.row}  {hit.split}  label {hit.label}  {hit.key or ''}{patch}".rstrip())


@app.command()
def duplicates(
    file: FileArgument,
    similarity: Annotated[float, typer.Option("--similarity", help="Lowest cosine of a pair.")] = 0.99,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pairs at most.")] = 1000,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the pairs to this file too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find images that look alike and lie in different splits; exit 1 when there are any."""
    from ccassets.analysis.search import Pair, near_duplicates, write_csv
    from ccassets.database.reader import open_database

    with open_database(file) as database:
        found = near_duplicates(database, similarity, k)
    if csv:
        write_csv(found.pairs, csv, Pair)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        for pair in found.pairs:
            one = f"{pair.split} row {pair.row} {pair.key or ''}".rstrip()
            other = f"{pair.other_split} row {pair.other_row} {pair.other_key or ''}".rstrip()
            typer.echo(f"{pair.similarity:7.4f}  {one}  {other}")
        typer.echo(f"{found.found} pairs of at least {similarity:g}, {len(found.pairs)} shown.", err=True)
    if found.found:
        raise typer.Exit(1)


@app.command()
def doctor(
    study: Annotated[str | None, typer.Argument(metavar="STUDY", help="Look at what this study needs, too.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say what would stop a build, and what to do about it; exit 1 when something does."""
    from ccassets.orchestration.dagster_diagnoses import diagnose_home, diagnose_records
    from ccassets.study.loading import load_study
    from ccassets.tools.doctor import diagnose

    lines = diagnose(
        load_study(study) if study else None, diagnose_home=diagnose_home, diagnose_records=diagnose_records
    )
    ok = all(line.level != "problem" for line in lines)
    if as_json:
        content = {"ok": ok, "lines": [asdict(line) for line in lines]}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _print_diagnoses(lines)
    if not ok:
        raise typer.Exit(1)


@app.command()
def fetch(
    study: StudyArgument,
    to: Annotated[Path, typer.Option("--to", help="A new folder for the bundle.")],
    home: HomeOption = None,
) -> None:
    """Gather weights, tokenizer and data of a study in one folder, for a machine without a network."""
    from ccassets.study.loading import load_study
    from ccassets.tools.offline_bundle import fetch_bundle

    loaded = load_study(study)
    with _progress_bars() as listener:
        bundle = fetch_bundle(loaded, to, progress=lambda done, total: listener("copy (bytes)", done, total))
    typer.echo(f"{bundle.files} files of {bundle.bytes:,} bytes; `ccassets build` takes the study there:", err=True)
    typer.echo(bundle.study)


@app.command()
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


@app.command()
def new_study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and _.")],
    folder: Annotated[Path | None, typer.Option("--folder", help="Images in <split>/<class>/ or <class>/.")] = None,
    medmnist: Annotated[str | None, typer.Option("--medmnist", help="A 2D set of MedMNIST: bloodmnist, …")] = None,
    into: Annotated[
        Path | None, typer.Option("--into", help="Folder of studies.", show_default="CCASSETS_STUDIES, else ./studies")
    ] = None,
) -> None:
    """Write a study file for your own images, with what was found in them."""
    from ccassets.tools.new_study import new_folder_study, new_medmnist_study

    if (folder is None) == (medmnist is None):
        raise typer.BadParameter("name the images: either --folder or --medmnist")
    studies_folder = os.environ.get("CCASSETS_STUDIES")
    target = into or Path(studies_folder or "studies")
    if folder is not None:
        new = new_folder_study(name, folder, target)
    else:
        new = new_medmnist_study(name, medmnist or "", target)
    shown = os.path.relpath(new.path)
    typer.echo(f"{shown}: {new.found}")
    for line in new.splits:
        typer.echo(f"  {line}")
    typer.echo("Read it and correct its words, then:")
    typer.echo(f"  ccassets doctor {shown}")
    typer.echo(f"  ccassets build {shown}")


def main() -> None:
    """Run the command line; our own errors end in one clear message on stderr."""
    # Before torch is imported: threads that wait for each other would else take the cores from those that decode.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except CcassetsError as error:
        if os.environ.get("CCASSETS_DEBUG"):
            raise
        typer.echo(f"ccassets: {error}", err=True)
        sys.exit(2 if isinstance(error, (StudyError, DatabaseError, AnalysisError)) else 1)


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


def _info_lines(facts: dict[str, Any]) -> Iterator[str]:
    tokens = f", {facts['token_count']} patches each" if facts["token_count"] else ", no patches"
    yield f"{facts['file']}: {facts['profile']}, {facts['bytes']:,} bytes, written {facts['created_at']}"
    yield f"  images     {facts['rows']:,} of D = {facts['dim']}{tokens}"
    yield f"  splits     {', '.join(f'{name} {rows:,}' for name, rows in facts['splits'].items()) or 'none'}"
    if facts["limit"]:
        yield f"  limit      only {facts['limit']} rows of each split were taken"
    for name, template in facts["templates"].items():
        yield f"  template   {name}: {template['prompts']} prompts, such as “{template['first']}”"
    if facts["logit_multiplier"] is not None:
        yield f"  scores     cosine x {facts['logit_multiplier']:.4g}"
    dataset = facts["dataset"]
    yield f"  data set   {dataset.get('name', 'not recorded')}"
    yield f"  encoder    {facts['encoder']['kind'] or 'not recorded'} {facts['encoder']['identity'] or ''}".rstrip()
    yield f"  origin     {facts['origin'] or 'not recorded'}"
    yield f"  digest     {facts['digest'] or 'not recorded'}"


def _drift_lines(drifts: Sequence[Drift]) -> Iterator[str]:
    yield f"{'':<18} {'images/s':>9} {'features':>9} {'patches':>9} {'farthest':>9} {'same label':>11} {'accuracy':>9}"
    for drift in drifts:
        facts = drift.facts()
        tokens = facts["tokens"]
        cosine = f"{tokens['mean_cosine']:.6f}" if tokens else "-"
        largest = f"{tokens['largest_difference']:.2g}" if tokens else "-"
        same, right = (f"{facts[name]:.1%}" if facts[name] is not None else "-" for name in ("agreement", "accuracy"))
        name = f"{drift.dtype} compiled" if drift.compiled else drift.dtype
        yield (
            f"{name:<18} {drift.images_per_second:>9.2f} {facts['features']['mean_cosine']:>9.6f} {cosine:>9} "
            f"{largest:>9} {same:>11} {right:>9}"
        )
    yield f"{drifts[0].images} images; mean cosines to float32, and the largest difference of a number in a patch."


def _adoption_lines(adoption: Adoption) -> Iterator[str]:
    from ccassets.database.validation.finding_collector import rows_text

    rows = sum(split.taken for split in adoption.splits)
    yield f"taken over: {rows} rows, told by {adoption.matched_by}, and {len(adoption.templates)} templates"
    for split in adoption.splits:
        line = f"  {split.split}: {split.taken} of {split.rows} rows taken over"
        held = split.rows - split.taken - len(split.missing)
        if held:
            line += f", {held} need no other features than parts hold already"
        if len(split.missing):
            keys = f"{split.missing_keys[0]} … {split.missing_keys[-1]}"
            line += f"; the next build encodes {rows_text(split.missing)} ({len(split.missing)} images: {keys})"
        yield line
    if adoption.missing_templates:
        yield f"  the next build encodes the templates {', '.join(adoption.missing_templates)}"


def _print_findings(file: Path, findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for finding in findings:
        style = "red" if finding.severity == "error" else "yellow"
        console.print(Text(f"{finding.severity} {finding.check}", style), Text(f"{finding.message} [{finding.where}]"))
    errors = sum(finding.severity == "error" for finding in findings)
    verdict = "valid" if not errors else "not valid"
    console.print(Text(f"{file.name} is {verdict}: {errors} errors, {len(findings) - errors} warnings."))


def _print_diagnoses(lines: list[Diagnosis]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    styles = {"ok": "green", "warning": "yellow", "problem": "red"}
    for line in lines:
        console.print(Text(f"{line.level:<8}", styles[line.level]), Text(f"{line.what}: {line.message}"))
        if line.advice:
            console.print(Text(indent(line.advice, " " * 9)))


@contextmanager
def _progress_bars() -> Iterator[Any]:
    """A listener that draws a bar for everything that is counted, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def listen(what: str, done: int, total: int, note: str = "") -> None:
        if what not in tasks:
            progress.start()  # Not before there is something to show: an error is the first line then.
            tasks[what] = progress.add_task(what, total=total, note=note)
        progress.update(tasks[what], completed=done, total=total, note=note)

    try:
        yield listen
    finally:
        if tasks:
            progress.stop()
