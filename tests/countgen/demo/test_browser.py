"""The page in a real browser: every tab, stopping, errors, a phone, the keyboard, and what axe finds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from page_in_browser import opened

from countgen import provenance

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]
EASY = "two red apples"
HARD = "19 donuts on a table"


def generate(page: Any, prompt: str) -> None:
    page.locator("#cg-prompt textarea").fill(prompt)
    page.get_by_role("button", name="Generate", exact=True).click()


def verdict(page: Any) -> Any:
    found = page.locator("#cg-verdict .cg-notice strong")
    found.wait_for()
    return found


def test_a_picture_is_verified_and_gives_its_settings_back(web: Any, tmp_path: Path) -> None:
    generate(web, EASY)
    assert re.match(r"Verified: 2 red apples \(9\d% sure\)", verdict(web).inner_text())
    slider = web.locator("#cg-slider img")
    slider.first.wait_for()
    assert slider.count() == 2  # plain and exact
    with web.expect_download() as download:
        web.locator("#cg-picture").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert provenance.read(path).settings["counts"]["verifier"] == {"red apple": 2}
    web.locator("#cg-prompt textarea").fill("something else")
    web.locator("#cg-earlier input[type=file]").set_input_files(str(path))
    web.get_by_text("These are the settings of the picture").wait_for()
    assert web.locator("#cg-prompt textarea").input_value() == EASY


def test_a_picture_forms_until_stop_which_keeps_the_nearest_and_frees_the_device(web: Any) -> None:
    generate(web, HARD)
    live = web.locator("#cg-live figure img").first
    live.wait_for()
    assert "donut" in live.get_attribute("alt")
    web.locator("#cg-stop").click()
    said = verdict(web).inner_text()
    assert "Not verified" in said and "cancelled" in said
    generate(web, EASY)
    web.get_by_text("Verified: 2 red apples").wait_for()


def test_generate_right_after_stop_is_not_lost(web: Any) -> None:
    """Neither after its answer nor before; with a queue of Gradio's every other one was."""
    for patient in (True, False, True, False, True, False):
        generate(web, HARD)
        web.locator("#cg-live figure img[alt*=donut]").first.wait_for()
        web.locator("#cg-stop").click()
        if patient:
            assert "Not verified" in verdict(web).inner_text()
        generate(web, EASY)
        web.get_by_text("Verified: 2 red apples").wait_for()


def test_who_generates_anew_is_shown_the_new_picture_alone(web: Any) -> None:
    generate(web, HARD)
    web.locator("#cg-live figure img[alt*=donut]").first.wait_for()
    generate(web, EASY)
    assert "Verified: 2 red apples" in verdict(web).inner_text()  # never that of the donuts
    web.locator("#cg-live img[alt*=donut]").first.wait_for(state="detached")


def test_stop_while_others_are_served_gives_the_place_back(browser: Any, address: str) -> None:
    contexts = [browser.new_context() for _ in range(2)]
    first, second = (opened(context, address) for context in contexts)
    generate(first, HARD)
    first.locator("#cg-live figure img").first.wait_for()
    generate(second, EASY)
    second.get_by_text("One other is served before you.").wait_for()
    second.locator("#cg-stop").click()
    second.get_by_text("Stopped before the first picture.").wait_for()
    assert first.locator("#cg-live figure img").count()
    generate(second, EASY)
    second.get_by_text("One other is served before you.").wait_for()
    contexts[0].close()  # who goes away frees the device
    second.get_by_text("Verified: 2 red apples").wait_for()
    second.locator("#cg-stop").click()
    second.get_by_text("Nothing is being drawn for you.").wait_for()
    assert "Verified: 2 red apples" in verdict(second).inner_text()
    contexts[1].close()


def test_several_pictures_are_a_gallery(web: Any) -> None:
    web.get_by_role("button", name="Settings").first.click()
    number = web.get_by_label("number input for Number of pictures")
    for _ in range(20):  # a field that was just unfolded can still be given its first value
        number.fill("3")
        number.press("Tab")  # the page takes the number when its field is left
        web.wait_for_timeout(100)
        if number.input_value() == "3":
            break
    generate(web, EASY)
    assert number.input_value() == "3"
    verdict(web)
    chosen = web.locator("#cg-gallery .thumbnail-item, #cg-gallery button.thumbnail-lg")
    chosen.nth(2).wait_for()
    chosen.nth(2).click()
    web.locator("#cg-slider img").first.wait_for()
    with web.expect_download() as download:
        web.locator("#cg-picture").click()
    assert download.value.suggested_filename.endswith("-2.png")  # the third one, counted from 0


def test_methods_side_by_side(web: Any) -> None:
    web.get_by_role("tab", name="Compare").click()
    web.get_by_label("Prompt").locator("visible=true").fill("three cats")
    web.get_by_role("button", name="Compare", exact=True).click()
    web.get_by_role("button", name="All of them in one picture").wait_for()
    rows = web.locator("#cg-compared tbody tr")
    assert rows.count() == 3 and "none" in rows.first.inner_text()
    assert web.locator("#cg-compared figure img").count() == 3


def test_a_comparison_is_stopped_and_begun_again(web: Any) -> None:
    web.get_by_role("tab", name="Compare").click()
    panel, compare = (
        web.locator("#cg-compared"),
        web.get_by_role("button", name="Compare", exact=True),
    )
    sheet = web.get_by_role("button", name="All of them in one picture")
    for _ in range(3):
        web.get_by_label("Prompt").locator("visible=true").fill(HARD)
        compare.click()
        sheet.wait_for(state="hidden")
        panel.locator("figure img").first.wait_for()
        web.get_by_role("button", name="Stop", exact=True).locator("visible=true").click()
        panel.get_by_text("Stopped.").wait_for()
        web.get_by_label("Prompt").locator("visible=true").fill("two cats")
        compare.click()
        panel.locator("tbody tr").nth(2).get_by_text("2 cats").first.wait_for()
        panel.get_by_text("Stopped.").wait_for(state="detached")


def test_what_each_counter_sees(web: Any, scene: Path) -> None:
    web.get_by_role("tab", name="Count").click()
    web.locator("#cg-counted input[type=file]").set_input_files(str(scene))
    web.locator("#cg-counted img").wait_for()
    web.locator("#cg-noun textarea").fill("red apple")
    web.get_by_role("button", name="Count", exact=True).click()
    web.locator("#cg-seen table").wait_for()
    assert "All counters agree: 3 red apples" in web.locator("#cg-seen").inner_text()


def test_a_list_with_its_report(web: Any, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("two cats\nthree cars\n")
    web.get_by_role("tab", name="List").click()
    web.locator("#cg-list input[type=file]").set_input_files(str(path))
    web.get_by_text("list.txt").wait_for()
    web.get_by_role("button", name="Draw the list").click()
    web.locator("#cg-report").wait_for()
    assert "2 of 2 prompts drawn" in web.locator("#cg-batch").inner_text()
    with web.expect_download() as download:
        web.locator("#cg-report").click()
    assert download.value.suggested_filename.endswith(".zip")


def test_a_list_is_stopped_and_begun_again(web: Any, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("two cats\n" * 30)
    web.get_by_role("tab", name="List").click()
    web.locator("#cg-list input[type=file]").set_input_files(str(path))
    web.get_by_text("list.txt").wait_for()
    for _ in range(3):
        web.get_by_role("button", name="Draw the list").click()
        web.locator("#cg-report").wait_for(state="hidden")
        web.locator("#cg-batch figure img").first.wait_for()
        web.get_by_role("button", name="Stop", exact=True).locator("visible=true").click()
        told = web.locator("#cg-batch").get_by_text(re.compile(r"\d+ of 30 prompts drawn"))
        told.wait_for()
        assert "30 of 30" not in told.inner_text()
        web.locator("#cg-report").wait_for()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("two unicorns", "unicorn"), ("", "empty"), ("minus two cats", "below zero|negative|minus")],
)
def test_errors_are_told_in_the_panel(web: Any, prompt: str, words: str) -> None:
    generate(web, prompt)
    alert = web.locator('#cg-live [role="alert"]')
    alert.wait_for()
    assert re.search(words, alert.inner_text().lower())


@pytest.mark.parametrize(
    ("tab", "button", "panel"),
    [("Count", "Count", "#cg-seen"), ("List", "Draw the list", "#cg-batch")],
)
def test_what_is_missing_is_told_in_the_panel(web: Any, tab: str, button: str, panel: str) -> None:
    web.get_by_role("tab", name=tab).click()
    web.get_by_role("button", name=button, exact=True).click()
    alert = web.locator(f'{panel} [role="alert"]')
    alert.wait_for()
    assert "choose a file" in alert.inner_text() or "fill it in" in alert.inner_text()


def test_two_visitors_at_once(browser: Any, address: str) -> None:
    contexts = [browser.new_context() for _ in range(2)]
    pages = [opened(context, address) for context in contexts]
    for page, noun in zip(pages, ("cats", "cars"), strict=True):
        generate(page, f"two {noun}")
    for page, noun in zip(pages, ("cats", "cars"), strict=True):
        assert f"2 {noun}" in verdict(page).inner_text()
    for context in contexts:
        context.close()


def test_a_phone(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True)
    page = opened(context, address)
    at_results = "Math.abs(document.getElementById('cg-results').getBoundingClientRect().top) < 40"
    generate(page, HARD)
    page.wait_for_function(at_results)  # while it is drawn
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator("#cg-results").get_by_text(re.compile("Stopped|Not verified")).first.wait_for()
    generate(page, EASY)
    page.wait_for_function(at_results)
    page.locator("#cg-slider img").first.wait_for()
    page.get_by_text("Verified: 2 red apples").wait_for()
    assert page.evaluate(at_results)  # where the visitor is when the picture comes
    for tab in ("Generate", "Compare", "Count", "List"):
        page.get_by_role("tab", name=tab).click()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{tab} scrolls sideways"
    context.close()


def test_the_keyboard_alone_is_enough(web: Any) -> None:
    web.locator("body").press("Tab")
    for _ in range(20):
        if web.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
        web.keyboard.press("Tab")
    web.keyboard.type(EASY)
    for _ in range(12):
        web.keyboard.press("Tab")
        if web.evaluate("document.activeElement.id") == "cg-go":
            break
    web.keyboard.press("Enter")
    assert "Verified" in verdict(web).inner_text()
    outline = web.evaluate("getComputedStyle(document.querySelector('#cg-go')).outlineStyle")
    assert outline == "solid"  # where the focus is can be seen
    web.get_by_role("tab", name="Generate").focus()
    web.keyboard.press("Tab")
    web.keyboard.press("Enter")
    web.get_by_role("button", name="Compare", exact=True).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, address: str, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = opened(context, f"{address}?__theme={scheme}")
    generate(page, EASY)
    verdict(page)
    page.locator("#cg-slider img").first.wait_for()
    found = []
    for tab in ("Generate", "Compare", "Count", "List"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        for rule in axe.Axe().run(page).response["violations"]:
            if rule["impact"] in ("serious", "critical"):
                nodes = [node["html"][:160] for node in rule["nodes"]]
                found.append((tab, rule["id"], nodes[:4]))
    context.close()
    assert found == []
