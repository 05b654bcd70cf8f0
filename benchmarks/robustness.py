"""What users can do wrong, tried at random: is every case handled?

python -m benchmarks.robustness --json --cases 2000 --seconds 3600

Kinds: ``commands`` (command lines), ``models`` and ``critics`` (folders of which one file is deleted,
truncated, swapped with another or given other types), ``signals`` (at random moments of a run), ``writers``
(two processes in one folder). A case is handled when it works, or ends in one sentence of the errors that
are meant for it; when it leaves files that are not its own, and the process's settings, as they were; and
when every picture that it leaves is whole. Everything else is a fault. Case i of a kind depends on the
seed, the kind and i alone: --only KIND:I tries it again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.damage import damage
from benchmarks.hub_models import save_model
from countgen import presets
from countgen.cli import main as command
from countgen.cli.commands import explain
from countgen.pocket import FOLDER

Case = Callable[[random.Random, Path], str]
"""Tries one case in an empty folder; returns what went wrong, empty where it was handled."""
LONGEST = 180
"""Seconds after which a case has hung."""
CRITICS = ("owlv2", "grounding-dino", "detr", "rt-detrv2", "clip-ebc", "count-clip", "sam3")
POCKET_COUNTERS = ("pocket-detector-a", "pocket-density", "pocket-detector-b")

# -- command lines --------------------------------------------------------------------------------

PROMPTS = (
    *("two cats", "seven red apples on a table", "cats", "no dogs", "an orange and two stars"),
    *("", " ", "\n", "-3 cats", "10000 cats", "30 cats", "two unicorns", "four apples"),
    *("zwei Äpfel", "七只猫", "\U0001f600 two cats", "two cats\nand\ttwo dogs", "\x00two cats"),
    *("two c\udcffats", "\ud800", "<b>two cats</b>", "[bold]two cats", "--", "two cats " * 500),
    "two " + "x" * 20_000,
)
NUMBERS = (
    "0",
    "1",
    "-1",
    "2",
    "1e9",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "",
    "x",
    "10" * 20,
    "0x10",
    "½",
)
FLAGS: dict[str, tuple[str, ...]] = {
    "--model": ("pocket", "pockett", "", "sdxl-turb", "./nowhere", "/dev/null", "\x00", "a" * 5000),
    "--critic": (
        "pocket-detector-a",
        "pocket-density",
        "owlv3",
        "",
        "detr=",
        "=x",
        "detr=nowhere/at/all",
    ),
    "--verifier": ("pocket-density", "pocket-detector-a", "pocket-detector-b", "x", ""),
    "--device": ("cpu", "cuda", "cuda:7", "mps", "meta", "cpu:0", "cdua", "", "xla", "\udcff"),
    "--memory": ("auto", "fast", "low", "lowest", ""),
    "--dtype": ("float32", "float16", "int8", ""),
    "--method": ("none", "nois", "", "\n"),
    "--seed": NUMBERS,
    "--num-images": NUMBERS,
    "--budget": NUMBERS,
    "--batch-size": NUMBERS,
    "--steps": NUMBERS,
    "--guidance-scale": NUMBERS,
    "--height": (*NUMBERS, "63", "64", "100000"),
    "--width": (*NUMBERS, "63", "64", "100000"),
    "--tiny-decoder": ("nowhere", ""),
    "--variant": ("fp16", ""),
    "--revision": ("main", ""),
}
SWITCHES = ("--strict", "--json", "--overwrite", "--local-files-only", "--no-json", "--wat", "-h")


def commands(random: random.Random, folder: Path) -> str:
    """A command line in this process, in a folder with a file and links that are not its own."""
    canary = folder / "canary"
    canary.write_bytes(b"precious")
    (folder / "taken").mkdir()
    (folder / "taken" / "000.png").symlink_to(canary)
    (folder / "dangling").symlink_to("nowhere")
    outs = (
        "new",
        "new/below",
        "taken",
        "canary",
        "canary/below",
        "dangling",
        "x" * 300,
        "",
        "n\udcff",
        ".",
    )
    name = random.choices(("generate", "check", "list", "frobnicate", ""), (12, 1, 2, 1, 1))[0]
    line = [name]
    if name == "list":
        line += [random.choice(("critics", "pipelines", "suites", "methods", "", "critic"))]
    if name == "generate":
        line += [random.choice(PROMPTS)] * random.choice((1, 1, 1, 1, 0, 2))
        line += ["--out", random.choice(outs), "--method", "none", "--num-images", "1"]
    if name in ("generate", "check"):
        for flag in random.sample(sorted(FLAGS), random.choice((0, 1, 1, 2, 3))):
            line += [flag, random.choice(FLAGS[flag])] if random.random() < 0.95 else [flag]
    line += random.sample(SWITCHES, random.choice((0, 0, 1, 1, 2)))
    out, err = io.StringIO(), io.StringIO()
    with _inside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command(line)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else -1
    said = f"{line!r:.300}: exit code {code}; "
    if code not in (0, 1, 2, 3):
        return said + "which is none that there is"
    if code in (1, 2) and not (err.getvalue().strip() or name == "check"):
        return said + "without a word"
    if "Traceback" in err.getvalue() or "[Errno" in err.getvalue():
        return said + err.getvalue()[-300:]
    if "--json" in line and code in (0, 3) and "-h" not in line and line[-1] != "--no-json":
        try:
            json.loads(out.getvalue())
        except ValueError:
            return said + f"stdout is no JSON: {out.getvalue()[:100]!r}"
    if canary.read_bytes() != b"precious" or not (folder / "dangling").is_symlink():
        return said + "a file that is not its own was changed"
    return "".join(said + problem for problem in _broken_pictures(folder))


# -- folders --------------------------------------------------------------------------------------


def models(random: random.Random, folder: Path) -> str:
    """The pocket generator's folder, damaged, loaded as a folder of the user's own and drawn from once."""
    place = folder / "model"
    _copy(FOLDER / "generator", place)
    what = damage(random, place)

    def use(adapter: Any) -> None:
        plan = adapter.plan(1)
        noise = adapter.noise([torch.Generator().manual_seed(0)], plan)
        with torch.no_grad():
            adapter.render(noise, adapter.encode(["two cats"], plan), plan)

    return _handled(lambda: presets.load_generator(place), use, what)


def critics(random: random.Random, folder: Path) -> str:
    """A critic's folder, damaged, loaded and asked once."""
    name = random.choice((*POCKET_COUNTERS, *CRITICS))
    place = folder / "critic"
    if name in POCKET_COUNTERS:
        from countgen.pocket import load_critic

        _copy(FOLDER / name.removeprefix("pocket-"), place)
        load: Callable[[], Any] = lambda: load_critic(name, place)  # noqa: E731
    else:
        _copy(_saved(name), place)
        load = lambda: presets.load_critic(name, place, local_files_only=True)  # noqa: E731
    what = f"{name}: {damage(random, place)}"

    def use(critic: Any) -> None:
        noun = critic.card.vocabulary[0] if critic.card.vocabulary else "cat"
        with torch.no_grad():
            critic(torch.full((1, 3, 64, 64), 0.5), [critic.prepare([noun])])

    return _handled(load, use, what)


def _handled(load: Callable[[], Any], use: Callable[[Any], None], what: str) -> str:
    before = _settings()
    try:
        loaded = load()
    except Exception as error:
        problem = _unexplained(error)
        if problem:
            return f"{what}: {problem}"
        loaded = None
    changed = [name for name, value in _settings().items() if value != before[name]]
    if changed:
        return f"{what}: loading changed {', '.join(changed)}"
    if loaded is not None:
        try:
            use(loaded)
        except Exception as error:
            problem = _unexplained(error)
            return f"{what}: loaded, and then {problem}" if problem else ""
    return ""


def _unexplained(error: Exception) -> str:
    """Where an error comes from that has no sentence; empty where it has one."""
    code, sentence = explain(error)
    if not code:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return f"{type(error).__name__}: {error!s:.200} ({where})"
    lines = sentence.strip().count("\n") + bool(sentence.strip())
    return "" if lines == 1 else f"{lines} lines: {sentence!r:.300}"


def _settings() -> dict[str, Any]:
    """What loading must leave as it was."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    return {
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": str(np.random.get_state()),
        "Python's random state": hash(random.getstate()),
        "transformers' verbosity": transformers_logging.get_verbosity(),
        "transformers' progress bars": transformers_logging.is_progress_bar_enabled(),
        "diffusers' verbosity": diffusers_logging.get_verbosity(),
        "diffusers' progress bars": diffusers_logging.is_progress_bar_enabled(),
        "the default dtype": torch.get_default_dtype(),
    }


_tiny = Path(tempfile.gettempdir(), f"countgen-robustness-{os.getpid()}")


def _saved(name: str) -> Path:
    """A folder of tiny random weights in the hub's layout, written once."""
    place = _tiny / name
    if not place.exists():
        save_model(name, place, "tiny")
    return place


def _copy(source: Path, target: Path) -> None:
    """Links, as only one file will be written anew."""
    shutil.copytree(source, target, copy_function=lambda a, b: os.symlink(os.path.realpath(a), b))


# -- processes ------------------------------------------------------------------------------------

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


def signals(random: random.Random, folder: Path) -> str:
    """Ctrl-C, or the request to end, at a random moment of a run; what was finished must be whole."""
    sent = random.choice((signal.SIGINT, signal.SIGINT, signal.SIGTERM))
    delay = random.choice((0.0, random.uniform(0, 1), random.uniform(0, 8)))
    line = ["generate", "three cats", "--num-images", "40", "--out", "out", "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", ANNOUNCING, *line, "--method", random.choice(("none", "noise"))],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()
        time.sleep(delay)
        process.send_signal(sent)
        out, err = process.communicate(timeout=LONGEST)
    said = f"{sent.name} after {delay:.2f} s: exit code {process.returncode}; "
    if sent == signal.SIGINT:
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        finished = process.returncode == 0 and bool(out)
        if not finished and (process.returncode != 1 or len(lines) != 1 or out):
            return said + f"{len(lines)} lines: {err[-300:]!r}"
        if list(folder.rglob("*.partial")):
            return said + "a partial file is left"
    elif process.returncode not in (0, -sent):
        return said + err[-300:]
    return "".join(said + problem for problem in _broken_pictures(folder))


def writers(random: random.Random, folder: Path) -> str:
    """Two processes that draw into one folder, where pictures may lie already."""
    for number in range(random.choice((0, 3))):
        Image.new("RGB", (4, 4)).save(folder / f"{number:03d}.png")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    count = random.randint(1, 8)
    both = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "countgen", "generate", "two cats", "--out", ".", "--json"),
                *("--method", "none", "--num-images", str(count), "--seed", str(seed)),
            ],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    rows = []
    for process in both:
        out, err = process.communicate(timeout=LONGEST)
        if process.returncode:
            return f"exit code {process.returncode}: {err[-300:]}"
        rows += json.loads(out)["images"]
    if any((folder / name).read_bytes() != data for name, data in before.items()):
        return "a picture that was there was changed"
    if len({row["path"] for row in rows}) != 2 * count:
        return "two pictures have one name"
    for row in rows:
        for name in (row["path"], row["path"].replace(".png", "-compare.png")):
            with Image.open(folder / name) as image:
                if json.loads(image.text["countgen"])["seed"] != row["seed"]:  # type: ignore[attr-defined]
                    return f"{name} is another one's picture"
    return "".join(_broken_pictures(folder))


def _broken_pictures(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.png"):
        if not path.is_symlink():
            try:
                with Image.open(path) as image:
                    image.load()
            except (OSError, SyntaxError) as error:
                yield f"{path.name} is not whole: {error}"


# -- the run --------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Case, int]] = {
    "commands": (commands, 10),
    "models": (models, 7),
    "critics": (critics, 8),
    "signals": (signals, 2),
    "writers": (writers, 1),
}
"""Name -> how a case is tried, and its share of the cases."""


class HungError(BaseException):
    """Not handled as any error that a case may end in."""


def attempt(kind: str, index: int, seed: int) -> str:
    """What went wrong with one case; empty where it was handled."""

    def hung(*_: object) -> None:
        raise HungError(f"for {LONGEST} s")

    scratch = Path(tempfile.mkdtemp(prefix="countgen-robustness-"))
    signal.signal(signal.SIGALRM, hung)
    signal.alarm(LONGEST)
    try:
        return KINDS[kind][0](random.Random(f"{seed}-{kind}-{index}"), scratch)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "".join(traceback.format_exception(error))[-1500:]
    finally:
        signal.alarm(0)
        shutil.rmtree(scratch, ignore_errors=True)


def schedule(kinds: list[str], cases: int) -> list[tuple[str, int]]:
    """So many cases in the kinds' shares, spread evenly, so that a run that is cut short has all of them."""
    shares = {kind: KINDS[kind][1] / sum(KINDS[k][1] for k in kinds) for kind in kinds}
    done = dict.fromkeys(kinds, 0)
    order = []
    for number in range(1, cases + 1):
        kind = max(kinds, key=lambda k: shares[k] * number - done[k])
        order.append((kind, done[kind]))
        done[kind] += 1
    return order


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document in one line")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after so long")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1, help="try every so manieth case ...")
    parser.add_argument("--part", type=int, default=0, help="... from this one on")
    parser.add_argument("--only", default=None, metavar="KIND:I", help="try one case again")
    options = parser.parse_args(arguments)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    if options.only:
        kind, _, index = options.only.partition(":")
        problem = attempt(kind, int(index), options.seed)
        print(problem or "handled")
        return int(bool(problem))
    started = time.monotonic()
    found: dict[str, Any] = {
        kind: {"tried": 0, "handled": 0, "faults": 0, "examples": {}} for kind in options.kinds
    }
    try:
        for kind, index in schedule(options.kinds, options.cases)[options.part :: options.parts]:
            if time.monotonic() - started > options.seconds:
                break
            problem = attempt(kind, index, options.seed)
            found[kind]["tried"] += 1
            found[kind]["faults" if problem else "handled"] += 1
            if problem:
                found[kind]["examples"][f"{kind}:{index}"] = problem
                print(f"{kind}:{index} {problem}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(_tiny, ignore_errors=True)
    report = {
        "command": f"python -m benchmarks.robustness --json --cases {options.cases} --seed {options.seed} "
        f"--parts {options.parts} --part {options.part}",
        **{
            key: sum(each[key] for each in found.values()) for key in ("tried", "handled", "faults")
        },
        "kinds": found,
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(report, indent=None if options.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
