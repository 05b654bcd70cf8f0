"""The arrows between the packages, and what ``import countgen`` does and does not do."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

import countgen

ROOT = Path(countgen.__file__).parents[1]

# Package -> what it may not import, anywhere in its files, functions included.
FORBIDDEN = {
    "pipelines": {"critics", "countgen", "app", "benchmarks", "tests", "ultralytics"},
    "critics": {"pipelines", "countgen", "app", "benchmarks", "tests"},
    "countgen": {"app", "benchmarks", "tests", "ultralytics"},
}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level package and line of every absolute import in a file, importlib's included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.level == 0 else []
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names = [str(node.args[0].value)]
        else:
            continue
        yield from ((name.partition(".")[0], node.lineno) for name in names)


def run_python(
    code: str, *path: Path, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with these folders, in this order, first on its path."""
    return subprocess.run(
        [sys.executable, "-P", *options, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
    )


def modules(package: str) -> dict[str, Path]:
    """Dotted name and file of every module of a package."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imported_at_the_top(path: Path, known: Collection[str]) -> set[str]:
    """The ``known`` modules that a file needs in order to be imported itself."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"), str(path))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
        waiting += ast.iter_child_nodes(node)
    return found & set(known)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Names along a cycle, empty where there is none."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in done:
            for other in sorted(graph.get(name, ())):
                if found := walk(other, [*trail, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in graph if (found := walk(name, []))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = {name: path for package in FORBIDDEN for name, path in modules(package).items()}
    graph = {name: imported_at_the_top(path, files) - {name} for name, path in files.items()}
    assert len(graph) > 80 and "countgen.errors" in graph["countgen.presets"]
    assert cycle(graph) == []


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"a"}}, ["a", "a"]),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
    ],
)
def test_a_circle_is_found(graph: dict[str, set[str]], found: list[str]) -> None:
    assert cycle(graph) == found


def test_imports_at_the_top_are_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import a\nfrom b import c\nfrom b import d\n"
        "if TYPE_CHECKING:\n    import e\nelse:\n    import f\n"
        "def g():\n    import h\nclass I:\n    import j\n"
    )
    known = ["a", "b", "b.c", "e", "f", "h", "j"]
    assert imported_at_the_top(path, known) == {"a", "b", "b.c", "f", "j"}


# A test file is read from the top as its tests come, and may hold more of them.
MOST_LINES = {"countgen": 500, "pipelines": 500, "critics": 500, "benchmarks": 500}


@pytest.mark.parametrize("folder", MOST_LINES)
def test_files_are_short_enough_to_be_read(folder: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(lengths) > 5
    assert {name: n for name, n in lengths.items() if n > MOST_LINES[folder]} == {}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_arrows_go_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name, line in imported(path)
        if name in FORBIDDEN[package]
    ]
    assert not wrong


def test_ultralytics_is_imported_in_one_folder_and_its_tests() -> None:
    """It is licensed under AGPL-3.0, and part of an extra only."""
    files = {
        str(path.relative_to(ROOT))
        for folder in ("critics", "countgen", "pipelines", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if any(name == "ultralytics" for name, _ in imported(path))
    }
    tests = "tests/critics/detectors/test_yolo.py"
    assert tests in files
    assert {Path(file).parent.as_posix() for file in files - {tests}} == {"critics/detectors/yolo"}


def test_without_ultralytics_its_critics_are_listed_and_say_what_they_need() -> None:
    code = """
import sys
sys.modules["ultralytics"] = None  # as if it were not installed
from countgen.cli.list import items
from critics.registry import load_critic
listed = {card["name"]: card for card in items("critics")}
for name in ("yolo", "yolo-world", "yoloe"):
    assert listed[name]["license_code"] == "AGPL-3.0"
    try:
        load_critic(name, "somewhere")
    except OSError as error:
        print(error)
"""
    result = run_python(code, ROOT)
    assert result.returncode == 0, result.stderr
    messages = result.stdout.splitlines()
    assert len(messages) == 3
    for message in messages:
        for part in ("extra yolo", "AGPL-3.0", 'pip install "countgen[yolo]"'):
            assert part in message


@pytest.mark.parametrize(
    "source",
    [
        "import critics.parts.boxes",
        "from critics import CountTarget",
        "def f():\n    from critics.parts.boxes import nms",
        "import importlib\nimportlib.import_module('critics.parts.boxes')",
    ],
)
def test_every_form_of_import_is_seen(source: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert "critics" in {name for name, _ in imported(path)}


@pytest.mark.parametrize("package", ["countgen", "pipelines", "critics"])
def test_importing_a_package_is_light(package: str) -> None:
    heavy = {"torch", "numpy", "PIL", "diffusers", "transformers", "matplotlib", "gradio"}
    code = f"import sys, {package}; print(*sorted({heavy} & set(sys.modules)))"
    result = run_python(code, ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize("name", ["pipelines", "critics"])
@pytest.mark.parametrize("is_package", [True, False], ids=["package", "module"])
def test_another_package_of_the_same_name_is_refused(
    name: str, is_package: bool, tmp_path: Path
) -> None:
    other = tmp_path / name / "__init__.py" if is_package else tmp_path / f"{name}.py"
    other.parent.mkdir(exist_ok=True)
    other.touch()
    result = run_python("import countgen", tmp_path, ROOT)
    assert result.returncode != 0
    message = result.stderr[result.stderr.index("ImportError: ") :]
    found, expected = message.index(str(other)), message.index(str(ROOT / name / "__init__.py"))
    assert message.index("found") < found < message.index("expected") < expected
    assert "remove" in message


def test_a_missing_sibling_is_named(tmp_path: Path) -> None:
    (tmp_path / "countgen").mkdir()
    for file in (ROOT / "countgen").glob("*.py"):
        shutil.copy(file, tmp_path / "countgen")
    result = run_python("import countgen", tmp_path, options=["-S"])  # -S: without site-packages
    assert result.returncode != 0
    assert "nothing of that name" in result.stderr
    assert str(tmp_path / "pipelines" / "__init__.py") in result.stderr
    assert "reinstall" in result.stderr


@pytest.mark.parametrize(
    ("cuda", "torchvision", "is_hidden"),
    [
        ("None", "0.28.0+cu130", True),
        ("None", "0.28.0+cpu", False),
        ("None", "0.28.0", False),
        ("'13.0'", "0.28.0+cu130", False),
    ],
)
def test_a_torchvision_that_cannot_load_counts_as_absent(
    cuda: str, torchvision: str, is_hidden: bool, tmp_path: Path
) -> None:
    versions = {
        "torch": f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\n",
        "torchvision": f"__version__ = '{torchvision}'\n",
    }
    for package, text in versions.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "version.py").write_text(text)
    code = """
import countgen, sys
from importlib.util import find_spec
from countgen._torchvision import hidden_torchvision, hide_unloadable_torchvision
print(find_spec("torchvision") is None)
with hidden_torchvision():
    print(find_spec("torchvision") is None)
print("torchvision" in sys.modules)
hide_unloadable_torchvision()
print(find_spec("torchvision") is None)
"""
    result = run_python(code, tmp_path, ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False", str(is_hidden), "False", str(is_hidden)]


def test_every_public_name_is_found() -> None:
    for name in countgen.__all__:
        assert getattr(countgen, name) is not None
        assert name in dir(countgen)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"'parse_promt'.*'parse_prompt'"):
        countgen.parse_promt  # noqa: B018
    with pytest.raises(AttributeError, match=r"zzz.*parse_prompt"):
        countgen.zzzzzzzz  # noqa: B018
