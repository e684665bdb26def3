"""The commands that prepare a study: new-study, doctor, fetch, drift."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

import typer

from ccassets.cli.options import HomeOption, JsonOption, StudyArgument
from ccassets.cli.terminal import progress_bars

if TYPE_CHECKING:
    from ccassets.tools.doctor import Diagnosis
    from ccassets.tools.precision_drift import Drift


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


def fetch(
    study: StudyArgument,
    to: Annotated[Path, typer.Option("--to", help="A new folder for the bundle.")],
    home: HomeOption = None,
) -> None:
    """Gather weights, tokenizer and data of a study in one folder, for a machine without a network."""
    from ccassets.study.loading import load_study
    from ccassets.tools.offline_bundle import fetch_bundle

    loaded = load_study(study)
    with progress_bars() as listener:
        bundle = fetch_bundle(loaded, to, progress=lambda done, total: listener("copy (bytes)", done, total))
    typer.echo(f"{bundle.files} files of {bundle.bytes:,} bytes; `ccassets build` takes the study there:", err=True)
    typer.echo(bundle.study)


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
    with progress_bars() as listener:
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


def _print_diagnoses(lines: list[Diagnosis]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    styles = {"ok": "green", "warning": "yellow", "problem": "red"}
    for line in lines:
        console.print(Text(f"{line.level:<8}", styles[line.level]), Text(f"{line.what}: {line.message}"))
        if line.advice:
            console.print(Text(indent(line.advice, " " * 9)))


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
