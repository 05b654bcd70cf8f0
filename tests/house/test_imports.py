"""The arrows between the packages, and what ``import countgen`` does and does not do."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
from countgen.listing import items
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
    assert f"found:    {other}" in message
    assert f"expected: {ROOT / name / '__init__.py'}" in message
    assert "Rename or remove" in message


def test_a_missing_sibling_is_named(tmp_path: Path) -> None:
    (tmp_path / "countgen").mkdir()
    for file in (ROOT / "countgen").glob("*.py"):
        shutil.copy(file, tmp_path / "countgen")
    result = run_python("import countgen", tmp_path, options=["-S"])  # -S: without site-packages
    assert result.returncode != 0
    assert "found:    nothing of that name" in result.stderr
    assert f"expected: {tmp_path / 'pipelines' / '__init__.py'}" in result.stderr
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
    code = "import countgen, importlib.util as util; print(util.find_spec('torchvision') is None)"
    result = run_python(code, tmp_path, ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(is_hidden)


def test_every_public_name_is_found() -> None:
    for name in countgen.__all__:
        assert getattr(countgen, name) is not None
        assert name in dir(countgen)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"'parse_promt'\. Did you mean 'parse_prompt'\?"):
        countgen.parse_promt  # noqa: B018
    with pytest.raises(AttributeError, match=r"It has: __version__, "):
        countgen.zzzzzzzz  # noqa: B018
