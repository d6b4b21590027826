"""A run of RULER: one reading gives the answers of separate runs, a kill repeats nothing, and what the scores say."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.records import read_records
from handscroll.cli.main import app
from handscroll.evaluate.ruler import answering, run
from handscroll.evaluate.ruler.bench import bench
from handscroll.evaluate.ruler.exams import Setting, exams
from handscroll.evaluate.ruler.frame import plain
from handscroll.evaluate.ruler.summary import summary
from tests.evaluate.material import write_book

LENGTHS = (1200, 1600)
SOME = ("niah_single_1", "niah_single_2", "niah_multivalue", "vt", "qa_1", "unlike")


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


@pytest.fixture(scope="module")
def made(lm, tmp_path_factory):
    return bench(lm.tokenizer, text=[write_book(tmp_path_factory.mktemp("book") / "book.txt")])


def test_one_reading_gives_the_answers_of_separate_runs(lm, made):
    setting = Setting(lengths=(1800,), tasks=SOME, samples=1)
    ends = frozenset(lm.model.config.eos)
    asked = 0
    for exam in exams(made, setting, plain(lm.tokenizer)):
        for answer in answering.answers(lm, exam, ends):
            one = answer.question
            ids = exam.head.ids + one.tail.ids
            alone = lm.generate(ids, max_tokens=one.room, plain=True, beyond=True)
            assert alone == answer.text or (answer.finish == "settled" and alone.startswith(answer.text))
            assert answer.certificate.seen == answer.certificate.offered == len(ids)
            asked += 1
    assert asked == len(SOME)


def test_a_killed_run_goes_on_and_repeats_nothing(lm, made, tmp_path, monkeypatch):
    setting = Setting(lengths=(1200,), tasks=("niah_single_1", "niah_single_2", "vt", "unlike"), samples=3)
    whole = run.measure(lm, made, setting, tmp_path / "whole")
    asked = Counter()
    ask = answering.answers

    def counted(lm, exam, ends):
        asked[exam.name] += 1
        yield from ask(lm, exam, ends)

    monkeypatch.setattr(run, "answers", counted)

    class Killed(Exception):
        pass

    def kill(done, _):
        if done in (3, 7):
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            run.measure(lm, made, setting, tmp_path / "run", progress=kill)
        with (tmp_path / "run" / run.SAMPLES).open("a", encoding="utf-8") as file:
            file.write('{"task": "vt", "len')  # a line that the kill cut
    record = run.measure(lm, made, setting, tmp_path / "run")
    assert record == whole and sum(asked.values()) <= len(asked) + 2  # the two that were killed
    rows = sorted(map(json.dumps, read_records(tmp_path / "run" / run.SAMPLES)))
    assert rows == sorted(map(json.dumps, read_records(tmp_path / "whole" / run.SAMPLES)))
    before = sum(asked.values())
    assert run.measure(lm, made, setting, tmp_path / "run") == whole and sum(asked.values()) == before
    with pytest.raises(ConfigError, match="seed 0, not 1"):
        run.measure(lm, made, setting.model_copy(update={"seed": 1}), tmp_path / "run")


def test_more_lengths_and_samples_go_on_and_change_nothing(lm, made, tmp_path):
    tasks = ("niah_single_1", "vt")
    less, more = (
        Setting(lengths=lengths, tasks=tasks, samples=samples) for lengths, samples in (((1200,), 1), ((1000, 1200), 2))
    )
    first = run.measure(lm, made, less, tmp_path / "run")
    done = []
    grown = run.measure(lm, made, more, tmp_path / "run", progress=lambda *at: done.append(at))
    assert done[-1] == (8, 8) and len(done) == 6
    assert grown == run.measure(lm, made, more)
    assert run.measure(lm, made, less, tmp_path / "run") == first
    setting = json.loads((tmp_path / "run" / run.ABOUT).read_text(encoding="utf-8"))["setting"]
    assert not {"lengths", "samples"} & set(setting) and setting["tasks"] == list(tasks)


def test_damaged_files_of_a_run_are_named(lm, made, tmp_path):
    setting = Setting(lengths=(1000,), tasks=("niah_single_1",), samples=1)
    run.measure(lm, made, setting, tmp_path)
    samples, about = tmp_path / run.SAMPLES, tmp_path / run.ABOUT
    for line in ({}, {"task": "vt", "length": 1000, "number": 0}):
        kept = samples.read_text(encoding="utf-8")
        samples.write_text(kept + json.dumps(line) + "\n", encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"samples\.jsonl, line 2"):
            run.measure(lm, made, setting, tmp_path)
        samples.write_text(kept, encoding="utf-8")
    whole = about.read_text(encoding="utf-8")
    for damaged in (whole[:40], "[1]", "{}"):
        about.write_text(damaged, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"ruler\.json"):
            run.measure(lm, made, setting, tmp_path)


def test_the_plan_counts_what_is_read(lm, made):
    setting = Setting(lengths=LENGTHS, tasks=("niah_single_1", "vt", "cwe"), samples=2)
    costs = run.plan(lm, made, setting)
    for cost, length in zip(costs, LENGTHS, strict=True):
        read = [exam.tokens for exam in exams(made, setting, plain(lm.tokenizer)) if exam.length == length]
        assert cost.read == pytest.approx(sum(read), rel=0.05) and cost.seconds > 0
        assert cost.questions + 2 * len(cost.unfit) == 6


def test_the_plan_counts_only_what_is_left(lm, made, tmp_path):
    setting = Setting(lengths=(1200,), tasks=("niah_single_1", "vt"), samples=2)
    run.measure(lm, made, setting, tmp_path / "run")
    more = Setting(lengths=LENGTHS, tasks=("niah_single_1", "vt"), samples=3)
    alone, left = run.plan(lm, made, more), run.plan(lm, made, more, out=tmp_path / "run")
    shares = [one.read / whole.read for one, whole in zip(left, alone, strict=True)]
    assert shares == [1 / 3, 1] and left[0].questions == 2 and left[1] == alone[1]
    assert run.plan(lm, made, more, out=tmp_path / "new") == alone and not (tmp_path / "new").exists()
    apart = Setting(lengths=(1200,), tasks=("niah_single_1", "vt"), samples=1, layout="published")
    run.measure(lm, made, apart, tmp_path / "apart")
    file = tmp_path / "apart" / run.SAMPLES
    kept = [line for line in file.read_text(encoding="utf-8").splitlines() if json.loads(line)["task"] != "vt"]
    file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    (rest,) = run.plan(lm, made, apart, out=tmp_path / "apart")
    assert (rest.texts, rest.questions) == (1, 1)  # a sample that was killed in the middle
    with pytest.raises(ConfigError, match="other settings"):
        run.plan(lm, made, Setting(lengths=(1200,), tasks=("vt",), samples=1, seed=9), out=tmp_path / "run")


def rows_of(setting, score):
    return [
        {"task": task, "length": length, "number": n, "score": score(task, length), "finish": "eos"}
        for length in setting.lengths
        for task in setting.tasks
        for n in range(setting.samples)
    ]


def test_the_summary_averages_tasks_and_finds_the_effective_length(lm):
    setting = Setting(lengths=(512, 1024, 2048), tasks=("niah_single_1", "vt"), samples=100)
    about = {"language": "en"}
    rows = rows_of(setting, lambda task, length: float(length < 2048))
    found = summary(lm, setting, about, rows)
    assert found["average"] == [1.0, 1.0, 0.0] and found["scores"] == [[1.0, 1.0, 0.0]] * 2
    first, second = found["effective"]
    assert (first["length"], first["low"], first["high"]) == (1024, 1024, 1024)
    assert second["threshold"] == pytest.approx(0.85) and second["length"] == 1024
    half = summary(lm, setting, about, rows_of(setting, lambda task, length: 0.5))
    assert half["effective"][0]["length"] is None and half["effective"][1]["length"] == 2048
    assert half["low"][0] is half["high"][0] is None  # equal samples, which resampling says nothing about
    missing = rows_of(setting, lambda task, length: 1.0)
    missing[0] = {"task": "niah_single_1", "length": 512, "number": 0, "missing": 30}
    found = summary(lm, setting, about, missing)
    assert found["scores"][0] == [None, 1.0, 1.0] and found["tasks_counted"] == [1, 2, 2]
    assert found["unfit"] == [{"task": "niah_single_1", "length": 512, "samples": 1, "needs": 542}]


def test_parts_of_a_score_count_for_the_effective_length(lm):
    """The shortest length reaches 85 % of its own score, also where one sample was right in part."""
    setting = Setting(lengths=(512, 1024), tasks=("vt",), samples=1)
    found = summary(lm, setting, {"language": "en"}, rows_of(setting, lambda task, length: 0.4))
    assert found["effective"][1]["threshold"] == pytest.approx(0.34) and found["effective"][1]["length"] == 1024


def test_a_single_length_is_not_compared_with_itself(lm):
    setting = Setting(lengths=(512,), tasks=("vt",), samples=1)
    found = summary(lm, setting, {"language": "en"}, rows_of(setting, lambda task, length: 0.4))
    assert [one["rule"] for one in found["effective"]] == ["published"]


def test_the_command(tiny_folder, tmp_path):
    def call(*arguments):
        made = CliRunner().invoke(app, ["evaluate", "ruler", str(tiny_folder), *map(str, arguments)])
        assert made.exit_code == 0, made.output
        return made.output

    some = ("--lengths", "1400", "--tasks", "niah_single_1,vt", "--samples", "2")
    assert "tokens read" in call(*some, "--plan")
    text = call(*some, "--out", tmp_path / "run", "--json", tmp_path / "record.jsonl")
    assert "in all about 0 s" in call(*some, "--out", tmp_path / "run", "--plan")
    assert "niah_single_1" in text and "effective length" in text and "average" in text
    record = json.loads((tmp_path / "record.jsonl").read_text(encoding="utf-8"))
    proof = record["certificate"]
    assert proof["seen"] == proof["offered"] == record["tokens"] > 0 and len(proof["sha256"]) == 64
    assert record["kind"] == "ruler" and record["template"] == "base" and len(record["outcomes"]) == 2
    wrong = CliRunner().invoke(app, ["evaluate", "ruler", str(tiny_folder), "--lengths", "1k"])
    assert isinstance(wrong.exception, ConfigError) and "commas" in str(wrong.exception)
