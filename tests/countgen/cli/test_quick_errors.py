"""What a user types wrong is told before torch, which takes seconds, is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "arguments",
    [
        ["-3 cats"],
        [" "],
        ["200 cats"],
        ["two unicorns"],
        ["cats", "--target", "x"],
        ["two cats", "--method", "nois"],
        ["two cats", "--model", "pockett"],
        ["two cats", "--critic", "owlv3"],
        ["two cats", "--budget", "-1"],
        ["two cats", "--num-images", "0"],
    ],
    ids=" ".join,
)
def test_usage_errors_load_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom countgen.cli import main\n"
        f"code = main({['generate', *arguments]!r})\n"
        "print(code, {'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "set()"], done.stderr
    assert "countgen: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--noun", "cat", "--critic", "owlv3"]], ids=" ".join)
def test_usage_errors_of_counting_load_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom countgen.cli import main\n"
        f"code = main({['count', 'a.png', *arguments]!r})\n"
        "print(code, {'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "set()"], done.stderr
