"""What is read from whatever was sent: bounds, wishes, uploads, settings of pictures, who is at work."""

from __future__ import annotations

import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from countgen import CountGuidedPipeline
from countgen.demo import build_app, views
from countgen.demo import limits as read
from countgen.demo.files import Shelf, open_picture
from countgen.demo.limits import Limits
from countgen.demo.running import Tickets, sentence_of, watched
from countgen.demo.studio import OWN, Studio
from countgen.demo.watch import told_change
from countgen.demo.wishes import form_of, read_wish
from countgen.errors import UsageError
from countgen.guidance.edits import KINDS

LIMITS = Limits()


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio()


def wish(studio: Studio, **values: Any) -> Any:
    return read_wish({"prompt": "two cats", **values}, studio, LIMITS)


def test_what_is_missing_is_the_default(studio: Studio) -> None:
    found = wish(studio)
    assert (found.model, found.critic, found.seed, found.pictures) == ("pocket", OWN, 0, 1)
    assert found.steps is None and found.width is None
    assert found.options()["budget"] == 64


def test_a_noun_and_a_number_make_the_prompt_and_win_over_it(studio: Studio) -> None:
    alone = wish(studio, prompt="", noun="red apples", number=3).prompt
    assert alone.text == "3 red apples" and [t.count for t in alone.targets] == [3]
    both = wish(studio, prompt="cats on grass", noun="cat", number=4).prompt
    assert both.text == "cats on grass" and both.targets[0].count == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "x" * 501}, "501 letters"),
        ({"prompt": ["two cats"]}, "a list"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "two \ud800 cats"}, "UTF-8"),
        ({"prompt": "99 cats"}, "at most"),
        ({"noun": "cat", "number": -1}, "from 0"),
        ({"noun": "cat", "number": None}, "how many"),
        ({"noun": "cat", "number": 2.5}, "whole"),
        ({"seed": -1}, "the seed"),
        ({"seed": 10**400}, "the seed"),
        ({"seed": True}, "the seed"),
        ({"budget": float("nan")}, "no number"),
        ({"budget": float("inf")}, "without bound"),
        ({"budget": "64"}, "a text"),
        ({"pictures": 7}, "the number of pictures"),
        ({"steps": 51}, "the number of steps"),
        ({"width": 8}, "at least 32"),
        ({"height": 4096}, "the height"),
        ({"model": "../../etc"}, "the model"),
        ({"critic": "owlv2=/"}, "the critic"),
        ({"method": {"$ne": 1}}, "the method"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    studio: Studio, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        wish(studio, **values)
    said = sentence_of(refused.value)
    assert words in said.lower() or words in said
    assert len(said) < 400 and "Traceback" not in said


def test_the_critic_gets_a_verifier_of_another_family(studio: Studio) -> None:
    own = studio.roles("pocket", OWN, ())
    assert studio.roles("pocket", own["verifier"], ()) == {
        "critic": own["verifier"],
        "verifier": own["critic"],
    }
    with pytest.raises(UsageError, match="boxes"):
        studio.pipeline("pocket", own["verifier"], ["cat"], "edit")


def test_settings_of_a_picture_fill_the_form_and_are_checked(studio: Studio) -> None:
    settings = {
        "prompt": "two cats",
        "targets": [{"noun": "cat", "count": 2}],
        "model": "pocket",
        "critic": "pocket-detector-a",
        "method": "edit",
        "run_seed": 7,
        "image": 1,
        "budget": 32,
        "steps": 8,
        "size": "64x64",
    }
    form = form_of(settings, studio, LIMITS)
    assert form["noun"] == "" and form["critic"] == OWN
    assert (form["seed"], form["pictures"], form["method"]) == (7, 2, "edit")
    assert (form["steps"], form["width"], form["height"]) == (8, 64, 64)
    given = form_of(settings | {"prompt": "cats on grass"}, studio, LIMITS)
    assert (given["noun"], given["number"]) == ("cat", 2)
    for wrong in ({"model": "/etc"}, {"image": 10**9}, {"prompt": 5}, {"run_seed": "x"}):
        with pytest.raises(UsageError):
            form_of(settings | {"prompt": "cats"} | wrong, studio, LIMITS)


def picture(path: Path, size: tuple[int, int] = (40, 40), kind: str = "PNG") -> dict[str, str]:
    data = BytesIO()
    Image.new("RGB", size, "red").save(data, kind)
    path.write_bytes(data.getvalue())
    return {"path": str(path), "orig_name": path.name}


def test_pictures_are_bounded_before_they_are_decoded(tmp_path: Path) -> None:
    assert open_picture(picture(tmp_path / "a.jpg", kind="JPEG"), LIMITS).mode == "RGB"
    few = Limits(pixels=1000)
    with pytest.raises(UsageError, match="too large with 40 x 40"):
        open_picture(picture(tmp_path / "a.png"), few)
    with pytest.raises(UsageError, match="MB are allowed"):
        open_picture(picture(tmp_path / "a.png"), Limits(upload=50))
    with pytest.raises(UsageError, match=r"gif\.png"):
        open_picture(picture(tmp_path / "gif.png", kind="GIF"), LIMITS)
    cut = picture(tmp_path / "cut.png", (300, 300))
    path = Path(cut["path"])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"cut\.png is damaged"):
        open_picture(cut, LIMITS)
    for wrong in (None, {}, {"path": 3}, {"path": str(tmp_path)}, ["a", "b"], 7):
        with pytest.raises(UsageError):
            open_picture(wrong, LIMITS)


def test_several_are_taken_in_the_order_of_the_choices() -> None:
    assert read.several(["b", "a", "a"], "letters", ("a", "b", "c"), 2) == ("a", "b")
    for wrong in ([], "a", ["a", "b", "c"], ["d"], [{}]):
        with pytest.raises(UsageError):
            read.several(wrong, "letters", ("a", "b", "c"), 2)


@pytest.mark.parametrize("name", ["queue", "upload", "seconds"])
def test_limits_that_leave_nothing_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"the limit {name} must be at least"):
        build_app(limits=Limits(**{name: -1}))
    assert Limits(queue=0, budget=0.0).checked().queue == 0


def test_what_is_shown_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    for html in (views.notice(evil), views.table([{evil: evil}], evil), views.waiting(evil)):
        assert "<script>" not in html and "&lt;script&gt;" in html


def test_every_edit_has_words() -> None:
    told = [told_change(kind, ["cat"], 0) for kind in KINDS]
    assert len(set(told)) == len(KINDS) and told_change("", ["cat"], 0) not in told


def test_files_on_the_shelf_are_removed_after_their_time() -> None:
    shelf = Shelf()
    path = Path(shelf.keep("a.txt", b"a"))
    assert path.read_bytes() == b"a"
    shelf.tidy(older=-1)
    assert not path.exists()


def test_who_goes_away_leaves_the_device_when_the_run_has_ended(
    pocket: CountGuidedPipeline,
) -> None:
    """The server closes the iterator early; what is unfinished is verified before the next one's turn."""
    tickets, found = Tickets(2), wish(Studio(), prompt="19 donuts", budget=256)
    runs = []

    def work() -> Any:
        with tickets.open("gone", "tab") as ticket:
            for run, _ in watched(pocket, found, ticket, seconds=600):
                runs.append(run)
                yield

    working = work()
    next(working), next(working)
    with tickets.open("next", "tab") as ticket:
        working.close()
        list(ticket.waiting())
        (job,) = runs[-1].jobs
        assert job.outcome == "cancelled" and job.best.record.verifier is not None
        assert len(tickets) == 1
    assert len(tickets) == 0 and not tickets.stop("gone", "tab")


def test_stop_from_another_thread_ends_the_run(pocket: CountGuidedPipeline) -> None:
    tickets, found = Tickets(2), wish(Studio(), prompt="19 donuts", budget=256)
    with tickets.open("me", "tab") as ticket:
        stopper = threading.Timer(0.0, tickets.stop, ("me", "tab"))
        for run, watch in watched(pocket, found, ticket, seconds=600):
            job, looks = run.jobs[0], watch.pictures[0].looks
            if looks == 1:
                stopper.start()
                while not ticket.stopped:
                    time.sleep(0.01)
    assert looks == 1 and job.outcome == "cancelled"


def test_a_line_serves_who_came_first_and_has_an_end() -> None:
    tickets = Tickets(2)
    with tickets.open("a", "tab") as first, tickets.open("b", "tab") as second:
        assert list(first.waiting()) == []
        assert next(second.waiting()) == 1
        with tickets.open("c", "tab") as third:
            assert next(third.waiting()) == 2
            with (
                pytest.raises(UsageError, match="is full, with 2 waiting"),
                tickets.open("d", "tab"),
            ):
                pass
            first.give_way()
            assert list(second.waiting()) == []
            assert (next(third.waiting()), next(first.waiting())) == (1, 2)
        assert next(first.waiting()) == 1
    assert len(tickets) == 0


def test_who_waits_has_the_device_as_soon_as_it_is_free() -> None:
    tickets, served = Tickets(9), []

    def ask(name: int) -> None:
        with tickets.open(str(name), "tab") as ticket:
            joined.release()
            list(ticket.waiting())
            assert tickets.before(ticket, 0.0) == 0
            served.append(name)

    joined = threading.Semaphore(0)
    asking = []
    with tickets.open("me", "tab"):
        for name in range(8):
            asking.append(threading.Thread(target=ask, args=(name,)))
            asking[-1].start()
            joined.acquire()
        assert served == []
    for thread in asking:
        thread.join(60)
    assert served == list(range(8)) and len(tickets) == 0


def test_stop_ends_the_waiting_of_one_tab_alone() -> None:
    tickets = Tickets(4)
    with (
        tickets.open("other", "tab"),
        tickets.open("me", "tab") as mine,
        tickets.open("me", "elsewhere") as another,
    ):
        assert tickets.stop("me", "tab")
        assert mine.stopped and list(mine.waiting()) == []
        assert not another.stopped and next(another.waiting()) == 2
    assert not tickets.stop("me", "tab")


def test_who_asks_anew_in_a_tab_gives_up_what_was_asked_before() -> None:
    tickets = Tickets(9)
    with (
        tickets.open("me", "tab", replacing=True) as first,
        tickets.open("me", "elsewhere", replacing=True) as another,
        tickets.open("other", "tab", replacing=True) as other,
        tickets.open("me", "tab", replacing=True) as second,
    ):
        assert first.replaced and first.stopped
        assert not any(one.replaced or one.stopped for one in (another, other, second))
    with tickets.open("me", "api") as first, tickets.open("me", "api"):
        assert not first.replaced  # programs may ask for several at once


def test_a_run_ends_when_its_time_is_over(pocket: CountGuidedPipeline) -> None:
    with Tickets(1).open("me", "tab") as ticket:
        found = wish(Studio(), prompt="19 donuts", budget=256)
        (run, watch) = list(watched(pocket, found, ticket, seconds=0.0))[-1]
    assert watch.pictures[0].looks == 1 and run.jobs[0].outcome == "cancelled"
