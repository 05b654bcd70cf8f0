"""``countgen`` as a process: interrupts, closed and full outputs, poor terminals, no working directory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

COMMAND = (sys.executable, "-m", "countgen")
QUICK = ("generate", "two cats", "--method", "none", "--out", "out")


def command(
    *arguments: str | bytes, cwd: Path, program: Sequence[str] = COMMAND, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **options.pop("environment", {})}
    return subprocess.run(
        [*program, *arguments],
        cwd=cwd,
        env=environment,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def interruptible() -> None:
    """As a terminal starts a process; a shell's background jobs ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Says when the command's first own import begins, before which only the interpreter has run.
ANNOUNCING = """
import sys

class Announcer:
    def find_spec(self, name, path=None, target=None):
        if name == "countgen.cli.commands":
            print("started", file=sys.stderr, flush=True)

sys.meta_path.insert(0, Announcer())
from countgen.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.4, 1.0, 2.5])
def test_ctrl_c_is_one_line_at_any_moment(delay: float, tmp_path: Path) -> None:
    many = ("seventeen cats", "--num-images", "500", "--out", "out")
    with subprocess.Popen(
        [sys.executable, "-c", ANNOUNCING, "generate", *many],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    ) as process:
        assert process.stderr and process.stderr.readline() == "started\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and not out
    assert err.count("\n") == 1 and "interrupted" in err
    assert not list(tmp_path.rglob("*.partial"))


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = command("list", "methods", cwd=tmp_path)
    assert done.returncode == 0 and b"best-of-n" in done.stdout and not done.stderr


@pytest.mark.parametrize("columns", ["0", "-3", "x", ""])
def test_a_width_of_nothing_is_ignored(columns: str, tmp_path: Path) -> None:
    done = command("--help", cwd=tmp_path, environment={"COLUMNS": columns})
    assert done.returncode == 0 and b"generate" in done.stdout and b"Traceback" not in done.stderr


def test_a_terminal_without_letters_is_written_to(tmp_path: Path) -> None:
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    help_ = command("--help", cwd=tmp_path, environment=poor)
    assert help_.returncode == 0 and b"generate" in help_.stdout
    done = command(
        "generate",
        "two cats \u00e9".encode(),
        "--method",
        "none",
        "--out",
        b"f\xc3\xa9\xff",
        cwd=tmp_path,
        environment=poor,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert os.listdir(os.fsencode(tmp_path)) == [b"f\xc3\xa9\xff"]
    assert b"000.png" in os.listdir(os.fsencode(tmp_path) + b"/f\xc3\xa9\xff")


def test_who_stops_reading_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        for arguments in (("list", "critics"), ("generate", "--help")):
            done = command(*arguments, cwd=tmp_path, stdout=out)
            assert done.returncode == 1 and done.stderr == b""


def closing(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


@pytest.mark.parametrize("descriptors", [(1,), (2,), (1, 2)])
def test_closed_outputs_do_not_stop_the_work(descriptors: tuple[int, ...], tmp_path: Path) -> None:
    done = command(*QUICK, cwd=tmp_path, preexec_fn=closing(*descriptors))
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert (tmp_path / "out" / "000.png").is_file()


def test_a_working_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    for out in ("out", str(tmp_path / "out")):
        gone.mkdir(exist_ok=True)
        line = ["sh", "-c", shell, "sh", str(gone), *COMMAND, *QUICK[:-1], out]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "working directory is gone" in done.stderr


def test_a_full_disk_is_said_and_nothing_half_written_stays(tmp_path: Path) -> None:
    def limit() -> None:
        """No file may be longer than a kilobyte: a picture fails in the middle, as on a full disk."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = command(*QUICK, cwd=tmp_path, preexec_fn=limit)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1 and len(lines) == 1 and "too large" in lines[0]
    assert list((tmp_path / "out").iterdir()) == []


def test_two_processes_in_one_folder_lose_nothing(tmp_path: Path) -> None:
    line = [*COMMAND, *QUICK, "--num-images", "6", "--json"]
    both = [
        subprocess.Popen(
            [*line, "--seed", str(seed)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        for seed in (1, 2)
    ]
    reports = [json.loads(process.communicate(timeout=300)[0]) for process in both]
    paths = [row["path"] for report in reports for row in report["images"]]
    assert len(set(paths)) == 12
    for report in reports:
        for row in report["images"]:
            for path in (
                tmp_path / row["path"],
                tmp_path / row["path"].replace(".png", "-compare.png"),
            ):
                with Image.open(path) as image:
                    image.load()
                    settings = json.loads(image.text["countgen"])  # type: ignore[attr-defined]
                assert settings["seed"] == row["seed"]
    assert len(list((tmp_path / "out").iterdir())) == 24
