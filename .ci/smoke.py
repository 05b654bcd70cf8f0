"""Checks an installed wheel as a user meets it: run from an empty folder, without the checkout.

    python -I smoke.py CHECKOUT

Each function named ``check_...`` is one check; they run in the order in which they stand here.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("countgen", "pipelines", "critics")
SITE = Path(sysconfig.get_path("purelib")).resolve()


def check_packages_come_from_the_wheel(checkout: Path) -> None:
    import countgen
    import critics
    import pipelines

    for package in (countgen, pipelines, critics):
        assert Path(package.__file__).resolve().is_relative_to(SITE), package.__file__
    assert "torch" not in sys.modules


def check_every_tracked_file_is_in_the_wheel(checkout: Path) -> None:
    """Weights, pictures and cards of the embedded default included."""
    command = ["git", "-C", str(checkout), "ls-files", "-z", *PACKAGES]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    missing = [name for name in names if name and not (SITE / name).is_file()]
    assert not missing, missing


def check_public_names_are_there(checkout: Path) -> None:
    import countgen

    for name in countgen.__all__:
        getattr(countgen, name)
    assert countgen.parse_prompt("seven red apples on a table").targets[0].count == 7


def check_the_command_draws_a_verified_picture(checkout: Path) -> None:
    import json

    command = Path(sys.executable).with_name("countgen")
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
    line = [
        command,
        "generate",
        "two cats on grass",
        "--out",
        "pictures",
        "--json",
    ]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    (row,) = json.loads(done.stdout)["images"]
    assert row["verified"] and Path(row["path"]).is_file(), done.stdout


def main() -> None:
    checkout = Path(sys.argv[1]).resolve()
    assert not any(Path.cwd().iterdir()), "run this from an empty folder"
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            check(checkout)
            print(f"smoke: {name.removeprefix('check_').replace('_', ' ')}: ok")


if __name__ == "__main__":
    main()
