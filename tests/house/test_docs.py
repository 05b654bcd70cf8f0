"""README and documents say what is so: tables are of the results, snippets run, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks import tables

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TESTED_ELSEWHERE = {"add-a-critic.md", "add-a-pipeline-family.md", "add-to-guidance.md"}
"""Guides whose templates have tests of their own."""
_FENCE = re.compile(r"^(<!-- ([\w ]+) -->\n)?```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
_REPOSITORY = "https://github.com/countgen/countgen/blob/main/"


class Snippet(NamedTuple):
    """One fenced block: its language, its text, and the mark in the comment above it."""

    language: str
    text: str
    mark: str


def snippets(path: Path) -> list[Snippet]:
    """All blocks of a page, in order."""
    found = _FENCE.finditer(path.read_text(encoding="utf-8"))
    return [Snippet(one[3], one[4], one[2] or "") for one in found]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_tables_are_those_of_the_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == tables.rewritten(text), "run: python -m benchmarks.tables"


def test_every_table_is_shown_somewhere() -> None:
    shown = {
        found for path in PAGES for found in re.findall(r"<!-- table: ([\w-]+)", path.read_text())
    }
    assert shown == set(tables.TABLES)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_marks_are_known_and_fences_closed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r"^\s*```", text, re.M)) % 2 == 0
    for snippet in snippets(path):
        assert snippet.mark in ("", "real weights", "prints"), snippet.mark


RUNNING = [
    path
    for path in PAGES
    if path.name not in TESTED_ELSEWHERE
    and any(s.language == "python" and not s.mark for s in snippets(path))
]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNNING, ids=name)
def test_snippets_run_and_print_what_stands_there(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From top to bottom in one namespace and an empty folder, as a reader would who types them."""
    from countgen.cli import main

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for snippet in snippets(path):
        if snippet.language == "python" and not snippet.mark:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(snippet.text, name(path), "exec"), names)
            printed = out.getvalue()
        elif snippet.mark == "prints":
            assert printed == snippet.text
        elif snippet.language == "bash":
            for line in snippet.text.splitlines():
                if line.startswith("countgen "):
                    assert main(shlex.split(line)[1:]) == 0, line


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_snippets_for_real_weights_are_python_with_names_that_exist(path: Path) -> None:
    """What they import is there, and what they call of countgen takes these arguments."""
    import importlib
    import inspect

    known: dict[str, Any] = {}
    for snippet in snippets(path):
        if snippet.language != "python":
            continue
        tree = ast.parse(snippet.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    known[alias.asname or alias.name] = getattr(module, alias.name)
        if snippet.mark != "real weights":
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            head = ast.unparse(node.func).split(".")
            if head[0] in known:
                called = known[head[0]]
                for part in head[1:]:
                    called = getattr(called, part)
                keywords = {k.arg: None for k in node.keywords if k.arg}
                inspect.signature(called).bind_partial(*map(ast.unparse, node.args), **keywords)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_parse(path: Path) -> None:
    """Every line that begins with countgen, in a block or in the text."""
    import tyro

    from countgen.cli.commands import COMMANDS

    blocks = [
        line for s in snippets(path) if s.language in ("sh", "bash") for line in s.text.splitlines()
    ]
    for line in blocks:
        for part in line.split("&&"):
            words = shlex.split(part)
            if words[:1] == ["countgen"]:
                tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="countgen", args=words[1:])


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_into_the_repository_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(_REPOSITORY):
            assert (ROOT / target.removeprefix(_REPOSITORY).partition("#")[0]).exists(), target
        elif not re.match(r"https?:|mailto:|#", target):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_readme_has_the_two_commands_that_ci_types() -> None:
    import subprocess
    import sys

    command = [sys.executable, str(ROOT / ".ci" / "readme_commands.py")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 2 and "countgen generate" in lines[0] and "pytest" in lines[1]
