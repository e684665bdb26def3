"""The commands for one feature file: info, validate, adopt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccassets.cli.options import DatabaseArgument, FileArgument, HomeOption, JsonOption, StudyArgument, StudyOption
from ccassets.cli.terminal import counted, print_findings, print_json, print_line, print_text, progress_bar
from ccassets.errors import AdoptionError

if TYPE_CHECKING:
    from ccassets.extraction.adoption import Adoption


def info(file: DatabaseArgument, as_json: JsonOption = False) -> None:
    """Show what a file contains, on one screen."""
    from ccassets.database.sandbox import summarize_in_sandbox

    facts = summarize_in_sandbox(file)
    if as_json:
        print_json(facts)
    else:
        for line in _info_lines(facts):
            print_line(line)


def validate(
    file: FileArgument,
    as_json: JsonOption = False,
    study: StudyOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also recompute every digest.")] = False,
) -> None:
    """Check a file against the format, and against a study if given; exit with 1 if there is an error."""
    from ccassets.database.validation import validate_database
    from ccassets.extraction.damage_tracing import trace_damage
    from ccassets.findings import has_errors
    from ccassets.pages.report_page import findings_as_json
    from ccassets.study.loading import load_study

    findings = validate_database(file, study=load_study(study) if study else None, deep=deep, sandbox=True)
    if deep:
        findings += trace_damage(file, findings)
    if as_json:
        print_json(findings_as_json(findings))
    else:
        print_findings(file, findings)
    if has_errors(findings):
        raise typer.Exit(1)


def adopt(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Path of the feature file; it is never changed.")],
    study: StudyArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Import the rows and templates that are provably right; list the others.")
    ] = False,
    sample: Annotated[
        bool,
        typer.Option(
            "--sample/--no-sample",
            help="Encode at most 64 images of each split, and prompts, to prove the order of what has no digests.",
        ),
    ] = True,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Import an existing feature file into a study; exit with 1 if it does not fit.

    The next build encodes what was not imported. Without a sample, rows and templates stay marked as unverified.
    """
    from ccassets.database.sandbox import require_readable
    from ccassets.extraction.adoption import adopt as adopt_file
    from ccassets.pages.report_page import findings_as_json
    from ccassets.study.loading import load_study

    loaded = load_study(study)
    require_readable(file)

    def announce_sample(images: int) -> None:
        if not as_json:
            text = f"Encoding a sample of {counted(images, 'image')} to prove the order of the rows"
            print_text(f"{text} (`--no-sample` leaves that out).", err=True)

    try:
        with progress_bar("rows imported") as progress:
            adoption = adopt_file(
                file, loaded, repair=repair, sample=sample, before_sample=announce_sample, progress=progress
            )
    except AdoptionError as error:
        if as_json:
            print_json({"adopted": False, "findings": findings_as_json(error.findings)["findings"]})
        else:
            print_findings(file, error.findings)
        print_text(f"ccassets: {error.message}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        findings = findings_as_json(adoption.findings)["findings"]
        print_json({"adopted": True, **_adoption_facts(adoption), "findings": findings})
    else:
        print_findings(file, adoption.findings)
        print_text("\n".join(_adoption_lines(adoption)))


def _info_lines(facts: dict[str, Any]) -> Iterator[str]:
    tokens = f", {facts['token_count']} patches each" if facts["token_count"] else ", no patches"
    yield f"{facts['file']}: {facts['profile']}, {facts['bytes']:,} bytes, written {facts['created_at']}"
    yield f"  images     {facts['rows']:,} of D = {facts['dim']}{tokens}"
    yield f"  splits     {', '.join(f'{name} {rows:,}' for name, rows in facts['splits'].items()) or 'none'}"
    if facts["limit"]:
        yield f"  limit      at most {facts['limit']} rows of each split"
    for name, template in facts["templates"].items():
        yield f"  template   {name}: {counted(template['prompts'], 'prompt')}, such as “{template['first']}”"
    if facts["logit_multiplier"] is not None:
        yield f"  scores     cosine x {facts['logit_multiplier']:.4g}"
    dataset = facts["dataset"]
    yield f"  data set   {dataset.get('name', 'not recorded')}"
    yield f"  encoder    {facts['encoder']['kind'] or 'not recorded'} {facts['encoder']['identity'] or ''}".rstrip()
    yield f"  origin     {facts['origin'] or 'not recorded'}"
    yield f"  digest     {facts['digest'] or 'not recorded'}"


def _adoption_facts(adoption: Adoption) -> dict[str, Any]:
    splits = [
        {
            "split": split.split,
            "rows": split.rows,
            "imported": split.taken,
            "missing": split.missing.tolist(),
            "missing_keys": list(split.missing_keys),
            **({} if split.order is None else {"order": dict(split.order)}),
        }
        for split in adoption.splits
    ]
    return {
        "matched_by": adoption.matched_by,
        "splits": splits,
        "templates": list(adoption.templates),
        "missing_templates": list(adoption.missing_templates),
        "sha256": adoption.sha256,
    }


def _adoption_lines(adoption: Adoption) -> Iterator[str]:
    from ccassets.database.validation.finding_collector import rows_text

    rows = sum(split.taken for split in adoption.splits)
    templates = counted(len(adoption.templates), "template")
    yield f"imported: {counted(rows, 'row')} (matched by {adoption.matched_by}) and {templates}"
    for split in adoption.splits:
        line = f"  {split.split}: {split.taken} of {split.rows} rows imported"
        held = split.rows - split.taken - len(split.missing)
        if held:
            line += f", {held} available from other parts"
        if len(split.missing):
            keys = f"{split.missing_keys[0]} … {split.missing_keys[-1]}"
            line += f"; the next build encodes {rows_text(split.missing)} ({len(split.missing)} images: {keys})"
        yield line
    orders = [split.order for split in adoption.splits if split.order is not None]
    sampled = sum(order.get("sampled", 0) for order in orders)
    if sampled:
        yield f"  order of the rows proved by a sample of {counted(sampled, 'image')}, encoded again"
    unverified = sum(split.taken for split in adoption.splits if split.order and split.order["verified_by"] is None)
    if unverified:
        yield f"  the order of {counted(unverified, 'row')} is unverified, and every file that holds them says so"
    if adoption.missing_templates:
        yield f"  the next build encodes the templates {', '.join(adoption.missing_templates)}"
