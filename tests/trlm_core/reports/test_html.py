"""The page: whole, escaped, self-contained, honest about goals that are missed."""

import re
from collections.abc import Callable
from html.parser import HTMLParser

from trlm_core.artifacts.store import Store
from trlm_core.reports.compare import numbers
from trlm_core.reports.html import report_page
from trlm_core.reports.results import RunResults

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balance(HTMLParser):
    """Open elements, and every address that the page would load or follow."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.anchors |= {value for name, value in attrs if name == "id" and value}
        self.addresses += [value for name, value in attrs if name in {"src", "href", "xlink:href"} and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(store: Store, results: RunResults) -> str:
    return report_page(store, results, numbers(store, results))


def parsed(text: str) -> Balance:
    balance = Balance()
    balance.feed(text)
    return balance


def test_tags_are_balanced(store: Store, results: RunResults) -> None:
    assert parsed(page(store, results)).open == []


def test_nothing_is_loaded_and_no_script_runs(store: Store, results: RunResults) -> None:
    text = page(store, results)
    balance = parsed(text)
    assert all(address.startswith("#") for address in balance.addresses)
    assert balance.tags.isdisjoint({"script", "link", "img", "iframe"})
    assert not re.search(r"@import|url\((?!#)", text)


def test_every_link_has_its_target(store: Store, results: RunResults) -> None:
    balance = parsed(page(store, results))
    assert {address[1:] for address in balance.addresses} <= balance.anchors


def test_a_reply_is_escaped(store: Store, with_reply: Callable[[str], RunResults]) -> None:
    text = page(store, with_reply("<script>steal()</script><think>"))
    assert "&lt;script&gt;steal()&lt;/script&gt;&lt;think&gt;" in text
    assert "<script" not in text


def test_a_missed_goal_is_shown_as_not_reached(store: Store, results: RunResults) -> None:
    goals = page(store, results).split('<section id="goals">')[1].split("</section>")[0]
    row = next(line for line in goals.splitlines() if "stage 1: held-out loss falls" in line)
    assert "not reached" in row
    assert goals.count('<span class="verdict bad">not reached</span>') == 3
    assert goals.count('<span class="verdict good">reached</span>') == 9
    assert "9 of 12 goals reached" in goals


def test_figures_2_to_10_are_there(store: Store, results: RunResults) -> None:
    found = re.findall(r'aria-label="Figure (\d+):', page(store, results))
    assert found == ["2", "3", "4", "5", "6", "7", "8", "9", "10"]


def test_scores_say_which_base_they_are_of(store: Store, results: RunResults) -> None:
    text = page(store, results)
    for section in ("goals", "results", "comparisons", "families", "held-out-loss", "preferences", "replies"):
        assert "dequantised Q4_1" in text.split(f'<section id="{section}">')[1].split("</section>")[0]


def test_what_did_not_run_is_left_out(store: Store, without_stage3: RunResults) -> None:
    text = page(store, without_stage3)
    assert 'id="preferences"' not in text
    assert 'href="#preferences"' not in text
    assert "Figure 8" not in text


def test_the_first_question_of_every_family_is_shown(store: Store, results: RunResults) -> None:
    text = page(store, results)
    shown = [f"What is question {position} &amp; 2?" in text for position in range(6)]
    assert shown == [True, False, True, False, True, False]


def test_blends_say_what_was_dropped_and_checked(store: Store, results: RunResults) -> None:
    text = page(store, results)
    assert "too_long 3" in text
    assert "Blend of stage 1: 16 rows; 2 of 2 checks passed." in text


def test_same_results_same_page(store: Store, results: RunResults) -> None:
    assert page(store, results) == page(store, results)
