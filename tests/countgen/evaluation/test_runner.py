"""Evaluation of prompt lists: what is drawn, judged and written, and what goes on after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from countgen import CountGuidedPipeline
from countgen.cli.commands import run as command
from countgen.errors import UsageError
from countgen.evaluation.feed import Feed, Wanted
from countgen.evaluation.formats import ListedPrompt
from countgen.evaluation.progress import Progress, span
from countgen.evaluation.runner import Settings, check, evaluate
from countgen.evaluation.runs import judged
from countgen.options import CounterOptions, DrawOptions
from countgen.pocket import ROLES, load_critic
from countgen.pocket.suites import SELECTION_SEED
from critics.targets import CountTarget

LIST = "id,prompt,noun,count\nstars,two stars,star,2\ncats,5 cats,cat,5\nmix,a star and two cats,star,1\n"
LIST += "mix,a star and two cats,cat,2\n"


def settings(tmp_path: Path, **changes: Any) -> Settings:
    path = tmp_path / "list.csv"
    if not path.exists():
        path.write_text(LIST)
    draw = DrawOptions(num_images_per_prompt=2, budget=4)
    return Settings(
        **{
            "prompts": str(path),
            "out": tmp_path / "run",
            "methods": ("none", "best-of-n"),
            "draw": draw,
        }
        | changes
    )


def rows(run: Path) -> list[dict[str, Any]]:
    files = sorted(run.glob("results.rank*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run folder, and what the command said of it."""
    folder = tmp_path_factory.mktemp("finished")
    outcome = evaluate(settings(folder, layout="geneval"))
    assert outcome.document is not None and not outcome.failed
    return folder, outcome.document


@pytest.fixture
def run(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of its own of the finished run, beside its list."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def test_every_picture_has_a_row_and_methods_share_their_noises(run: Path) -> None:
    found = {(row["method"], row["id"], row["image"]): row for row in rows(run)}
    assert len(found) == len(rows(run)) == 2 * 3 * 2
    for (method, prompt, image), row in found.items():
        assert row["seed"] == found["none", prompt, image]["seed"]
        assert (run / row["picture"]).is_file() and row["seconds"] > 0 and row["peak_bytes"] > 0
        assert len(row["judge"]) == len(row["wanted"]) == (2 if prompt == "mix" else 1)
        assert row["tries"] == 1 or method == "best-of-n"
    assert len({row["seed"] for row in found.values()}) == 6
    # A picture that best-of-n did not have to draw again is the plain one.
    same = [(m, p, i) for (m, p, i), row in found.items() if m == "best-of-n" and row["tries"] == 1]
    assert same
    for _, prompt, image in same:
        plain, again = (found[m, prompt, image]["picture"] for m in ("none", "best-of-n"))
        assert (run / plain).read_bytes() == (run / again).read_bytes()


def test_the_judge_counts_the_pictures_as_they_were_saved(run: Path) -> None:
    found = rows(run)
    again = judged(found, load_critic(ROLES["judge"]), run)
    assert [row["judge"] for row in again] == [row["judge"] for row in found]


def test_the_sums_are_written_and_told(finished: tuple[Path, dict[str, Any]], run: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    document = finished[1]
    assert (document["suite"], document["n_prompts"], document["n_images"]) == ("list.csv", 3, 12)
    exact = [row["judge"] == row["wanted"] for row in rows(run) if row["method"] == "none"]
    told = document["methods"]["none"]["judge"]["exact"]
    assert told == pytest.approx(sum(exact) / len(exact), abs=1e-3)
    assert json.loads((run / "summary.json").read_text())["methods"].keys() == {"none", "best-of-n"}
    table = parquet.read_table(run / "results.parquet").to_pylist()
    assert [r["judge"] for r in table] == [r["judge"] for r in rows(run)]
    assert json.loads(table[0]["boxes"]).keys() == set(table[0]["nouns"])


def test_the_layout_of_geneval_is_made_of_the_same_pictures(run: Path) -> None:
    place = run / "geneval" / "none" / "00001"
    metadata = json.loads((place / "metadata.jsonl").read_text())
    assert metadata["include"] == [{"class": "cat", "count": 5}]
    assert metadata["exclude"] == [{"class": "cat", "count": 6}]
    assert (metadata["tag"], metadata["prompt"]) == ("counting", "5 cats")
    assert sorted(p.name for p in (place / "samples").iterdir()) == ["00000.png", "00001.png"]
    sample = (place / "samples" / "00001.png").read_bytes()
    assert sample == (run / "pictures/none/cats-1.png").read_bytes()


def test_what_geneval_has_no_class_for_is_left_out_of_its_layout(run: Path) -> None:
    assert [p.name for p in (run / "geneval" / "none").iterdir()] == ["00001"]
    shutil.rmtree(run / "geneval")
    told = Console(file=StringIO(), width=1000)
    evaluate(settings(run.parent, layout="geneval"), messages=told)
    assert isinstance(told.file, StringIO)
    assert "2 of 3 prompts are not in the folders" in told.file.getvalue()
    assert "none for star\n" in told.file.getvalue()


def test_a_stopped_run_goes_on_and_leaves_what_is_there(run: Path) -> None:
    path = run / "results.rank0.jsonl"
    before = {line.split('"judge"')[0]: line for line in path.read_text().splitlines()}
    lines = path.read_text().splitlines(keepends=True)
    (run / json.loads(lines[2])["picture"]).unlink()
    path.write_text("".join(lines[:-2]) + lines[-2][:40])
    (run / "summary.json").unlink()
    outcome = evaluate(settings(run.parent))
    assert outcome.document is not None and outcome.document["n_images"] == 12
    after = path.read_text().splitlines()
    assert len(after) == 12 and after[:2] == [line.rstrip("\n") for line in lines[:2]]
    again = {line.split('"judge"')[0].split('"pre"')[0]: line for line in after}
    assert again.keys() == {key.split('"pre"')[0] for key in before}
    wanted = {
        (r["method"], r["id"], r["image"]): (r["critic"], r["judge"])
        for r in map(json.loads, lines)
    }
    assert wanted == {
        (r["method"], r["id"], r["image"]): (r["critic"], r["judge"])
        for r in map(json.loads, after)
    }


def test_methods_and_limit_may_change_and_nothing_is_drawn_twice(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded for pictures that are there")

    monkeypatch.setattr(CountGuidedPipeline, "from_pretrained", refuse)
    outcome = evaluate(settings(run.parent, limit=2, methods=("best-of-n",)))
    assert outcome.document is not None
    assert (outcome.document["n_prompts"], outcome.document["n_images"]) == (2, 4)
    assert outcome.document["methods"].keys() == {"best-of-n"}


def test_other_settings_and_other_prompts_are_refused(run: Path) -> None:
    folder = run.parent
    before = (run / "results.rank0.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"budget 4\.0 there, 5\.0 here"):
        evaluate(settings(folder, draw=DrawOptions(num_images_per_prompt=2, budget=5)))
    (folder / "list.csv").write_text(LIST.replace("5 cats,cat,5", "4 cats,cat,4"))
    with pytest.raises(UsageError, match="another prompt with the id 'cats'"):
        evaluate(settings(folder))
    assert (run / "results.rank0.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judge": "pocket-detector-a"}, "critic and judge are both of the family"),
        ({"counters": CounterOptions(verifier="pocket-detector-b")}, "verifier and judge"),
        ({"judge": "pocket-detecter-b"}, "did you mean pocket-detector-b"),
        ({"methods": ("none", "noone")}, "noone"),
        ({"methods": ("none", "none")}, "twice"),
        ({"methods": ()}, "no method"),
        ({"limit": 0}, "at least 1"),
        ({"prompts": "pocket-smal"}, "did you mean pocket-small"),
        ({"model": "pockt"}, "did you mean pocket"),
        (
            {"prompts": "pocket-small", "draw": DrawOptions(seed=SELECTION_SEED)},
            "chose the hard third",
        ),
    ],
)
def test_impossible_requests_are_told_at_once(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        check(settings(tmp_path, **changes))


@pytest.mark.parametrize(
    ("line", "words"),
    [("x,two zebras,zebra,2", "zebra"), ("x,thirty cats,cat,30", "30 objects")],
)
def test_what_the_model_or_a_counter_cannot_do_is_told_with_its_line(
    line: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text(LIST + line + "\n")
    with pytest.raises(UsageError, match=rf"list\.csv, line 6: .*{words}"):
        check(settings(tmp_path))


def test_a_budget_in_seconds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--prompts", "pocket-small", "--out", str(tmp_path / "run")]
    assert command([*arguments, "--seconds", "60"]) == 2
    assert "cannot be reproduced" in capsys.readouterr().err
    assert command(["evaluate", "--out", str(tmp_path / "run")]) == 2
    assert "--prompts" in capsys.readouterr().err
    assert command(["evaluate", "--prompts", "pocket-small"]) == 2
    assert "--out" in capsys.readouterr().err
    assert command([*arguments, "--judges", "sam3", "owlv2"]) == 2
    assert "--images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_finished_pictures_are_judged_by_the_same_command(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judges = ["--judges", "pocket-detector-b", "pocket-density"]
    assert command(["evaluate", "--images", str(run), *judges, "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["n_images"] == 12
    plain = [row for row in rows(run) if row["method"] == "none"]
    exact = sum(row["judge"] == row["wanted"] for row in plain) / len(plain)
    assert document["methods"]["none"]["judge"]["pictures_exact"] == pytest.approx(exact, abs=1e-3)


def test_finished_pictures_that_fail_are_told_by_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures.csv").write_text("picture,noun,count\ngone.png,cat,1\n")
    arguments = ["evaluate", "--images", str(tmp_path), "--device", "cpu"]
    assert command([*arguments, "--judges", "pocket-density"]) == 1
    told = capsys.readouterr()
    assert "1 could not be counted" in told.out and "gone.png" in told.err
    assert command([*arguments, "--judges", "pocket-density", "--judge", "sam3"]) == 2
    assert "--judges" in capsys.readouterr().err


# -- the feed ---------------------------------------------------------------------------------------


def wanted(number: int) -> Wanted:
    return Wanted(ListedPrompt(f"p{number}", "two stars", (CountTarget("star", 2),)), 0, 0)


def test_a_feed_draws_what_a_call_draws(pocket: CountGuidedPipeline) -> None:
    draw = DrawOptions(budget=5, batch_size=3)
    prompts = [wanted(number) for number in range(4)]
    done = [one for part in Feed(pocket, "noise", draw)(iter(prompts)) for one in part]
    texts = [one.prompt.prompt for one in prompts]
    ids = [one.prompt.id for one in prompts]
    out = pocket(texts, prompt_ids=ids, budget=5, guidance="noise", output_type="pt")
    assert sorted(one.wanted.prompt.id for one in done) == ids
    for one in done:
        place = ids.index(one.wanted.prompt.id)
        assert one.job.outcome == out.outcomes[place]
        assert one.job.best is not None
        torch.testing.assert_close(one.job.best.image, out.images[place], atol=1e-3, rtol=0)


def test_a_feed_takes_no_more_than_it_has_room_for(pocket: CountGuidedPipeline) -> None:
    taken = 0

    def stream() -> Iterator[Wanted]:
        nonlocal taken
        for taken in range(1, 13):
            yield wanted(taken)

    finished = 0
    for part in Feed(pocket, "none", DrawOptions(batch_size=3))(stream()):
        assert taken <= finished + 3
        finished += len(part)
    assert finished == 12


def test_one_picture_that_fails_does_not_stop_the_others(
    pocket: CountGuidedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, bad = Feed(pocket, "none", DrawOptions(batch_size=2)), wanted(1).noise_seed()
    noise = type(pocket.adapter).noise

    def failing(self: Any, generators: Any, plan: Any) -> Any:
        if generators[0].initial_seed() == bad:
            raise RuntimeError("no noise today")
        return noise(self, generators, plan)

    monkeypatch.setattr(type(pocket.adapter), "noise", failing)
    done = [one for part in feed(wanted(number) for number in range(3)) for one in part]
    failed = [one.wanted.prompt.id for one in done if one.job.error is not None]
    assert failed == ["p1"] and len(done) == 3


def test_pictures_that_failed_are_told_and_drawn_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = replace(settings(tmp_path), methods=("none",))
    with monkeypatch.context() as patch:
        from pipelines.adapter import DiffusersAdapter

        noise = DiffusersAdapter.noise
        bad = Wanted(ListedPrompt("cats", "", ()), 1, 0).noise_seed()

        def failing(self: Any, generators: Any, plan: Any) -> Any:
            if generators[0].initial_seed() == bad:
                raise RuntimeError("no noise today")
            return noise(self, generators, plan)

        patch.setattr(DiffusersAdapter, "noise", failing)
        outcome = evaluate(few)
    assert outcome.failed == 1 and len(rows(few.out)) == 5
    assert "no noise today" in capsys.readouterr().err
    assert evaluate(few).failed == 0 and len(rows(few.out)) == 6


# -- progress ---------------------------------------------------------------------------------------


def test_progress_has_rate_and_remaining_time(tmp_path: Path) -> None:
    from rich.console import Console

    (tmp_path / "results.rank1.jsonl").write_text("{}\n" * 10)
    progress = Progress(Console(), tmp_path, 100, shown=False)
    assert progress.line(10, 5.0) == "10 of 100 pictures (10%)"
    assert progress.line(30, 10.0) == "30 of 100 pictures (30%), 2.0 a second, 35 s left"
    assert "12.0 a minute" in progress.line(30, 100.0) and "6 min left" in progress.line(30, 100.0)
    assert span(20_000) == "5.6 h"
