"""The API: every function, what it refuses, and that visitors do not get into each other's way."""

from __future__ import annotations

import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from hostile_requests import hostile_calls, hostile_uploads
from PIL import Image

from countgen import provenance
from countgen.demo.running import FAULT
from countgen.evaluation.reading import read_run


def test_all_functions_are_typed_and_described(client: Any) -> None:
    found = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert set(found) == {"/generate", "/compare", "/count", "/batch"}
    for name, endpoint in found.items():
        assert len(endpoint["description"]) > 40, name
        for parameter in endpoint["parameters"]:
            assert parameter["type"].get("type"), (name, parameter["parameter_name"])
    method = found["/generate"]["parameters"][5]
    assert method["parameter_name"] == "method" and "engine" in method["type"]["enum"]


def test_a_picture_comes_with_its_settings_and_is_counted_again(client: Any) -> None:
    picture, numbered, result = client.predict("two red apples", api_name="/generate")
    assert result["verified"] and result["counts"]["critic"] == {"red apple": 2}
    assert 0.9 < result["trust"] < 1
    assert len(result["boxes"]["red apple"]) == 2
    made = provenance.read(picture)
    assert made.settings["prompt"] == "two red apples" and made.settings["verified"]
    assert Image.open(numbered).size[0] >= 512
    _, counts = client.predict(handle_file(picture), "red apples", api_name="/count")
    assert [one["counts"] for one in counts] == [{"red apple": 2}] * 3


def test_methods_are_compared_on_one_noise(client: Any) -> None:
    sheet, rows = client.predict("three cats", ["best-of-n", "none"], budget=8, api_name="/compare")
    assert [row["method"] for row in rows] == ["none", "best-of-n"]
    assert all(row["pre"] <= 8 for row in rows) and rows[0]["looks"] == 1
    assert Image.open(sheet).width > 2 * 300


def test_a_list_comes_back_as_a_report(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("prompt,noun,count,id\n=two cats,cat,2,a\nthree cars,car,3,b\n")
    report, summary = client.predict(handle_file(str(path)), budget=6, api_name="/batch")
    assert summary["drawn"] == 2 and summary["judge"] == "pocket-detector-b"
    with zipfile.ZipFile(report) as files:
        names = files.namelist()
        files.extractall(tmp_path)
    run = tmp_path / "list"
    rows = read_run(run).rows  # a run folder as countgen evaluate writes it
    assert [row["id"] for row in rows] == ["a", "b"] and len(rows[0]["judge"]) == 1
    assert all((run / row["picture"]).is_file() for row in rows)
    assert {"list/report.html", "list/report.csv", "list/run.json"} <= set(names)
    assert "three cars" in (run / "report.html").read_text()
    assert "'=two cats" in (run / "pictures.csv").read_text()  # no formula for a spreadsheet


def test_no_file_outside_the_page_is_readable(client: Any, address: str) -> None:
    import httpx

    here = Path(__file__).resolve()
    for path in (here, "/etc/hosts", here.parents[3] / "pyproject.toml"):
        answer = httpx.get(f"{address}gradio_api/file={path}")
        assert answer.status_code in (403, 404), path
    # As no client of Gradio's would ask: the path of a file on the server, in place of an upload.
    data = [{"path": "/etc/hosts", "meta": {"_type": "gradio.FileData"}}, "cat"]
    begun = httpx.post(f"{address}gradio_api/call/count", json={"data": data})
    if begun.status_code == 200:
        event = begun.json()["event_id"]
        told = httpx.get(f"{address}gradio_api/call/count/{event}", timeout=60).text
        assert "event: error" in told and "event: complete" not in told


def test_visitors_at_once_each_get_their_own_picture(address: str) -> None:
    nouns = ["cats", "dogs", "cars", "stars", "cups", "balls"]

    def ask(noun: str) -> Any:
        own = Client(address, verbose=False)
        return own.predict(f"two {noun}", method="none", api_name="/generate")[2]

    with ThreadPoolExecutor(len(nouns)) as visitors:
        found = list(visitors.map(ask, nouns))
    assert [one["prompt"] for one in found] == [f"two {noun}" for noun in nouns]


def test_a_list_lets_others_have_their_turn(client: Any, address: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("two cats\n" * 40)
    listing = client.submit(handle_file(str(path)), budget=2, api_name="/batch")
    while not listing.outputs():
        time.sleep(0.01)
    picture = Client(address, verbose=False).predict("two dogs", api_name="/generate")[2]
    assert picture["counts"]["critic"] == {"dog": 2}
    assert not listing.done()
    assert listing.result()[1]["drawn"] == 40


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hostile_requests_are_refused_with_a_sentence(client: Any, tmp_path: Path) -> None:
    tried, accepted = 0, []
    for name, values in [*hostile_calls(), *hostile_uploads(tmp_path)]:
        tried += 1
        try:
            client.predict(**values, api_name=name)
        except Exception as refused:
            said = str(refused)
            assert 10 < len(said) < 700 and "Traceback" not in said, (name, values, said)
            assert FAULT not in said and str(tmp_path) not in said, (name, values, said)
        else:
            accepted.append((name, values))
    assert not accepted
    assert tried >= 200
