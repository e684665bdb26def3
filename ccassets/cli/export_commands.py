"""The commands that take a file's rows elsewhere: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccassets.cli.options import FileArgument, JsonOption, SplitOption
from ccassets.cli.terminal import print_json, print_text, progress_bar


def export(
    file: FileArgument,
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
