"""The commands for one file: info, validate, adopt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccassets.cli.options import FileArgument, HomeOption, JsonOption, StudyArgument
from ccassets.cli.terminal import print_findings, progress_bars
from ccassets.errors import AdoptionError

if TYPE_CHECKING:
    from ccassets.extraction.adoption import Adoption


def info(file: FileArgument, as_json: JsonOption = False) -> None:
    """Say what is in a file, in one screen."""
    from ccassets.database.sandbox import summarize_in_sandbox

    facts = summarize_in_sandbox(file)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join(_info_lines(facts)))


def validate(
    file: FileArgument,
    as_json: JsonOption = False,
    study: Annotated[str | None, typer.Option("--study", help="Compare the file with this study.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Recompute every digest.")] = False,
) -> None:
    """Check every invariant of a file; exit 1 when there is an error."""
    from ccassets.database.validation import validate_database
    from ccassets.findings import has_errors
    from ccassets.pages.report_page import findings_as_json
    from ccassets.study.loading import load_study

    findings = validate_database(file, study=load_study(study) if study else None, deep=deep, sandbox=True)
    if as_json:
        typer.echo(json.dumps(findings_as_json(findings), indent=2, ensure_ascii=False))
    else:
        print_findings(file, findings)
    if has_errors(findings):
        raise typer.Exit(1)


def adopt(
    file: FileArgument,
    study: StudyArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Keep what is provably right, name the rest.")] = False,
    home: HomeOption = None,
) -> None:
    """Take a file that is there already as a study's extraction; the file is never changed."""
    from ccassets.database.sandbox import require_readable
    from ccassets.extraction.adoption import adopt as take
    from ccassets.study.loading import load_study

    loaded = load_study(study)
    require_readable(file)
    try:
        with progress_bars() as listener:
            adoption = take(
                file, loaded, repair=repair, progress=lambda done, total: listener("rows taken over", done, total)
            )
    except AdoptionError as error:
        print_findings(file, error.findings)
        typer.echo(f"ccassets: {error.message}", err=True)
        raise typer.Exit(1) from None
    print_findings(file, adoption.findings)
    typer.echo("\n".join(_adoption_lines(adoption)))


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
