"""What the repository promises to whoever installs it."""

import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import countgen

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()

# Folders of a particular machine, and hosts that packages are fetched from. (Spelled so that this
# file does not match itself.)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|tmp|mnt|opt|Users)/\w")
REGISTRY = re.compile(r"pypi\.|python[h]osted|npm[j]s\.|deb[.]debian")


def tracked_texts() -> dict[str, str]:
    """Path and text of every text file that git tracks."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout: there is no list of tracked files")
    texts = {}
    for name in listing.stdout.split("\0"):
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            texts[name] = data.decode("utf-8")
    return texts


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY], ids=["machine path", "registry host"])
def test_tracked_files_name_no_machine(pattern: re.Pattern[str]) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in tracked_texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_constraints_are_names_and_versions_only() -> None:
    pin = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9]+(\.[0-9a-z]+)*")
    assert [line for line in CONSTRAINTS if not pin.fullmatch(line)] == []
    assert sorted(set(CONSTRAINTS)) == sorted(CONSTRAINTS)


def test_constraints_pin_every_requirement_within_its_bounds() -> None:
    pins = dict(line.split("==") for line in CONSTRAINTS)
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        name = canonicalize_name(requirement.name)
        if name != "countgen":
            assert requirement.specifier, f"{name} has no lower bound"
            assert pins[name] in requirement.specifier


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    found = dict(re.findall(r"^([a-z-]+): *\"?([^\"\n]+)\"?$", citation, re.M))
    assert found["version"] == countgen.__version__
    date.fromisoformat(found["date-released"])
    assert found["repository-code"] == PROJECT["urls"]["Repository"]


@pytest.mark.parametrize("package", ["countgen", "pipelines", "critics"])
def test_type_checkers_are_told_that_there_are_types(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_readme_has_two_commands_and_ci_runs_them_as_they_stand() -> None:
    script = [sys.executable, ROOT / ".ci" / "readme_commands.py"]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(lines) == 2 and all(f"```sh\n{line}\n```" in readme for line in lines)
    assert "countgen generate" in lines[0] and "pytest" in lines[1]
    assert "readme_commands.py" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert ".ci/run" in workflow and all(version in workflow for version in ("3.11", "3.12"))


def test_guides_that_are_linked_are_there() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
        assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_all_leaves_out_the_extra_with_another_licence() -> None:
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == {"demo", "eval", "learn"}
    others = {k: v for k, v in PROJECT["optional-dependencies"].items() if k != "yolo"}
    assert "ultralytics" not in str([PROJECT["dependencies"], others])


def test_the_settings_of_a_space_are_those_of_the_page() -> None:
    import yaml

    head = (ROOT / "docs/space/README.md").read_text(encoding="utf-8").split("---\n")[1]
    settings = yaml.safe_load(head)
    assert settings["title"] == "countgen" and settings["emoji"] == "🍎"
    assert (settings["colorFrom"], settings["colorTo"]) == ("blue", "red")
    assert settings["sdk"] == "gradio" and f"gradio=={settings['sdk_version']}" in CONSTRAINTS
    assert settings["python_version"] == "3.11"  # a text: the number 3.10 would be 3.1
    assert (ROOT / settings["app_file"]).is_file()
    assert settings["license"] == PROJECT["license"].lower()
    needed = Requirement((ROOT / "docs/space/requirements.txt").read_text().strip())
    assert needed.name == PROJECT["name"] and needed.extras == {"demo"}
    assert needed.url == f"git+{PROJECT['urls']['Repository']}"
