"""The report as a browser and a reader find it: parsed, with its tables against the evaluations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from caches import User, cache_of
from hiertcn import pictures
from hiertcn.cache import Cache, write_cache
from hiertcn.catalog import Catalog
from hiertcn.errors import InputError
from hiertcn.evaluation import Evaluation, evaluate_model, simple_model
from hiertcn.metrics import METRICS, Table, difference
from hiertcn.report import write_report
from hiertcn.timeline import timeline
from logs import BEGIN
from pages import Page, text_of

GAP, DAY, ITEMS = 1800, 86_400, 12
HOSTILE = "</title><script>alert('é')</script> \"x\" & <b onmouseover=alert(1)>"
HOSTILE_MODEL = "_$x^$ <img src=x onerror=alert(1)>"


def people(seed: int = 0) -> list[User]:
    """Each has a favourite; that of "z" alone is popular. "a" has most targets, in one session; "v <i>" has 4 sessions,
    the last of 40 events."""
    rng = np.random.default_rng(seed)

    def person(name: str, lengths: Sequence[int], tests: int, favourite: int) -> User:
        begins = np.repeat(BEGIN + np.arange(len(lengths)) * (DAY + 3700), lengths)
        times = begins + np.concatenate([np.arange(length) * 10 for length in lengths])
        parts = np.where(np.arange(sum(lengths)) < sum(lengths) - tests, "train", "test")
        items = np.where(rng.random(sum(lengths)) < 0.75, favourite, rng.integers(1, ITEMS + 2, sum(lengths)))
        return name, items.tolist(), times.tolist(), parts.tolist()

    few = [person(f"u{i}", [3, 4, 2], 3, 2 + i) for i in range(6)]
    return [person("a", [70], 60, 8), *few, person("v <i>", [3, 4, 5, 40], 48, 9), person("z", [30, 30], 0, 1)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache whose titles are hostile, one of them missing."""
    folder = tmp_path_factory.mktemp("log")
    plain = cache_of(folder / "plain", people(), GAP, catalog_size=ITEMS, shards=2)
    titles = [None, *(f"{HOSTILE} {row}" for row in range(2, plain.catalog.items.height + 1))]
    catalog = Catalog(plain.catalog.items.with_columns(title=pl.Series(titles)), ITEMS)
    shards = [(plain.shard(i).user_ids, plain.shard(i).sessions) for i in range(len(plain))]
    return write_cache(folder / "cache", plain.manifest, catalog, shards)


def found(cache: Cache, model: str, name: str = "", top: int = 5, part: str = "test") -> Evaluation:
    return evaluate_model(simple_model(model, cache.catalog), cache.catalog, cache, part, top=top, name=name or model)


@pytest.fixture(scope="module")
def evaluations(cache: Cache) -> list[Evaluation]:
    return [found(cache, "last_items", top=20), found(cache, "popularity", HOSTILE_MODEL)]


HISTORY = [
    {"epoch": 1, "loss": 7.5, "recall@10": 0.125, "mrr": 0.0625},
    {"epoch": 2, "loss": float("nan"), "recall@10": 0.25, "mrr": 0.1251},
]
OPTIMUM = {"recall@10": 0.98765, "mrr": 0.875}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, evaluations: list[Evaluation]) -> list[Path]:
    """The same report twice."""
    folder = tmp_path_factory.mktemp("report")
    paths = [folder / "a.html", folder / "b.html"]
    for path in paths:
        histories = {HOSTILE_MODEL: HISTORY}
        write_report(
            path, title=HOSTILE, evaluations=evaluations, histories=histories, optimum=OPTIMUM, notes=[HOSTILE]
        )
    return paths


@pytest.fixture(scope="module")
def page(written: list[Path]) -> Page:
    return Page(written[0].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, evaluations: list[Evaluation]) -> Page:
    """Of one model that was not trained, one session of the first user."""
    path = tmp_path_factory.mktemp("bare") / "report.html"
    write_report(path, title="bare", evaluations=evaluations[:1], histories={"gru": []}, user=0, sessions=1)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else_and_runs_nothing(page: Page) -> None:
    for element in page.root.iter():
        assert element.tag not in {"script", "link", "iframe", "object", "base", "form", "b"}
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            assert name not in {"href", "srcset", "action", "data"}
            assert name != "src" or value.startswith("data:image/svg+xml;base64,")
            assert name != "style" or re.fullmatch(r"background: #[0-9a-f]{6}", value)
    style = page.root.find("head/style")
    assert style is not None
    assert not re.search(r"url\(|@import|http", style.text or "")
    assert "prefers-color-scheme: dark" in (style.text or "")
    for _, svg in page.pictures():
        for element in svg.iter():
            assert not element.tag.endswith(("script", "image", "foreignObject"))
            linked = [value for name, value in element.attrib.items() if name.endswith("href")]
            assert all(value.startswith("#") for value in linked)


def test_texts_of_others_come_through_as_text(page: Page) -> None:
    shown = " ".join(HOSTILE.split())
    assert text_of(page.root.find("head/title")) == text_of(page.root.find("body/header/h1")) == shown
    assert [text_of(p) for p in page.root.findall("body/header/p")] == [shown]
    section = page.section("The last sessions of user v <i>")
    assert f"{shown} 2 i2" in text_of(section)


def test_facts_of_the_log_count_what_is_outside_the_catalog(page: Page, evaluations: list[Evaluation]) -> None:
    facts = text_of(page.root.find("body/header/dl"))
    outside = int((~evaluations[0].ranked).sum())
    assert outside > 0
    assert f"{outside} of {len(evaluations[0].ranked)} test events" in facts
    assert f"{evaluations[0].table.targets} events of {evaluations[0].table.users} users" in facts
    assert f"{ITEMS} items" in facts


def cells(table: Table, weight: str, form: str) -> list[tuple[str, str]]:
    values, intervals = getattr(table, weight), getattr(table, f"{weight}_interval")
    return [(format(values[m], form), " to ".join(format(end, form) for end in intervals[m])) for m in METRICS]


def paired(evaluations: list[Evaluation]) -> Table:
    ours, theirs = evaluations
    ranked = ours.ranked
    return difference(ours.ranks.ranks[ranked], theirs.ranks.ranks[ranked], ours.targets.user[ranked], ITEMS)


@pytest.mark.parametrize("weight", ["event", "user"])
def test_tables_hold_the_numbers_of_the_evaluations(page: Page, evaluations: list[Evaluation], weight: str) -> None:
    rows = page.table(f"Metrics per {weight}")
    assert list(rows) == ["last_items", HOSTILE_MODEL, *(["known optimum"] if weight == "event" else [])]
    for evaluation in evaluations:
        assert rows[evaluation.name] == cells(evaluation.table, weight, ".4f")
    assert page.table(f"last_items minus each other model, per {weight}") == {
        HOSTILE_MODEL: cells(paired(evaluations), weight, "+.4f")
    }


def bold(page: Page, caption: str) -> dict[str, list[str]]:
    return {
        name: [metric for metric, cell in zip(METRICS, row, strict=True) if cell.get("class") == "strong"]
        for name, row in page.rows(caption).items()
    }


@pytest.mark.parametrize("weight", ["event", "user"])
def test_bold_is_what_the_captions_say(page: Page, evaluations: list[Evaluation], weight: str) -> None:
    ours, theirs = (getattr(evaluation.table, weight) for evaluation in evaluations)
    better = [m for m in METRICS if ours[m] != theirs[m] and (ours[m] > theirs[m]) != (m == "mean_rank_percentile")]
    worse = [m for m in METRICS if ours[m] != theirs[m] and m not in better]
    even = [m for m in METRICS if ours[m] == theirs[m]]
    found = bold(page, f"Metrics per {weight}")
    assert sorted(found["last_items"]) == sorted(better + even)
    assert sorted(found[HOSTILE_MODEL]) == sorted(worse + even)
    caption = f"last_items minus each other model, per {weight}"
    intervals = getattr(paired(evaluations), f"{weight}_interval")
    clear = [metric for metric, (low, high) in intervals.items() if low > 0 or high < 0]
    assert {"recall@5", "mean_rank_percentile"} <= set(clear) < set(METRICS)
    assert bold(page, caption)[HOSTILE_MODEL] == clear


def test_the_known_optimum_is_a_row_and_a_line(page: Page) -> None:
    best = dict(zip(METRICS, page.table("Metrics per event")["known optimum"], strict=True))
    assert best == {metric: (format(OPTIMUM[metric], ".4f") if metric in OPTIMUM else "–", "") for metric in METRICS}
    shown = [alt for alt, svg in page.pictures() if "known optimum" in text_of(svg)]
    assert [alt.split()[0] for alt in shown] == ["recall@10", "mrr"]


def test_segments_have_their_tables_and_pictures(page: Page, evaluations: list[Evaluation]) -> None:
    pictures = dict(page.pictures())
    for way, tables in evaluations[0].segments.items():
        for metric in ("recall@10", "mrr"):
            rows = page.table(f"{metric} by {way}")
            for evaluation in evaluations:
                expected = [f"{table.event[metric]:.4f}" for table in evaluation.segments[way].values()]
                assert [text for text, _ in rows[evaluation.name]] == expected
            (picture,) = (svg for alt, svg in pictures.items() if alt.startswith(f"{metric} by {way}, "))
            assert all(name in text_of(picture) for name in tables)
        assert all(f"{table.targets} events" in text_of(page.section(f"By {way}")) for table in tables.values())


def test_pictures_say_what_they_show(page: Page) -> None:
    pictures = page.pictures()
    assert len(pictures) == 2 + 3 + 2 * 6
    for alt, svg in pictures:
        shown = text_of(svg)
        assert alt.split(";")[0] in shown
        assert alt.split()[0] in [text_of(text) for text in svg.iter("{http://www.w3.org/2000/svg}text")]
        assert "_$x^$ <img src=x onerror" in shown
    assert len({alt for alt, _ in pictures}) == len(pictures)


def test_a_value_that_rounding_puts_outside_its_interval_can_be_shown() -> None:
    value = 0.1 + 0.2
    estimate = (value, np.nextafter(value, 1), value)
    shown = (
        pictures.comparison("mrr", {"a": (estimate, estimate)}, None),
        pictures.segments("mrr", "item", ["x"], {"a": [estimate]}),
    )
    assert all(picture.startswith("data:image/svg+xml") for picture in shown)


def test_learning_curves_hold_the_history(page: Page) -> None:
    assert page.table(f"{HOSTILE_MODEL} after each epoch") == {
        "1": [("7.5000", ""), ("0.1250", ""), ("0.0625", "")],
        "2": [("–", ""), ("0.2500", ""), ("0.1251", "")],
    }


def test_what_there_is_nothing_to_say_of_is_left_out(bare: Page) -> None:
    for absent in ("Learning curves", "known optimum", "against each other model", "gru"):
        assert absent not in text_of(bare.root)
    assert list(bare.table("Metrics per event")) == ["last_items"]
    assert text_of(bare.section("The last sessions of user a").find("h3")).startswith("Session 1 of 1")


def guesses(page: Page) -> list[tuple[str, str, list[str], list[str]]]:
    """(model, rank, items ranked first, those marked as what came), one after another."""
    out = []
    for element in page.root.iter("div"):
        if element.get("class") == "guess":
            model, rank, top = element.findall("span")
            shown = [(text_of(item), item.get("class") == "hit") for item in top.findall("span")]
            marked = [text.removeprefix("✓ ").split()[-1] for text, hit in shown if hit]
            out.append((text_of(model), text_of(rank), [text.split()[-1] for text, _ in shown], marked))
    return out


def test_the_timeline_shows_what_each_model_ranked_before_each_event(page: Page, evaluations: list[Evaluation]) -> None:
    section = page.section("The last sessions of user v <i>")
    heads = [text_of(head) for head in section.iter("h3")]
    assert [head.split(" 20")[0] for head in heads] == [f"Session {k} of 4" for k in (1, 2, 3, 4)]
    assert all(head.endswith(", 1 d 1 h after the session before") for head in heads[1:])
    assert "10 earlier events of the session are not shown" in text_of(section)
    trained = [text_of(event) for event in section.iter("li") if text_of(event).endswith("train part")]
    assert len(trained) == 4

    # Of the user's 48 targets, the ten first ones of the session of 40 are left out.
    expected = []
    lines = [e.predictions().filter(pl.col("user_id") == "v <i>").rows(named=True) for e in evaluations]
    for line in zip(*([*theirs[:8], *theirs[18:]] for theirs in lines), strict=True):
        for evaluation, one in zip(evaluations, line, strict=True):
            rank = "not in the catalog" if one["rank"] is None else f"rank {one['rank']:g}"
            top = one["topk"][:5]
            expected.append((evaluation.name, rank, top, [one["item_id"]] if one["item_id"] in top else []))
    assert guesses(page) == expected
    assert {len(marked) for _, _, _, marked in expected} == {0, 1}
    assert "not in the catalog" in {rank for _, rank, _, _ in expected}


def test_any_user_with_targets_can_be_shown(evaluations: list[Evaluation]) -> None:
    assert len(evaluations[0].cache) == 2
    predictions = evaluations[0].predictions()
    for user, name in enumerate(["a", *(f"u{i}" for i in range(6)), "v <i>"]):
        shown = timeline(evaluations[:1], user, sessions=1)
        tops = [[item.id for item in event.guesses[0].top] for event in shown.sessions[0].events if event.guesses]
        theirs = predictions.filter(pl.col("user_id") == name)["topk"].to_list()
        assert (shown.user, len(shown.sessions)) == (name, 1)
        assert tops
        assert tops == [top[:5] for top in theirs[-len(tops) :]]
    for nobody in (8, 9, -1):
        with pytest.raises(InputError, match=rf"place {nobody} of .* has no event in the test part"):
            timeline(evaluations, nobody, sessions=1)


def test_the_same_evaluations_give_the_same_bytes(written: list[Path]) -> None:
    assert written[0].read_bytes() == written[1].read_bytes()
    assert sorted(written[0].parent.iterdir()) == written


def test_what_can_not_be_compared(cache: Cache, evaluations: list[Evaluation], tmp_path: Path) -> None:
    first = evaluations[0]
    other = cache_of(tmp_path / "other", people(seed=1), GAP, catalog_size=ITEMS)
    for bad, said in (
        ([], "no evaluation"),
        ([first, found(other, "popularity")], "'last_items' and 'popularity' were evaluated on different targets"),
        ([first, found(cache, "popularity", "last_items")], "same name"),
        ([first, found(cache, "popularity", top=4)], "keeps 4 ranked items"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            write_report(tmp_path / "report.html", title="", evaluations=bad, histories={})
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()
