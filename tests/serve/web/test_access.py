"""The playground for everyone: a phone's width, dark and light, the keyboard alone, a screen reader."""

import os
from pathlib import Path

import pytest

from tests.serve.web.conftest import ROOT

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def axe_source():
    """axe-core's one file, or a skip that says how to get it."""
    for path in (os.environ.get("M27_AXE", ""), ROOT / ".cache/axe-core/axe.min.js"):
        if path and Path(path).is_file():
            return Path(path).read_text(encoding="utf-8")
    pytest.skip("no axe-core: `npm pack axe-core`, unpack it and name its axe.min.js in M27_AXE")


def overflow(playground):
    wide = "[document.documentElement.scrollWidth, innerWidth]"
    width, window = playground.page.evaluate(wide)
    return width - window


def test_a_phone_needs_no_sideways_scrolling(open_playground):
    phone = open_playground(**PHONE)
    assert overflow(phone) == 0
    phone.shot("phone-welcome")
    phone.ask("Tell a story with averyveryverylongwordthatnobodycouldeversayandthatfitsnoline" + "e" * 60)
    phone.ask("Say it")
    assert overflow(phone) == 0
    phone.shot("phone-story")
    phone.button("Conversations").click()
    phone.button("New conversation").wait_for()
    assert phone.button("New conversation").evaluate("node => node === document.activeElement")
    phone.page.wait_for_timeout(250)  # the drawer slides
    assert overflow(phone) == 0
    phone.shot("phone-conversations")
    phone.page.keyboard.press("Escape")
    assert phone.button("Conversations").get_attribute("aria-expanded") == "false"
    phone.button("Edit and send again").first.click()
    assert overflow(phone) == 0
    phone.button("Settings").click()
    assert overflow(phone) == 0
    phone.shot("phone-settings")


def test_dark_and_light_follow_the_system_until_chosen(playground):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = playground.page.evaluate(paper)
    playground.page.emulate_media(color_scheme="dark")
    dark = playground.page.evaluate(paper)
    assert light == "rgb(251, 250, 248)" and dark == "rgb(23, 24, 27)"
    playground.button("Light or dark").click()
    assert playground.page.evaluate(paper) == light
    playground.open()
    assert playground.page.evaluate(paper) == light
    playground.button("Light or dark").click()
    playground.page.emulate_media(color_scheme="light")
    assert playground.page.evaluate(paper) == dark


def focused(playground):
    node = "document.activeElement"
    return playground.page.evaluate(f"{node}.getAttribute('aria-label') ?? {node}.textContent.trim()")


@pytest.mark.slow
def test_the_keyboard_reaches_everything_and_shows_where_it_is(playground):
    playground.page.locator(".skip").focus()
    seen = [focused(playground)]
    for _ in range(60):
        playground.page.keyboard.press("Tab")
        seen.append(focused(playground))
        if seen[-1] == "Send":
            break
        outline = playground.page.evaluate(
            "[getComputedStyle(document.activeElement).outlineStyle, document.activeElement.tagName]"
        )
        assert outline[0] != "none" or outline[1] == "TEXTAREA", seen[-1]
    for name in ("New conversation", "Light or dark", "Settings", "Message", "Record a sound", "Send"):
        assert name in seen
    assert sum("apple" in words for words in seen) == 1  # examples are buttons too
    playground.page.locator(".skip").focus()
    playground.page.keyboard.press("Enter")
    assert focused(playground) == "Message"


@pytest.mark.slow
def test_dialogs_give_the_focus_back(playground):
    playground.button("Settings").focus()
    playground.page.keyboard.press("Enter")
    assert playground.page.locator("dialog#settings").is_visible()
    playground.page.keyboard.press("Escape")
    assert focused(playground) == "Settings"


@pytest.mark.slow
def test_lines_and_the_last_message_by_keyboard(playground):
    playground.field.fill("one")
    playground.field.press("Shift+Enter")
    playground.page.keyboard.type("two")
    playground.field.press("Enter")
    playground.ended()
    assert playground.server.requests[0]["messages"][0]["content"] == "one\ntwo"
    playground.field.press("ArrowUp")
    assert focused(playground) == "Your message, to be sent again"


@pytest.mark.slow
def test_nothing_moves_for_those_who_want_rest(open_playground):
    still = open_playground(reduced_motion="reduce")
    still.send("Draw an apple, and hold")
    still.page.get_by_label("Drawing the picture").wait_for()
    assert still.page.evaluate("document.getAnimations().length") == 0


@pytest.mark.slow
def test_the_page_follows_the_answer_unless_one_reads_further_up(playground):
    playground.ask("long")
    end = "document.scrollingElement.scrollHeight - scrollY - innerHeight"
    playground.until(f"{end} < 2")
    playground.page.evaluate("scrollTo(0, 0)")
    playground.button("Latest").wait_for()
    playground.shot("scrolled")
    playground.button("Latest").click()
    playground.until(f"{end} < 2")


SCENES = {
    "welcome": lambda it: None,
    "story": lambda it: (it.ask("Tell a story"), it.until("!document.querySelector('.coming')")),
    "drawing": lambda it: (it.send("Draw, hold"), it.page.get_by_label("Drawing the picture").wait_for()),
    "fault": lambda it: (it.send("break"), it.page.get_by_text("the engine broke off").wait_for()),
    "settings": lambda it: it.button("Settings").click(),
    "edit": lambda it: (it.ask("long"), it.button("Edit and send again").click()),
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(open_playground, scheme):
    axe, found = axe_source(), []
    for name, reach in SCENES.items():
        for size in ({}, PHONE):
            it = open_playground(color_scheme=scheme, reduced_motion="reduce", **size)
            reach(it)
            if not size:
                it.shot(f"{name}-{scheme}")
            it.page.evaluate(axe)
            result = it.page.evaluate("axe.run({resultTypes: ['violations']})")
            for fault in result["violations"]:
                nodes = [node["html"][:120] for node in fault["nodes"][:3]]
                where = f"{name}, {scheme}, {'phone' if size else 'desktop'}"
                found.append(f"{where}: {fault['id']} ({fault['impact']}): {nodes}")
            it.page.context.close()
    assert found == []
