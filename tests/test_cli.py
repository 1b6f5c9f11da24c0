"""The command line: each verb end to end, and its help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from commands import Answer, Ask, command, said
from hiertcn.cache import Cache
from hiertcn.evaluation import evaluate
from hiertcn.metrics import METRICS

VERBS = ["prepare", "inspect", "train", "evaluate", "tune", "compare", "recommend", "simulate", "demo"]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    return Ask(monkeypatch, capfd)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a simulated log, its cache and a run, made by real commands."""
    place = tmp_path_factory.mktemp("cli")
    for arguments in (
        ("simulate", "--out", place / "log.parquet", "--users", 40, "--sessions", 5, "--seed", 3),
        ("prepare", place / "log.parquet", "--out", place / "cache"),
        ("train", place / "cache", "--out", place / "run", "--epochs", 2, "--dim", 8),
    ):
        answer = command(*arguments)
        assert answer.code == 0, answer.err
    return place


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_is_right(ask: Ask, verb: str) -> None:
    answer = ask(verb, "--help")
    assert (answer.code, answer.err) == (0, "")
    text = re.sub(r"[\s│]+", " ", answer.out)
    example = re.search(r"Example: hiertcn (\S+) (.*)", text)
    assert example
    assert example[1] == verb
    for flag in re.findall(r"(?<=\s)--?[a-z][\w-]*", example[2]):
        # The demo passes the options of prepare on.
        assert flag in text or (verb == "demo" and flag in ask("prepare", "--help").out)


def test_help_of_all_names_every_verb(ask: Ask) -> None:
    assert all(re.search(rf"\b{verb} ", ask("--help").out) for verb in VERBS)
    assert ask("-h") == ask("--help")
    assert re.fullmatch(r"hiertcn \d+\.\d+\.\d+\n", ask("--version").out)


def test_simulate(ask: Ask, tmp_path: Path, place: Path) -> None:
    flags = ("--users", 40, "--sessions", 5, "--seed", 3)
    assert ask("simulate", "--out", tmp_path / "new" / "same.parquet", *flags).code == 0
    log = pl.read_parquet(place / "log.parquet")
    assert log.equals(pl.read_parquet(tmp_path / "new" / "same.parquet"))
    assert log["user_id"].n_unique() == 40
    # A log of somebody's is not lost.
    (tmp_path / "mine.parquet").write_text("precious")
    refused = ask("simulate", "--out", tmp_path / "mine.parquet", *flags)
    assert (refused.code, (tmp_path / "mine.parquet").read_text()) == (2, "precious")
    assert "pass --overwrite" in refused.err
    assert ask("simulate", "--out", tmp_path / "mine.parquet", "--overwrite", *flags).code == 0
    answer = ask("simulate", "--out", tmp_path / "control.parquet", "--shuffled", *flags)
    assert f"{log.height:,} events" in answer.err
    control = pl.read_parquet(tmp_path / "control.parquet")
    assert control["item_id"].sort().equals(log["item_id"].sort())
    assert not control.equals(log)


def test_prepare_says_what_it_did(ask: Ask, tmp_path: Path, place: Path) -> None:
    lines = ["who;what;when;kind", *(f"u{n % 5};00{n % 7};{1_700_000_000 + n * 60};{'xy'[n % 2]}" for n in range(90))]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    flags = ["--user-column", "who", "--item-column", "what", "--time-column", "when", "--type-column", "kind"]
    flags += ["--drop-types", "y", "--min-item-events", "3", "--session-gap", "7200.5", "--separator", ";"]
    flags += ["--split", "time", "--fractions", "0.6,0.2,0.2"]
    answer = ask("prepare", tmp_path / "log.csv", "--out", tmp_path / "cache", *flags)
    assert (answer.code, answer.out) == (0, "")
    assert "90 rows" in answer.err
    assert "45 events" in answer.err
    manifest = Cache(tmp_path / "cache").manifest
    assert (manifest.session_gap, manifest.split["by"], manifest.events) == (7200.5, "time", 45)
    assert manifest.split["fractions"] == [0.6, 0.2, 0.2]
    assert set(Cache(tmp_path / "cache").catalog.items["item_id"]) == {f"00{n}" for n in range(7)}
    again = ask("prepare", tmp_path / "log.csv", "--out", tmp_path / "cache", *flags)
    said(again, 2, "is a cache already", "--overwrite")
    cuts = ["--cuts", "1700002000,2023-11-14T22:55:00Z", "--overwrite"]
    assert ask("prepare", tmp_path / "log.csv", "--out", tmp_path / "cache", *flags[:-2], *cuts).code == 0
    stated = Cache(tmp_path / "cache").manifest.split["cuts"]
    assert [cut[:16] for cut in stated] == ["2023-11-14T22:46", "2023-11-14T22:55"]


def test_prepare_by_preset(ask: Ask, tmp_path: Path) -> None:
    rows = [f"{n % 4},i{n % 5},c,{'pv' if n % 3 else 'buy'},{1_511_600_000 + n * 900}" for n in range(60)]
    (tmp_path / "UserBehavior.csv").write_text("\n".join(rows))
    answer = ask("prepare", tmp_path / "UserBehavior.csv", "--out", tmp_path / "cache", "--preset", "taobao")
    assert answer.code == 0
    assert "Taobao" in answer.err
    assert Cache(tmp_path / "cache").manifest.users == 4


def test_inspect(ask: Ask, place: Path) -> None:
    answer = ask("inspect", place / "cache")
    assert answer.code == 0
    assert "40 users" in answer.out
    stated = json.loads(ask("inspect", place / "cache", "--json", "--verify").out)
    log = pl.read_parquet(place / "log.parquet")
    assert stated["users"] == log["user_id"].n_unique() == 40
    assert stated["events"] == log.height == sum(part["events"] for part in stated["parts"].values())
    wait = log.select(pl.col("time").diff().over("user_id")).to_series()
    begins = wait.is_null() | (wait >= 1800)
    sessions = log.filter(begins).group_by("user_id").len()["len"]
    assert stated["sessions"] == begins.sum()
    assert stated["sessions_per_user"]["max"] == sessions.max()
    assert stated["sessions_per_user"]["median"] == sessions.median()
    assert stated["events_per_session"]["mean"] == round(log.height / stated["sessions"], 2)
    lengths = log.select(begins.cum_sum().alias("session")).group_by("session").len()["len"]
    assert stated["sessions_of_one_event"] == (lengths == 1).sum()
    assert stated["events_per_session"]["max"] == lengths.max()
    assert stated["session_gap"] == 1800
    assert stated["split"]["by"] == "last"
    assert stated["vectors"] is None
    assert stated["bytes"] == sum(file.stat().st_size for file in (place / "cache").iterdir())
    assert stated["from"] == str(pl.from_epoch(log["time"]).min()).replace(" ", "T")


def test_train_goes_on_and_takes_settings(ask: Ask, tmp_path: Path, place: Path) -> None:
    (tmp_path / "own.toml").write_text('[model]\nname = "gru"\ndim = 8\nunits = 8\n[train]\nepochs = 1\nrows = 8\n')
    train = ("train", place / "cache", "--out", tmp_path / "run", "--config", tmp_path / "own.toml")
    answer = ask(*train, "--seed", 5, "--learning-rate", 0.01, "--loss", "sampled_softmax", "--device", "cpu")
    assert answer.code == 0
    assert "best after epoch 1" in answer.err
    assert "parameters" in answer.err
    stated = json.loads((tmp_path / "run" / "manifest.json").read_text())
    expected = {"epochs": 1, "rows": 8, "seed": 5, "learning_rate": 0.01, "loss": "sampled_softmax", "device": "cpu"}
    assert stated["train"] | expected == stated["train"]
    assert stated["model"] | {"name": "gru", "dim": 8, "units": 8} == stated["model"]
    said(ask(*train), 2, "--resume")
    flags = ("--seed", 5, "--learning-rate", 0.01, "--loss", "sampled_softmax", "--device", "cpu", "--resume")
    assert "epoch 2/2" in ask(*train, *flags, "--epochs", 2).err


def test_evaluate_writes_metrics_and_predictions(ask: Ask, tmp_path: Path, place: Path) -> None:
    files = ("--json", tmp_path / "new" / "m.json", "--predictions", tmp_path / "p.parquet")
    answer = ask("evaluate", place / "run", *files)
    assert answer.code == 0
    assert all(name in answer.out for name in (*METRICS, "event of the session: first", "per user"))
    expected = evaluate(place / "run", place / "cache")
    stated = json.loads((tmp_path / "new" / "m.json").read_text())
    assert stated == json.loads(json.dumps(expected.as_json()))
    written = pl.read_parquet(tmp_path / "p.parquet")
    assert written.columns == ["user_id", "time", "item_id", "rank", "topk"]
    assert written["rank"].to_list() == expected.predictions()["rank"].to_list()
    assert written["topk"].list.len().unique().to_list() == [20]
    valid = ask("evaluate", place / "run", "--split", "valid", "--model", "popularity", "--cache", place / "cache")
    assert valid.out.startswith("popularity on valid: ")


def test_recommend(ask: Ask, tmp_path: Path, place: Path) -> None:
    shown = ask("recommend", place / "run", "--user", "u00007", "-k", 5)
    assert (shown.code, shown.err) == (0, "")
    found = json.loads(ask("recommend", place / "run", "--user", "u00007", "-k", 5, "--json").out)
    assert [line.split("\t")[:2] for line in shown.out.splitlines()] == [
        [entry["item"], f"{entry['score']:.4f}"] for entry in found
    ]
    assert [entry["source"] for entry in found] == ["model"] * 5
    # The same events out of a file are the same person.
    log = pl.read_parquet(place / "log.parquet").filter(pl.col("user_id") == "u00007")
    log.sample(fraction=1, shuffle=True, seed=0).write_csv(tmp_path / "one.csv")
    again = json.loads(ask("recommend", place / "run", "--history", tmp_path / "one.csv", "-k", 5, "--json").out)
    assert [entry["item"] for entry in again] == [entry["item"] for entry in found]
    unseen = json.loads(ask("recommend", place / "run", "--user", "u00007", "-k", 500, "--exclude-seen", "--json").out)
    catalog = Cache(place / "cache").catalog.ids
    assert {entry["item"] for entry in unseen} == set(catalog) - set(log["item_id"])
    # Of a person of unknown items only it is known what everybody picks just then.
    log.with_columns(pl.lit("else").alias("item_id")).write_csv(tmp_path / "cold.csv")
    cold = ask("recommend", place / "run", "--history", tmp_path / "cold.csv", "-k", 2, "--json")
    assert [entry["source"] for entry in json.loads(cold.out)] == ["model"] * 2
    # Somebody without any event gets the popular ones, and is told so.
    nobody = ask("recommend", place / "run", "--user", "nobody", "-k", 2)
    assert nobody.code == 0
    assert [line.split("\t")[0] for line in nobody.out.splitlines()] == catalog.head(2).to_list()
    assert "no event in the prepared log" in nobody.err
    assert "most popular" in nobody.err
    # So does anyone, of a model that hears nobody.
    ask("train", place / "cache", "--out", tmp_path / "plain", "--preset", "small", "--epochs", 1, "--dim", 8)
    plain = ask("recommend", tmp_path / "plain", "--history", tmp_path / "cold.csv", "-k", 2)
    assert plain.out == nobody.out
    assert "most popular" in plain.err
    # A history may have columns of other names.
    log.rename({"item_id": "what"}).write_csv(tmp_path / "named.csv")
    named = ask(
        "recommend", place / "run", "--history", tmp_path / "named.csv", "--item-column", "what", "-k", 5, "--json"
    )
    assert json.loads(named.out) == again
    # It may be of nobody, without a header, and state the times of a zone.
    local = pl.from_epoch(log["time"], "s").dt.offset_by("2h").dt.to_string("%Y-%m-%d %H:%M:%S")
    pl.DataFrame([local, log["item_id"]]).write_csv(tmp_path / "bare.tsv", separator="\t", include_header=False)
    options = ["--no-header", "--item-column", "1", "--time-column", "0", "--tz", "Etc/GMT-2"]
    bare = ask("recommend", place / "run", "--history", tmp_path / "bare.tsv", *options, "-k", 5, "--json")
    assert json.loads(bare.out) == again
    # Where the log names its sessions, they may be given.
    visits = log.with_columns(visit=pl.Series(range(log.height)))
    visits.write_csv(tmp_path / "visits.csv")
    cut = ask(
        "recommend", place / "run", "--history", tmp_path / "visits.csv", "--session-column", "visit", "-k", 5, "--json"
    )
    assert [entry["score"] for entry in json.loads(cut.out)] != [entry["score"] for entry in again]


def test_a_log_prepared_anew_is_not_the_one_trained_on(ask: Ask, tmp_path: Path, place: Path) -> None:
    """Its test part may have been trained on."""
    log, cache, run = place / "log.parquet", tmp_path / "cache", tmp_path / "run"
    assert ask("prepare", log, "--out", cache).code == 0
    assert ask("train", cache, "--out", run, "--epochs", 1, "--dim", 4, "--preset", "moving_average").code == 0
    assert ask("evaluate", run).code == 0
    assert ask("prepare", log, "--out", cache, "--overwrite").code == 0
    assert ask("evaluate", run).code == 0
    assert ask("prepare", log, "--out", cache, "--overwrite", "--split", "users").code == 0
    said(ask("evaluate", run), 2, "prepared anew", "--cache")
    assert ask("evaluate", run, "--cache", cache).code == 0


def test_the_data_verbs_run_where_there_is_no_torch(tmp_path: Path, place: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from hiertcn.cli import main; main()"
    for arguments in (
        ["simulate", "--out", str(tmp_path / "log.parquet"), "--users", "9"],
        ["prepare", str(tmp_path / "log.parquet"), "--out", str(tmp_path / "cache")],
        ["inspect", str(tmp_path / "cache"), "--verify"],
        ["train", "--help"],
    ):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=120)
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(place / "cache"), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said(Answer(done.returncode, done.stdout, done.stderr), 2, "torch", "hiertcn[train]")
    code = "import sys; sys.modules['optuna'] = None; from hiertcn.cli import main; main()"
    for verb in (["tune"], ["compare", "--models", "popularity"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *verb, str(place / "cache"), "--trials", "1", "--out", str(tmp_path / "out")],
            capture_output=True,
            text=True,
            timeout=120,
        )
        said(Answer(done.returncode, done.stdout, done.stderr), 2, "optuna", "hiertcn[tune]")


def test_verbs_run_as_commands(place: Path, tmp_path: Path) -> None:
    """Those that `place` does not need."""
    answer = command("evaluate", place / "run", "--json", tmp_path / "m.json")
    assert (answer.code, answer.err) == (0, "")
    assert len(answer.out.splitlines()) > 20
    answer = command("recommend", place / "run", "--user", "u00001")
    assert (answer.code, answer.err, len(answer.out.splitlines())) == (0, "", 10)
    said(command("recommend", tmp_path / "nothing", "--user", "u00001"), 3, "is not a model directory")


def test_a_closed_pipe_is_no_error(place: Path) -> None:
    asked = [sys.executable, "-c", "from hiertcn.cli import main; main()", "inspect", str(place / "cache"), "--json"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def check_report(folder: Path, answer: Answer) -> str:
    assert answer.code == 0, answer.err
    assert "Traceback" not in answer.err
    report = folder / "report.html"
    assert f"6. The report: {report}" in answer.err.replace("\n", "")
    html = report.read_text()
    assert not re.search(r'(src|href)="(https?:|//)', html)
    assert all(name in html for name in ("hiertcn", "hrnn", "gru", "moving_average", "popularity", "last_items"))
    return html


def test_demo_on_a_log_of_ones_own(ask: Ask, place: Path, tmp_path: Path) -> None:
    """Options of `prepare` are passed on."""
    pl.read_parquet(place / "log.parquet").rename({"item_id": "what"}).write_parquet(tmp_path / "own.parquet")
    flags = ("--log", tmp_path / "own.parquet", "--item-column", "what", "--session-gap", 900)
    answer = ask("demo", "--out", tmp_path / "demo", "--epochs", 1, *flags)
    assert "est possible" not in check_report(tmp_path / "demo", answer)
    assert Cache(tmp_path / "demo" / "cache").manifest.session_gap == 900


@pytest.mark.slow
def test_demo_on_the_simulated_log(tmp_path: Path) -> None:
    answer = command("demo", "--out", tmp_path / "demo", "--epochs", 1)
    assert "est possible" in check_report(tmp_path / "demo", answer)
