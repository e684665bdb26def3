"""The explorer's routes over HTTP: what they answer equals the analyses, what they refuse, and its description."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.routing import Route

from ccassets.analysis import concept_scores, load_model, near_duplicates, patch_scores, project_features
from ccassets.analysis.concept_models import apply_model
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.row_history import explain_rows
from ccassets.analysis.vector_search import RowFilter, search
from ccassets.database.reader import open_database
from ccassets.encoders import load_encoder
from ccassets.errors import AnalysisError
from ccassets.exports.study_of_rows import label_overrides, study_of_rows
from ccassets.pages.explorer.explorer_routes import MOST_UPLOADED, STATIC, api_routes
from ccassets.pages.explorer.explorer_state import Explorer, SearchQuery
from ccassets.pages.explorer.point_columns import Column, coded, pack_columns
from ccassets_tests.database.made_files import write_database
from ccassets_tests.orchestration.ui_process import ignoring_interrupts
from ccassets_tests.pages.explorer_process import BuiltStudy, Client, served, unpacked

DESCRIPTION = json.loads((STATIC / "openapi.json").read_text(encoding="utf-8"))
WORD, TEXT = "Round nucleus", "a cell with granules"
QUERY = "concept=Round+nucleus"


@pytest.fixture
def file_client(tmp_path: Path) -> Iterator[Client]:
    """The explorer of a file without its study."""
    with open_database(write_database(tmp_path / "features.h5")) as database, served(database, None) as client:
        yield client


# --- the description ---------------------------------------------------------------------------------


def test_the_description_names_every_route_with_its_method() -> None:
    described = {(path, method.upper()) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    routes = api_routes(Explorer.__new__(Explorer))
    served = {(route.path.replace(":int}", "}"), *(route.methods - {"HEAD"})) for route in routes}
    assert all(isinstance(route, Route) for route in routes)
    assert served == described


ANSWERED = {
    "/api/info": "/api/info",
    "/api/search": f"/api/search?{QUERY}&k=3",
    "/api/rows/{row}": "/api/rows/3",
    "/api/rows/{row}/history": "/api/rows/3/history",
    "/api/heat/{row}": f"/api/heat/3?{QUERY}",
    "/api/errors/confident": "/api/errors/confident",
    "/api/errors/labels": "/api/errors/labels",
    "/api/errors/duplicates": "/api/errors/duplicates",
    "/api/errors/left-out": "/api/errors/left-out",
}


def content_of(path: str, method: str = "get") -> dict[str, Any]:
    content: dict[str, Any] = DESCRIPTION["paths"][path][method]["responses"]["200"]["content"]
    return content


def test_every_route_that_answers_json_is_asked_below() -> None:
    assert set(ANSWERED) == {
        path
        for path, methods in DESCRIPTION["paths"].items()
        if "get" in methods and [*content_of(path)] == ["application/json"]
    }


@pytest.mark.parametrize("path", ANSWERED)
@pytest.mark.parametrize("which", ["client", "file_client"])
def test_answers_are_as_they_are_described(path: str, which: str, request: pytest.FixtureRequest) -> None:
    answer = request.getfixturevalue(which).request("GET", ANSWERED[path])
    schema = content_of(path)["application/json"]["schema"] if answer.status == 200 else {
        "$ref": "#/components/schemas/Error"
    }  # fmt: skip
    jsonschema.validate(answer.json, {**schema, "components": DESCRIPTION["components"]})
    assert which == "file_client" or answer.status == 200


# --- search ------------------------------------------------------------------------------------------


def rows_of(answer: Any) -> list[tuple[int, float]]:
    return [(hit["row"], hit["score"]) for hit in answer["rows"]]


def test_searches_find_what_the_library_finds(client: Client, built: BuiltStudy) -> None:
    database = client.explorer.database
    encoder = load_encoder(built.study)
    for query, own in [
        ({"concepts": WORD}, QUERY),
        ({"texts": TEXT, "encoder": encoder}, "text=a+cell+with+granules"),
        ({"rows": [7]}, "row=7"),
    ]:
        hits = search(database, k=9, where=RowFilter(split="val"), **query)
        answer = client.get(f"/api/search?{own}&split=val&k=9")
        assert rows_of(answer) == [(hit.row, hit.score) for hit in hits]
        first, rest = (client.get(f"/api/search?{own}&split=val&{part}") for part in ("k=4", "k=5&offset=4"))
        assert first["rows"] + rest["rows"] == answer["rows"]


def test_a_search_is_filtered_by_class_and_says_how_many_rows_are_left(client: Client) -> None:
    database = client.explorer.database
    answer = client.get(f"/api/search?{QUERY}&class=monocyte&k=100")
    assert {hit["class"] for hit in answer["rows"]} == {"monocyte"}
    assert answer["total"] == len(answer["rows"]) == int((database.labels == 5).sum())


def test_without_a_query_rows_come_in_the_order_of_the_file(client: Client) -> None:
    answer = client.get("/api/search?split=test&k=3&offset=2")
    first = client.explorer.database.splits["test"].start
    assert rows_of(answer) == [(first + 2, None), (first + 3, None), (first + 4, None)]
    assert answer["total"] == 12


def test_a_patch_finds_the_patches_that_are_nearest(client: Client) -> None:
    database = client.explorer.database
    tokens = np.asarray(database.image_token_features, np.float64)
    tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    best = (tokens @ tokens[5, 40]).max(axis=1)
    best[5] = -2
    answer = client.get("/api/search?patch=5:40&k=6")
    assert [hit["row"] for hit in answer["rows"]] == np.argsort(-best, kind="stable")[:6].tolist()
    assert answer["compared"] == answer["total"] == 63
    hit = answer["rows"][0]
    assert hit["score"] == pytest.approx(tokens[hit["row"], hit["patch"]] @ tokens[5, 40], abs=1e-5)


def test_an_image_file_is_searched_by(client: Client) -> None:
    picture = client.request("GET", "/api/rows/9/image").body
    uploaded = client.request("POST", "/api/images", picture)
    answer = client.get(f"/api/search?image={uploaded.json['image']}&k=1")
    assert answer["rows"][0]["row"] == 9
    assert answer["rows"][0]["score"] > 0.999


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (f"/api/search?{QUERY}&row=1", "Expected one of"),
        ("/api/search?concept=nothing", "has no concepts"),
        ("/api/search?split=nothing", "has no split"),
        ("/api/search?class=nothing", "has no label"),
        ("/api/search?row=64", "Expected a row from 0 to 63"),
        ("/api/search?k=-1", "k: expected a number"),
        ("/api/search?k=1001", "k: expected a number"),
        ("/api/search?patch=3", "patch: expected ROW:PATCH"),
        ("/api/search?patch=3:144", "Expected a patch from 0 to 143"),
        ("/api/search?image=0123", "not kept any more"),
        ("/api/search?text=%20", "Expected a text of 1 to"),
        ("/api/rows/64", "Expected a row from 0 to 63"),
        ("/api/rows/64/image", "Expected a row from 0 to 63"),
        ("/api/heat/3", "Expected either a text or a concept"),
        ("/api/points?columns=x,z", "Expected columns among"),
        ("/api/scores", "Nothing to score by"),
        ("/api/rows/3/image?side=5000", "side: expected a number up to 2048"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(client: Client, path: str, sentence: str) -> None:
    assert sentence in client.refusal(path)


# --- rows --------------------------------------------------------------------------------------------


def test_a_row_has_its_scores_prediction_and_history(client: Client, built: BuiltStudy) -> None:
    database = client.explorer.database
    row = client.get("/api/rows/60")
    scores = concept_scores(database)
    assert [concept["word"] for concept in row["concepts"]] == list(database.concepts)
    assert [concept["score"] for concept in row["concepts"]] == pytest.approx(scores[60].tolist(), abs=1e-6)
    standard = (scores[60] - scores.mean(axis=0)) / scores.std(axis=0)
    assert [concept["standard"] for concept in row["concepts"]] == pytest.approx(standard.tolist(), abs=1e-3)
    model = load_model(built.store.analysis / "model.json")
    predictions = apply_model(model, database)
    prediction = row["prediction"]
    assert prediction["class"] == predictions.predicted[60]
    assert [*prediction["probabilities"].values()] == pytest.approx(predictions.probabilities[60].tolist())
    logit = model.classifier.logits(scores[60:71])[0, predictions.probabilities[60].argmax()]
    intercept = model.classifier.intercept[predictions.probabilities[60].argmax()]
    total = sum(part["value"] for part in prediction["contributions"])
    assert total + intercept == pytest.approx(logit, abs=1e-4)
    assert client.get("/api/rows/60/history")["row"] == explain_rows(database, database.keys[60])[0]["row"]


def test_predictions_of_held_out_rows_are_recorded_as_accesses(client: Client, built: BuiltStudy) -> None:
    client.get("/api/errors/confident")
    accesses = HoldoutLog(built.store.analysis / "looks.jsonl").accesses()
    assert [(access.split, access.what) for access in accesses] == [
        ("val", "explorer: predictions"),
        ("test", "explorer: predictions"),
    ]


def test_a_heat_map_is_the_cosines_of_patches(client: Client, built: BuiltStudy) -> None:
    database = client.explorer.database
    expected = patch_scores(database, [3], WORD)[0, 0].reshape(12, 12)
    heat = client.get(f"/api/heat/3?{QUERY}")
    assert np.array(heat["grid"]) == pytest.approx(expected, abs=1e-6)
    assert heat["box"] == [0, 0, 1, 1]
    usual = patch_scores(database, None, WORD)
    assert heat["low"] == pytest.approx(usual.mean() + usual.std(), abs=0.02)
    assert heat["high"] > heat["low"]
    assert client.get("/api/heat/3?text=a+cell+with+granules")["grid"] != heat["grid"]


def test_images_are_the_ones_that_were_encoded(client: Client) -> None:
    image = client.request("GET", "/api/rows/4/image")
    assert image.headers["content-type"] == "image/png"
    assert image.body.startswith(b"\x89PNG")
    small = client.request("GET", "/api/rows/4/image?side=32")
    assert small.headers["content-type"] == "image/webp"
    assert len(small.body) < len(image.body)


# --- points ------------------------------------------------------------------------------------------


def test_points_say_where_every_row_lies_and_what_it_is(client: Client) -> None:
    database = client.explorer.database
    columns = unpacked(client.request("GET", "/api/points").body)
    plane = project_features(database, "pca")
    assert np.array_equal(columns["x"][0], plane[:, 0])
    assert np.array_equal(columns["y"][0], plane[:, 1])
    codes, names = columns["split"]
    assert [names[code] for code in codes] == database.split.tolist()
    codes, names = columns["class"]
    assert np.array_equal(codes, database.labels)
    predicted, names = unpacked(client.request("GET", "/api/points?columns=predicted").body)["predicted"]
    assert len(predicted) == 64
    assert names[: len(client.get("/api/info")["classes"])] == client.get("/api/info")["classes"]
    scores, _ = unpacked(client.request("GET", f"/api/scores?{QUERY}").body)["score"]
    assert scores == pytest.approx(concept_scores(database, WORD)[:, 0], abs=1e-6)


def test_codes_and_offsets_survive_packing() -> None:
    texts = np.array(["b", "", "细胞", "b"], object)
    columns = [Column("x", np.arange(4, dtype=np.float32)), coded("class", texts, ["a", "b"])]
    values = unpacked(pack_columns(4, columns))
    assert values["x"][0].tolist() == [0, 1, 2, 3]
    assert values["class"][0].tolist() == [1, 65535, 2, 1]
    assert values["class"][1] == ["a", "b", "细胞"]
    with pytest.raises(AnalysisError, match="expected fewer than 65535 different values"):
        coded("group", np.array([str(number) for number in range(65536)], object), [])


# --- errors ------------------------------------------------------------------------------------------


def test_confident_errors_are_the_wrong_predictions_of_held_out_rows(client: Client, built: BuiltStudy) -> None:
    database = client.explorer.database
    predictions = apply_model(load_model(built.store.analysis / "model.json"), database)
    wrong = [
        row
        for row in np.flatnonzero(database.split != "train").tolist()
        if predictions.predicted[row] != predictions.classes[database.labels[row]]
    ]
    answer = client.get("/api/errors/confident")
    assert {error["row"] for error in answer["rows"]} == set(wrong)
    confidences = [error["probability"] for error in answer["rows"]]
    assert confidences == sorted(confidences, reverse=True)


def test_pairs_and_doubtful_labels_are_those_of_the_analyses(client: Client) -> None:
    database = client.explorer.database
    pairs = near_duplicates(database, 0.99)
    answer = client.get("/api/errors/duplicates")
    assert answer["total"] == pairs.count
    assert [[row["row"] for row in pair["rows"]] for pair in answer["pairs"]] == [
        [pair.row, pair.other_row] for pair in pairs.pairs
    ]
    labels = client.get("/api/errors/labels")
    assert labels["total"] == len(labels["rows"])
    assert all(row["predicted"] != row["class"] for row in labels["rows"])


def test_a_file_alone_says_what_it_cannot_show_and_shows_the_rest(file_client: Client) -> None:
    info = file_client.get("/api/info")
    assert info["study"] is None
    unavailable = info["unavailable"]
    assert "start the explorer with the study's name" in unavailable["images"]
    assert unavailable["encoder"]
    assert unavailable["predictions"]
    assert file_client.refusal("/api/rows/0/image") == unavailable["images"]
    assert file_client.refusal("/api/search?text=granules") == unavailable["encoder"]
    assert file_client.request("POST", "/api/images", b"x").status == 422
    assert file_client.get("/api/errors/confident") == {"unavailable": unavailable["predictions"]}
    assert len(file_client.get("/api/search?concept=granules")["rows"]) == 20
    assert len(file_client.get("/api/rows/3")["concepts"]) == 2
    assert unpacked(file_client.request("GET", "/api/points").body)["group"][1]


# --- selections --------------------------------------------------------------------------------------


def test_a_selection_is_written_as_keys_csv_and_parquet(client: Client) -> None:
    database = client.explorer.database
    rows = [50, 3, 60]
    keys = client.post("/api/selection?format=keys", {"rows": rows})
    assert keys.body.decode().splitlines() == database.keys[rows].tolist()
    assert 'filename="selection.txt"' in keys.headers["content-disposition"]
    lines = list(csv.DictReader(io.StringIO(client.post("/api/selection", {"rows": rows}).body.decode())))
    assert [(int(line["row"]), line["key"], line["split"]) for line in lines] == [
        (row, database.keys[row], database.split[row]) for row in rows
    ]
    assert float(lines[0][WORD]) == pytest.approx(concept_scores(database, WORD)[50, 0], abs=1e-6)
    table = pq.read_table(io.BytesIO(client.post("/api/selection?format=parquet", {"rows": rows}).body))
    assert table["key"].to_pylist() == database.keys[rows].tolist()
    assert np.array_equal(np.array(table["image_features"].to_pylist(), np.float16), database.image_features[rows])


def test_a_new_study_is_a_zip_of_its_files_with_the_labels_that_were_corrected(
    client: Client, built: BuiltStudy
) -> None:
    database = client.explorer.database
    labels = {"50": "monocyte", "7": "platelet"}
    answer = client.post("/api/selection?format=study", {"rows": [3, 50], "name": "few_cells", "labels": labels})
    files = study_of_rows(built.study, database, [3, 50], "few_cells", {50: "monocyte"})
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"few_cells/{name}": content for name, content in files.items()
        }
    assert [*files] == ["defs.yaml", "subset.txt", "labels_override.csv"]


def test_corrected_labels_are_a_file_of_keys_and_classes(client: Client) -> None:
    database = client.explorer.database
    answer = client.post("/api/labels", {"labels": {"50": "monocyte", "3": "platelet"}})
    assert answer.body == label_overrides(database, {50: "monocyte", 3: "platelet"})
    lines = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert [(line["key"], line["label"]) for line in lines] == [
        (database.keys[50], "monocyte"),
        (database.keys[3], "platelet"),
    ]
    assert lines[0]["image_digest"] == bytes(database.image_digest[50]).hex()


@pytest.mark.parametrize(
    ("path", "content", "sentence"),
    [
        ("/api/selection", {"rows": [64]}, "Expected numbers of rows from 0 to 63"),
        ("/api/selection", {"rows": ["3"]}, "Expected numbers of rows"),
        ("/api/selection", {"rows": []}, "Expected numbers of rows"),
        ("/api/selection", {}, "rows: expected a list"),
        ("/api/selection", [], "Expected a JSON object"),
        ("/api/selection?format=exe", {"rows": [1]}, "format: expected one of"),
        ("/api/selection?format=study", {"rows": [1], "name": "../x"}, "cannot name a study"),
        ("/api/selection?format=study", {"rows": [1], "name": "x", "labels": {"1": "y"}}, "There are no classes"),
        ("/api/labels", {"labels": {"64": "monocyte"}}, "Expected numbers of rows from 0 to 63"),
        ("/api/labels", {"labels": {"3": "nothing"}}, "There are no classes"),
        ("/api/labels", {"labels": {"x": "monocyte"}}, "expected classes by row number"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(client: Client, path: str, content: Any, sentence: str) -> None:
    answer = client.post(path, content)
    assert answer.status == 422
    assert sentence in answer.json["error"]


# --- safety ------------------------------------------------------------------------------------------


def test_other_pages_hosts_and_frames_are_refused(client: Client) -> None:
    assert client.request("GET", "/api/info", headers={"Host": "evil.example"}).status == 403
    assert client.request("GET", "/api/info", headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    evil = {"Origin": "http://evil.example"}
    assert client.request("POST", "/api/selection", b'{"rows": [1]}', evil).status == 403
    headers = client.request("GET", "/").headers
    assert headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/../explorer_state.py", "/..%2fexplorer_state.py", "//etc/passwd", "/api/rows/x"])
def test_no_file_but_the_pages_own_is_served(client: Client, path: str) -> None:
    answer = client.request("GET", path)
    assert answer.status in (400, 404)
    assert b"Explorer" not in answer.body


def test_uploads_are_limited_and_decoded_as_images_of_the_data_set_are(client: Client) -> None:
    assert client.request("POST", "/api/images", b"\0" * (MOST_UPLOADED + 1)).status == 413
    answer = client.request("POST", "/api/images", b"%!PS no image")
    assert answer.status == 422
    assert "not an image of a format that can be read here" in answer.json["error"]


def test_many_requests_at_once_load_the_encoder_once_and_keep_little(client: Client) -> None:
    explorer = client.explorer
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=number: answers.append(client.get(f"/api/search?text=cell+{n % 5}&k=1")))
        for number in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 40
    encoder = explorer.queries._encoder
    assert encoder is not None
    for number in range(600):
        explorer.queries._images[str(number)] = np.zeros(1, np.float32)
    client.request("POST", "/api/images", client.request("GET", "/api/rows/2/image").body)
    assert len(explorer.queries._images) == 64
    assert explorer.queries._encoder is encoder


def test_a_query_is_of_one_kind() -> None:
    with pytest.raises(AnalysisError, match="found text and row"):
        SearchQuery(text="a", row=1)


# --- the command -------------------------------------------------------------------------------------


def test_the_command_prints_its_address_and_ends_cleanly(tmp_path: Path) -> None:
    path = write_database(tmp_path / "features.h5")
    process = subprocess.Popen(
        [*ignoring_interrupts(), sys.executable, "-m", "ccassets.cli", "explore", str(path), "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    port = int(address.removeprefix("http://127.0.0.1:").removesuffix("/"))
    assert Client(port, Explorer.__new__(Explorer)).get("/api/info")["rows"] == 20
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("", "")
    assert process.returncode == 0
