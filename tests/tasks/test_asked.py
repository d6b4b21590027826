"""Tasks that are learned by a head or in pairs, asked of a model as it is: numbers, places, preferences, refusals."""

import math

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.cli.main import app
from handscroll.data.table.table import Table
from handscroll.tasks.asked_number import number_in, question
from handscroll.tasks.classify import Classify
from handscroll.tasks.complete import Complete
from handscroll.tasks.extract import Extract
from handscroll.tasks.predict import Asked, Predicted, predict
from handscroll.tasks.prefer import Prefer
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.recipe import TaskData
from handscroll.tasks.regress import Regress
from handscroll.tasks.task import Example, Part, task_from
from handscroll.tasks.writer import Writer, Written
from tests.tasks.chats import lines, saved, talker
from tests.tasks.material import rows

RATED = [{"text": "the quick fox", "number": 2}, {"text": "lazy dog", "number": 4.5}]
SAID = "the quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def lm():
    return talker()


def read(task, given):
    return task.read(Table.of(given), {}).examples


def saying(monkeypatch, *answers):
    """A model that gives these answers, one after the other; what it was asked is kept."""
    seen, left = [], list(answers)

    def write(self, messages, *rest):
        seen.append("\n".join(one["content"] for one in messages))
        return Written(left.pop(0), "eos", 1, 0, 1, -1.0)

    monkeypatch.setattr(Writer, "write", write)
    return seen


@pytest.mark.parametrize(
    "answer, number",
    [
        ("4", 4),
        ("about 4.5 of 5", 4.5),
        ("-3", -3),
        ("评分：－２分", -2),
        ("4-5", 4),
        ("1,234.5 or so", 1234.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("one", None),
        ("1e999", None),
    ],
)
def test_the_first_number_of_an_answer_is_read(answer, number):
    assert number_in(answer) == number


def test_a_number_is_asked_for_in_the_range_of_the_examples(lm, monkeypatch):
    seen = saying(monkeypatch, "3.5", "none")
    task, (first, second) = Regress(), read(Regress(), RATED)
    asked = [Example("row 1", {"text": "a fox", "pair": "a dog"}), Example("row 2", {"text": "brown"})]
    found = task.prompted(lm, asked, Prompting(1, [first, second]))
    told = "Which number fits the text? The numbers lie between 2 and 4.5.\n\nText: {}\n\nAnswer with one number only."
    assert seen[0] == "\n".join([told.format("the quick fox"), "2", told.format("a fox\na dog")])
    assert found[0].output == 3.5 and found[0].more["said"] == "3.5" and "note" not in found[0].more
    assert found[1].output == 3.25 and found[1].more["said"] == "none" and "mean" in found[1].more["note"]
    assert Predicted(Part((), None, ""), found, task).notes == {found[1].more["note"]: 1}
    assert question("好", "", "zh", [1, 5]).startswith("哪个数字适合下面的文字？数字在1和5之间。")
    assert question("ok", "Stars for {text}?{range}", "en", [3, 3]) == "Stars for ok?"


def test_nothing_of_other_users_numbers_enters_a_prompt(lm, monkeypatch):
    seen = saying(monkeypatch, "1")
    pool = read(Regress(), [{**one, "user": user} for one, user in zip(RATED, ("ann", "bob"), strict=True)])
    Regress().prompted(lm, [Example("row 1", {"text": "a", "user": "ann"})], Prompting(1, pool, "user"))
    assert "quick" in seen[0] and "4.5" not in seen[0]


def test_examples_that_teach_nothing_are_no_shots(lm, monkeypatch, tmp_path):
    seen = saying(monkeypatch, "fox")
    pool = [
        {"context": SAID, "question": "Who jumps?", "answers": []},
        {"context": "a b", "question": "?", "answers": "b"},
    ]
    data = lines(tmp_path / "rows.jsonl", [{"context": SAID, "question": "Who?", "answers": "fox"}])
    asked = Asked(1, (str(lines(tmp_path / "pool.jsonl", pool)),))
    with pytest.raises(DataError, match="no answer"):
        predict(lm, Extract(), TaskData(train=(str(data),)), asked=asked)
    found = predict(lm, Extract(), TaskData(train=(str(data),), skip_unfit=True), asked=asked)
    assert found.predictions[0].output == "fox" and "a b" in seen[-1] and "Who jumps?" not in seen[-1]


def test_without_examples_an_answer_without_a_number_has_none_and_there_is_no_score(lm, monkeypatch):
    saying(monkeypatch, "sorry", "3")
    examples = [Example(f"row {n}", {"text": "a", "number": 2.0}) for n in (1, 2)]
    found = Regress().prompted(lm, examples, Prompting())
    assert [one.output for one in found] == [None, 3.0] and "no number" in found[0].more["note"]
    with pytest.raises(DataError, match=r"row 1: the model said no number \(1 rows have none\).*--shots N"):
        Regress().score(examples, found)
    with pytest.raises(DataError, match="no number"):
        Regress().prompted(lm, [], Prompting(1, [Example("row 1", {"text": "a"})]))
    with pytest.raises(ConfigError, match=r"does not name \{text\}"):
        task_from({"name": "regress", "prompt": "How good?"})


def test_an_answer_that_is_said_is_looked_for_in_the_document(lm, monkeypatch):
    seen = saying(monkeypatch, "Brown  fox.", "a cat")
    task = Extract()
    [shot] = read(task, [{"context": "lazy dog", "question": "Who?", "answers": "dog"}])
    examples = read(task, [{"context": SAID, "question": f"Who {n}?", "answers": "brown fox"} for n in range(2)])
    found = task.prompted(lm, examples, Prompting(1, [shot]))
    told = "{}\n\nAnswer with the fewest words, from the text above: {}"
    assert seen[0] == "\n".join([told.format("lazy dog", "Who?"), "dog", told.format(SAID, "Who 0?")])
    assert found[0].output == "brown fox" and SAID[found[0].more["start"] : found[0].more["end"]] == "brown fox"
    assert found[0].more["said"] == "Brown  fox." and "note" not in found[0].more
    assert found[1].output == "a cat" and found[1].more["start"] is None and "no place" in found[1].more["note"]
    assert list(task.score(examples, found)) == ["token-f1", "exact-match"]


def test_a_document_that_is_too_long_to_be_asked_about_names_a_task_that_reads_less():
    [long] = read(Extract(), [{"context": "the fox " * 300, "question": "Who?", "answers": "fox"}])
    with pytest.raises(CapacityError, match=r"--task answer --set task\.reading=blocks"):
        Extract().prompted(talker(context=256), [long], Prompting())


def test_of_two_answers_the_likelier_one_is_told(lm):
    examples = read(Prefer(), [{"prompt": "the fox", "chosen": "over", "rejected": "quick dog"}])
    [found] = Prefer().prompted(lm, examples, Prompting())
    ids = Writer(lm).prompt([{"role": "user", "content": "the fox"}])
    end = lm.tokenizer.written["<|im_end|>"]
    pairs = [(ids, [*lm.encode(said, special=False), end]) for said in ("over", "quick dog")]
    expected = [one.logprob for one in lm.loglikelihood(pairs)]
    assert found.more["likelihoods"] == pytest.approx(expected, rel=1e-4) and found.more["compared"] == "likelihood"
    assert math.isclose(found.more["margin"], expected[0] - expected[1], rel_tol=1e-4)
    with pytest.raises(ConfigError, match=r"--shots 0.*handscroll finetune prefer"):
        Prefer().prompted(lm, examples, Prompting(1, examples))


def test_what_a_prompt_cannot_do_is_refused_with_what_can():
    for task, words in ((Complete(), "--shots 0"), (Classify(several=True), "each label by itself")):
        with pytest.raises(ConfigError, match=words):
            task.prompted(talker(), [], Prompting(1, [Example("s", {})]))


def test_the_command_asks_for_numbers_and_tells_how_many_were_not_said(tmp_path):
    model, data = saved(tmp_path / "tiny"), lines(tmp_path / "rows.jsonl", RATED)
    command = ["predict", str(model), str(data), "--task", "regress", "--shots", "1", "--examples", str(data)]
    found = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out.jsonl")])
    assert found.exit_code == 0, found.output
    told = rows(tmp_path / "out.jsonl")
    unsaid = [row for row in told if number_in(row["said"]) is None]
    assert unsaid and all(row["prediction"] == 3.25 for row in unsaid)
    assert f"{len(unsaid)} of 2 rows: no number was said" in " ".join(found.output.split())
    assert "root mean square error" in found.output
