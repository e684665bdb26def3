"""The commands about the rows of a file: export, publish, explain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ccassets.cli.options import DatabaseArgument, FileArgument, JsonOption, SplitOption
from ccassets.cli.terminal import print_json, print_line, print_text, progress_bar


def export(
    file: DatabaseArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Path of the file, or of the new folder, to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format", help="csv, parquet, h5ad, refs, or a folder: huggingface, npy.", show_default="the suffix"
        ),
    ] = None,
    split: SplitOption = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Export patch features, too.")] = False,
    url: Annotated[
        str | None, typer.Option("--url", help="For refs: where the file will lie, such as s3://bucket/features.h5.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the rows of a file for other tools: features, classes, concept scores, predictions, digests."""
    from ccassets.database.reader import open_database
    from ccassets.exports import export as export_rows

    with open_database(file) as database, progress_bar("rows exported") as progress:
        export_rows(database, output, format=format, split=split, tokens=tokens, url=url, progress=progress)
        rows = len(database.select(split))
    if as_json:
        print_json({"path": str(output), "rows": rows})
    else:
        print_text(output)


def publish(
    file: FileArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Path of the new folder to write.")],
    as_json: JsonOption = False,
) -> None:
    """Write a Hugging Face dataset folder with a data card and Croissant metadata; never with images.

    The study must name the `license` of its data set.
    """
    from ccassets.database.reader import open_database
    from ccassets.exports import publish as publish_rows

    with open_database(file) as database, progress_bar("rows published") as progress:
        publish_rows(database, output, progress)
    if as_json:
        print_json({"path": str(output)})
    else:
        print_text(output)


def explain(
    file: DatabaseArgument,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of a row: the path of its image, as in `search`.")],
    as_json: JsonOption = False,
) -> None:
    """Show where a row comes from: its image, part, encoder and label, and other rows of the same image."""
    from ccassets.analysis import explain_rows
    from ccassets.database.sandbox import open_unknown_database

    with open_unknown_database(file) as database:
        rows = explain_rows(database, key)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        for line in _history_lines(row):
            print_line(line)


def _history_lines(row: dict[str, Any]) -> Iterator[str]:
    dataset, encoder = row["dataset"], row["encoder"]
    yield f"{row['key']}: row {row['row']}, split {row['split']}"
    version = f", version {dataset['version']}" if dataset["version"] else ""
    yield f"  image       of {dataset['kind']} {dataset['name']}{version}, digest {row['image_digest']}"
    corrected = f", was {row['label_when_encoded']} when the image was encoded" if "label_when_encoded" in row else ""
    yield f"  label       {row['class'] or row['label']}{corrected}"
    if "label_in_dataset" in row:
        yield f"              overridden by the study; the data set says {row['label_in_dataset']}"
    if "group" in row:
        yield f"  group       {row['group']}"
    yield f"  encoder     {encoder['kind']} {encoder['identity']}, features {row['feature_digest']}"
    if "part" in row:
        device = f" on {row['device']}" if "device" in row else ""
        yield f"  part        {row['part']}, {row['part_origin']} {row.get('encoded_at', '')}{device}"
        source = (
            f"reused: encoded as {row['part_key']} of {row['part_split']}" if row["reused"] else "encoded for this row"
        )
        yield f"              {source}"
    else:
        yield "  part        gone"
    yield f"  assembled   {row['assembled_at']}"
    for title, rows in (("same image", row["same_image"]), ("looks alike", row["near_duplicates"])):
        for other in rows:
            similarity = f", cosine {other['similarity']:.4f}" if "similarity" in other else ""
            yield f"  {title:<11} row {other['row']}, {other['split']}, {other['class']}, {other['key']}{similarity}"
