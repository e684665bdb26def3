"""The commands that prepare and examine a study: new-study, encoders, doctor, bundle, precision-drift, certify."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

import typer

from ccassets.cli.options import DeviceOption, HomeOption, JsonOption, StudyArgument, complete_study
from ccassets.cli.terminal import counted, print_json, print_text, progress_bar

if TYPE_CHECKING:
    from ccassets.tools.doctor import Diagnosis
    from ccassets.tools.precision_drift import PrecisionDrift


def _require_empty(folder: Path) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        raise typer.BadParameter(f"{folder} is not empty; name a new folder.")
    return folder


def new_study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study: letters, digits and _.")],
    folder: Annotated[
        Path | None,
        typer.Option("--folder", metavar="DIRECTORY", help="Images in <split>/<class>/, in <class>/, or side by side."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", metavar="TABLE", help="A CSV or Parquet file with one image per row.")
    ] = None,
    huggingface: Annotated[
        str | None,
        typer.Option("--huggingface", metavar="PATH", help="A data set of the Hugging Face hub, or a folder of one."),
    ] = None,
    medmnist: Annotated[
        str | None, typer.Option("--medmnist", metavar="SET", help="A 2D set of MedMNIST, such as bloodmnist.")
    ] = None,
    encoder: Annotated[
        str,
        typer.Option("--encoder", metavar="PRESET|DIRECTORY", help="A model of `ccassets encoders`, or its folder."),
    ] = "conceptclip",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            file_okay=False,
            help="Folder of studies; the study file is written to NAME/defs.yaml in it.",
            show_default="CCASSETS_STUDIES, else ./studies",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the study file for a folder of images, a table, a Hugging Face data set or a set of MedMNIST."""
    from ccassets.tools import new_study as writers

    studies = output or Path(os.environ.get("CCASSETS_STUDIES") or "studies")
    if sum(source is not None for source in (folder, table, huggingface, medmnist)) != 1:
        raise typer.BadParameter("Give the images by one of --folder, --table, --huggingface and --medmnist.")
    if folder is not None:
        study = writers.write_folder_study(name, folder, studies, encoder=encoder)
    elif table is not None:
        study = writers.write_table_study(name, table, studies, encoder=encoder)
    elif huggingface is not None:
        study = writers.write_huggingface_study(name, huggingface, studies, encoder=encoder)
    else:
        study = writers.write_medmnist_study(name, str(medmnist), studies, encoder=encoder)
    if as_json:
        print_json({"study": str(study.path), "summary": study.summary, "splits": list(study.splits)})
        return
    path = os.path.relpath(study.path)
    print_text(f"{path}: {study.summary}")
    for line in study.splits:
        print_text(f"  {line}")
    print_text("Check its words, then run:")
    print_text(f"  ccassets doctor {path}")
    print_text(f"  ccassets build {path}")


def encoders(as_json: JsonOption = False) -> None:
    """List models that a study can name as its encoder, with licence, gate and input."""
    from ccassets.encoders.presets import READ_ON, load_presets

    presets = load_presets()
    if as_json:
        as_facts = {name: {**asdict(preset), "extra": preset.needed_extra} for name, preset in presets.items()}
        print_json({"read_on": READ_ON, "encoders": as_facts})
        return
    for name, preset in presets.items():
        gate = {True: "gated", False: "open", None: "gate not known"}[preset.gated]
        size = "" if preset.parameters is None else f", {preset.parameters / 1e6:,.0f} million parameters"
        extra = f"; pip install 'ccassets[{preset.needed_extra}]'" if preset.needed_extra else ""
        print_text(f"{name}: {preset.domain}")
        print_text(f"  {preset.line}{extra}")
        print_text(f"  licence {preset.license or 'not known'}, {gate}, {preset.image_size} px{size}")
        print_text(f"  patch tokens {preset.patch_tokens}; run by us: {'yes' if preset.run_by_us else 'never'}")
        for facts, source in preset.sources.items():
            print_text(f"  {facts.replace('_', ' ')}: {source}, {READ_ON}")


def doctor(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            autocompletion=complete_study,
            help="Study whose data, weights and disk are checked too: its name, or path to its defs.yaml.",
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compute the digests of weights again, however large they are.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Check whether this machine can build, and say what to do; exit with 1 if it cannot."""
    from ccassets.orchestration.dagster_diagnoses import diagnose_home, diagnose_records
    from ccassets.study.loading import load_study
    from ccassets.tools.doctor import diagnose

    diagnoses = diagnose(
        load_study(study) if study else None,
        deep=deep,
        diagnose_home=diagnose_home,
        diagnose_records=diagnose_records,
    )
    ok = all(diagnosis.level != "problem" for diagnosis in diagnoses)
    if as_json:
        print_json({"ok": ok, "lines": [asdict(diagnosis) for diagnosis in diagnoses]})
    else:
        _print_diagnoses(diagnoses)
    if not ok:
        raise typer.Exit(1)


def bundle(
    study: StudyArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", file_okay=False, callback=_require_empty, help="New folder for the bundle."),
    ],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Copy a study with its weights, tokenizer and data into one folder, for a machine without network.

    Prints the path of the study file in the bundle, which `ccassets build` takes on that machine.
    """
    from ccassets.study.loading import load_study
    from ccassets.tools.offline_bundle import write_bundle

    loaded = load_study(study)
    with progress_bar("bytes copied") as progress:
        written = write_bundle(loaded, output, progress=progress)
    if as_json:
        print_json({"study": str(written.study), "files": written.files, "bytes": written.bytes})
        return
    print_text(f"Copied {counted(written.files, 'file')} of {written.bytes:,} bytes.", err=True)
    print_text(written.study)


def precision_drift(
    study: StudyArgument,
    image_count: Annotated[
        int, typer.Option("--image-count", min=1, help="Number of images, evenly spaced over the data set.")
    ] = 64,
    compiled: Annotated[bool, typer.Option("--compiled", help="Also measure each precision compiled by torch.")] = (
        False
    ),
    device: DeviceOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Compare lower precisions of a study's encoder with float32: how far its features move, and the speed."""
    from ccassets.study.loading import load_study
    from ccassets.tools.precision_drift import measure_precision_drift

    loaded = load_study(study)
    with progress_bar("images encoded") as progress:
        drifts = measure_precision_drift(loaded, image_count, compiled=compiled, device=device, progress=progress)
    if as_json:
        print_json([drift.facts() for drift in drifts])
    else:
        print_text("\n".join(_drift_lines(drifts)))


def certify(
    study: StudyArgument,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Compare a study's ConceptCLIP with published values; exit with 1 if it deviates.

    Writes certificate.json into the study's folder in the storage; the next assembly takes it into the provenance.
    """
    from ccassets.study.loading import load_study
    from ccassets.tools.certify import certify_study

    loaded = load_study(study)
    with progress_bar("images encoded") as progress:
        certificate = certify_study(loaded, device=device, progress=progress)
    if as_json:
        print_json(certificate.facts())
    else:
        words = {True: "pass", False: "DEVIATES", None: "-"}
        for check in certificate.checks:
            off = "" if check.deviation is None else f", off by {check.deviation:.3g}"
            print_text(
                f"{words[check.passed]:<8}  {check.name}: expected {check.expected}, found {check.measured}{off}"
            )
    if not certificate.passed:
        raise typer.Exit(1)


def _print_diagnoses(diagnoses: Sequence[Diagnosis]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    styles = {"ok": "green", "warning": "yellow", "problem": "red"}
    for diagnosis in diagnoses:
        level = Text(f"{diagnosis.level:<8}", styles[diagnosis.level])
        console.print(level, Text(f"{diagnosis.what}: {diagnosis.message}"))
        if diagnosis.advice:
            console.print(Text(indent(diagnosis.advice, " " * 9)))


def _drift_lines(drifts: Sequence[PrecisionDrift]) -> Iterator[str]:
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
    yield f"{drifts[0].images} images; features and patches: mean cosine to float32; farthest: largest difference of"
    yield "a number in a patch; same label: images whose nearest label word is that of float32."
