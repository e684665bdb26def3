"""The commands that analyse a file: search, duplicates, apply."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ccassets.cli.options import FileArgument, HomeOption, JsonOption


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
    from ccassets.analysis.vector_search import RowFilter, copy_images, write_csv
    from ccassets.analysis.vector_search import search as find
    from ccassets.database.reader import open_database
    from ccassets.encoders import load_encoder
    from ccassets.study.loading import load_study

    if not (text or concept or row):
        raise typer.BadParameter("name what to search for: --text, --concept or --row")
    if study is None and (text or minus or images):
        raise typer.BadParameter("a text needs the encoder, and images need the data set: name --study")
    loaded = load_study(study) if study else None
    encoder = load_encoder(loaded) if loaded and (text or minus) else None
    where = RowFilter(split, label, group)
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
            from ccassets.analysis.image_source import image_reader

            copy_images(hits, image_reader(loaded, database), images)
    if as_json:
        typer.echo(json.dumps([asdict(hit) for hit in hits], indent=2, ensure_ascii=False))
        return
    for hit in hits:
        patch = "" if hit.patch is None else f"  patch {hit.patch}"
        typer.echo(f"{hit.score:7.4f}  row {hit.row}  {hit.split}  label {hit.label}  {hit.key or ''}{patch}".rstrip())


def duplicates(
    file: FileArgument,
    similarity: Annotated[float, typer.Option("--similarity", help="Lowest cosine of a pair.")] = 0.99,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pairs at most.")] = 1000,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the pairs to this file too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find images that look alike and lie in different splits; exit 1 when there are any."""
    from ccassets.analysis.vector_search import Pair, near_duplicates, write_csv
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


def apply(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A stored classifier, model.json.")],
    file: FileArgument,
    split: Annotated[str | None, typer.Option("--split", help="Only the rows of this split.")] = None,
    by_group: Annotated[bool, typer.Option("--by-group", help="One line for each patient or slide.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write here instead of printing.")] = None,
) -> None:
    """Predict the class of every row of a file as CSV; a file of another encoder is refused."""
    from ccassets.analysis.concept_models import apply_model, load_model
    from ccassets.database.reader import open_database
    from ccassets.files import write_text

    with open_database(file) as database:
        predictions = apply_model(load_model(model), database, split)
    text = (predictions.by_group() if by_group else predictions).csv()
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
