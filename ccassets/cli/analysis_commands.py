"""The commands that analyse a file or a study: search, duplicates, apply, table, compare, explore."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccassets.cli.options import (
    CsvOutputOption,
    DatabaseArgument,
    HomeOption,
    JsonOption,
    SplitOption,
    StudyArgument,
    StudyOption,
    complete_study,
)
from ccassets.cli.terminal import counted, print_json, print_line, print_text, progress_bar
from ccassets.errors import DatabaseError
from ccassets.files import write_text

if TYPE_CHECKING:
    from ccassets.analysis import Hit
    from ccassets.database.reader import Database


def search(
    file: DatabaseArgument,
    text: Annotated[list[str] | None, typer.Option("--text", help="Text to search for; needs --study.")] = None,
    concept: Annotated[list[str] | None, typer.Option("--concept", help="Concept of the file to search for.")] = None,
    row: Annotated[list[int] | None, typer.Option("--row", help="Image to search for, by its row number.")] = None,
    minus: Annotated[list[str] | None, typer.Option("--minus", help="Text to subtract; needs --study.")] = None,
    study: StudyOption = None,
    patches: Annotated[bool, typer.Option("--patches", help="Search patches instead of whole images.")] = False,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Number of hits.")] = 10,
    split: SplitOption = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Use only the rows with this label: its name or number.")
    ] = None,
    group: Annotated[str | None, typer.Option("--group", help="Use only the rows of this patient or slide.")] = None,
    output: CsvOutputOption = None,
    output_images: Annotated[
        Path | None,
        typer.Option(
            "--output-images",
            file_okay=False,
            help="Also copy the images of the hits into this folder; needs --study.",
        ),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Find the images that are nearest to a text, a concept, an image, or a mixture of these.

    Repeat --text, --concept and --row for a mixture: their unit vectors are added, and those of --minus subtracted.
    """
    from ccassets.analysis import RowFilter, image_reader, save_hit_images, search as search_database, write_hits
    from ccassets.analysis.samples import class_names
    from ccassets.database.sandbox import open_unknown_database
    from ccassets.encoders import load_encoder
    from ccassets.study.loading import load_study

    if not (text or concept or row):
        raise typer.BadParameter("Give at least one of --text, --concept and --row.")
    if study is None and (text or minus or output_images):
        raise typer.BadParameter("--text, --minus and --output-images need --study.")
    loaded = load_study(study) if study else None
    with open_unknown_database(file) as database:
        _announce_reading(database, patches)
        hits = search_database(
            database,
            texts=text or (),
            concepts=concept or (),
            rows=row or (),
            minus=minus or (),
            encoder=load_encoder(loaded) if loaded and (text or minus) else None,
            patches=patches,
            k=top,
            where=RowFilter(split, label, group),
        )
        classes = class_names(database)
        if output_images and loaded:
            save_hit_images(hits, image_reader(loaded, database), output_images)
    if output:
        write_hits(hits, output)
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    for hit in hits:
        print_line(_hit_line(hit, classes))


def duplicates(
    file: DatabaseArgument,
    similarity: Annotated[
        float, typer.Option("--similarity", min=-1, max=1, help="Lowest cosine similarity of a pair.")
    ] = 0.99,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Number of pairs to show, most similar first.")] = 1000,
    output: CsvOutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find images in different splits that look alike; exit with 1 if there are any."""
    from ccassets.analysis import near_duplicates, write_pairs
    from ccassets.database.sandbox import open_unknown_database

    with open_unknown_database(file) as database:
        _announce_reading(database, patches=False)
        result = near_duplicates(database, similarity, top)
    if output:
        write_pairs(result.pairs, output)
    if as_json:
        print_json({"pairs": [asdict(pair) for pair in result.pairs], "found": result.count})
    else:
        for pair in result.pairs:
            one = f"{pair.split} row {pair.row} {pair.key or ''}".rstrip()
            other = f"{pair.other_split} row {pair.other_row} {pair.other_key or ''}".rstrip()
            print_line(f"{pair.similarity:7.4f}  {one}  {other}")
        pairs = counted(result.count, "pair")
        print_text(f"{pairs} with a similarity of at least {similarity:g}, {len(result.pairs):,} shown.", err=True)
    if result.count:
        raise typer.Exit(1)


def apply(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Path of a stored classifier (model.json).")],
    file: DatabaseArgument,
    split: SplitOption = None,
    by_group: Annotated[bool, typer.Option("--by-group", help="Average the rows of each patient or slide.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="Write to this file instead of stdout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of CSV.")] = False,
) -> None:
    """Predict the class of every row with a stored classifier; write the predictions as CSV.

    The file must have been made by the encoder that the classifier was fitted with.
    """
    from ccassets.analysis import apply_model, load_model
    from ccassets.database.sandbox import open_unknown_database

    fitted = load_model(model)
    with open_unknown_database(file) as database:
        predictions = apply_model(fitted, database, split)
    if by_group:
        predictions = predictions.by_group()
    text = json.dumps(predictions.records(), indent=2, ensure_ascii=False) + "\n" if as_json else predictions.csv()
    if output is None:
        print_text(text.removesuffix("\n"))
    else:
        write_text(output, text)


def table(
    study: StudyArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Folder that the tables are written to.")
    ] = Path("tables"),
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Write the tables of a paper as CSV and LaTeX: methods, few-shot curves, and concepts whose truth is known.

    The study's analyses must be built. Few-shot curves are fitted now; each access to the test split is recorded.
    """
    from ccassets.analysis import write_paper_tables
    from ccassets.study.loading import load_study
    from ccassets.study.storage import Store

    loaded = load_study(study)
    with progress_bar("few-shot curves") as progress:
        files = write_paper_tables(loaded, Store.of(loaded), output, progress)
    if as_json:
        print_json({"files": [str(path) for path in files]})
        return
    for path in files:
        print_text(path)


def compare(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Paths of the feature databases, two or more.")],
    study: StudyOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="Also write a page (.html), and tables beside it."),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Compare what encoders reach on the same images: zero-shot, probe, concept classifier, retrieval of concepts.

    Rows are matched by image digest. With --study, of the first FILE, the concepts that images show are known, and
    accesses to the test split are recorded.
    """
    from ccassets.analysis import HoldoutLog, compare_databases
    from ccassets.analysis.bottleneck import HOLDOUT_LOG
    from ccassets.database.sandbox import open_unknown_database
    from ccassets.pages.comparison_page import write_comparison
    from ccassets.study.loading import load_study
    from ccassets.study.storage import Store

    if len(files) < 2:
        raise typer.BadParameter("Give two files or more.", param_hint="'FILE'")
    if output and output.suffix != ".html":
        raise typer.BadParameter(f"Expected a name that ends in .html, found {output.name}.", param_hint="'--output'")
    loaded = load_study(study) if study else None
    log = HoldoutLog(Store.of(loaded).analysis / HOLDOUT_LOG) if loaded else None
    with ExitStack() as stack, progress_bar("comparison") as progress:
        databases = [stack.enter_context(open_unknown_database(file)) for file in files]
        comparison = compare_databases(databases, study=loaded, log=log, progress=progress)
    written = write_comparison(comparison, output) if output else []
    if as_json:
        print_json(comparison.as_dict())
        return
    for line in comparison.lines():
        print_line(line)
    for path in written:
        print_text(path)


def explore(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE|STUDY",
            autocompletion=complete_study,
            help="Path or address of a feature database, or name of a study, which has pictures and an encoder, too.",
        ),
    ],
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes any free port.")
    ] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    home: HomeOption = None,
) -> None:
    """Explore a database in the browser: map, search, heat maps, errors. Print the address; Ctrl-C ends it."""
    from ccassets.database.remote_file import is_url
    from ccassets.database.sandbox import open_unknown_database
    from ccassets.pages.explorer import serve_explorer
    from ccassets.study.loading import load_study
    from ccassets.study.storage import Store

    is_file = is_url(target) or (Path(target).is_file() and Path(target).suffix not in {".yaml", ".yml"})
    study = None if is_file else load_study(target)
    store = None if study is None else Store.of(study)
    if store is not None and not store.database.exists():
        raise DatabaseError(f"{store.database} does not exist yet: run `ccassets build {target}` first.")

    def announce(address: str) -> None:
        print_text(address)
        if not no_browser:
            webbrowser.open(address)

    with open_unknown_database(target if store is None else store.database) as database:
        serve_explorer(database, study, port=port, announce=announce)


def _announce_reading(database: Database, patches: bool) -> None:
    """Say beforehand how many bytes of a remote file will be read to compare every row."""
    values = database.image_token_features if patches else database.image_features
    if database.is_remote and values is not None:
        print_text(f"Reading {values.nbytes / 1e6:,.1f} MB of features over the network.", err=True)


def _hit_line(hit: Hit, classes: Sequence[str]) -> str:
    label = "no label" if hit.label is None else "none" if hit.label == -1 else f"label {hit.label}"
    if hit.label is not None and 0 <= hit.label < len(classes) and classes[hit.label] != str(hit.label):
        label += f" ({classes[hit.label]})"
    parts = [f"{hit.score:7.4f}", f"row {hit.row}", hit.split, label, hit.key]
    if hit.patch is not None:
        parts.append(f"patch {hit.patch}")
    return "  ".join(part for part in parts if part)
