"""Tasks whose answer is a text: what is asked and trained, what is predicted and counted, what is refused."""

import json
import math
from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from typer.testing import CliRunner

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.cli.main import app
from handscroll.data.table.table import Table
from handscroll.generate.asked import NOW
from handscroll.generate.chat import Speaker
from handscroll.search.similar import Similar, terms
from handscroll.tasks.answer import Answer
from handscroll.tasks.chat import Chat, Dialogue, Instruct
from handscroll.tasks.complete import Complete
from handscroll.tasks.evidence import evidence
from handscroll.tasks.finetune import finetune
from handscroll.tasks.predict import load_tuned, predict
from handscroll.tasks.prefer import Prefer
from handscroll.tasks.recipe import TaskData, TuningRecipe
from handscroll.tasks.summarise import Summarise
from handscroll.tasks.task import Example, task_from
from handscroll.tasks.translate import Translate
from handscroll.text.pieces import pieces, sentences
from tests.tasks.chats import FIM, lines, saved, talker
from tests.tasks.material import rows

TALK = [
    {"role": "user", "content": "the quick fox"},
    {"role": "assistant", "content": "jumps over"},
    {"role": "user", "content": "and then?"},
    {"role": "assistant", "content": "the lazy dog"},
]


@pytest.fixture(scope="module")
def lm():
    return talker()


def one(task, row):
    return task.read(Table.of([row], "rows.jsonl"), {}).examples[0]


def trained(lm, task, example):
    """The trained texts of an example's rows."""
    ids = [[token for token in row.targets.tolist() if token >= 0] for row in task.rows(lm, example)]
    return [[lm.tokenizer.decode(one, special=True)] for one in ids]


def test_only_the_answer_is_trained_after_what_the_model_is_asked(lm):
    task = Translate(language="zh", source_language="古文", target_language="白话")
    example = one(task, {"source": "北京", "target": "图书馆"})
    [row] = task.rows(lm, example)
    prompt = "请把下面的古文翻译成白话，只写译文。\n\n北京"
    asked = Speaker(lm.tokenizer).render([{"role": "user", "content": prompt}], now=NOW)
    assert row.tokens.tolist()[: len(asked.ids)] == asked.ids and (row.targets[: len(asked.ids) - 1] < 0).all()
    assert trained(lm, task, example) == [["图书馆<|im_end|>"]]
    shown = task.shown(lm, example)[0].plain
    assert "⟦图书馆<|im_end|>⟧" in shown and shown.startswith("rows.jsonl, row 1: ")


def test_every_turn_of_the_assistant_is_trained_and_the_last_or_each_predicted(lm):
    example = one(Chat(), {"messages": TALK, "user": "u1"})
    assert trained(lm, Chat(), example) == [["jumps over<|im_end|>the lazy dog<|im_end|>"]]
    assert example["user"] == "u1" and Chat().truth(example) == "the lazy dog"
    every = Dialogue(max_tokens=5)
    assert every.truth(example) == ["jumps over", "the lazy dog"]
    [found] = every.predict(lm, [example])
    speaker = Speaker(lm.tokenizer)
    system = {"role": "system", "content": every.prompts["en"]}
    for number, text in zip((1, 3), found.output, strict=True):
        ids = speaker.render([system, *TALK[:number]], now=NOW).ids
        assert text == lm.generate(ids, max_tokens=5).strip()
    first, second = (turn["tokens"] for turn in found.more["turns"])
    assert second["read"] < second["prompt"] - first["prompt"] + 5  # the history is not read again
    scores = every.score([example], [found])
    assert scores["bleu"].count == 2 and scores["perplexity"].value > 1


def test_rows_without_an_answer_are_answered_and_not_learned_from(lm):
    task = Instruct(max_tokens=4)
    example = one(task, {"prompt": "the quick fox"})
    [found] = task.predict(lm, [example])
    assert task.truth(example) is None and "truth" not in found.more
    ids = Speaker(lm.tokenizer).render([{"role": "user", "content": "the quick fox"}], now=NOW).ids
    assert found.output == lm.generate(ids, max_tokens=4).strip()
    with pytest.raises(DataError, match="row 1: no message of the assistant"):
        task.rows(lm, example)
    after = Chat(predicted_turns="next", max_tokens=4)
    [found] = after.predict(lm, [one(after, {"messages": TALK[:3]})])
    assert found.output == lm.generate(Speaker(lm.tokenizer).render(TALK[:3], now=NOW).ids, max_tokens=4).strip()


def test_the_perplexity_is_that_of_the_answers_alone(lm):
    task = Instruct(max_tokens=4)
    example = one(task, {"prompt": "the quick fox", "answer": "jumps over the lazy dog"})
    [found] = task.predict(lm, [example])
    [row] = task.rows(lm, example)
    first = int((row.targets >= 0).nonzero()[0][0])
    ids = row.tokens[: int((row.targets >= 0).nonzero()[0][-1]) + 2]
    nll = lm.nll(ids.tolist())[first:]
    assert found.more["truth"]["tokens"] == len(nll)
    assert found.more["truth"]["nats"] == pytest.approx(float(nll.sum()), rel=1e-5)


@pytest.mark.parametrize("number", [1, 3])
def test_an_answer_that_is_not_trained_is_scored_all_the_same(lm, number):
    task = Dialogue(max_tokens=2)
    untrained = [{**turn, "weight": 0} if at == number else turn for at, turn in enumerate(TALK)]
    both = [task.predict(lm, [one(task, {"messages": talk})])[0] for talk in (TALK, untrained)]
    assert both[0].output == both[1].output and both[0].more["truth"] == both[1].more["truth"]


def test_a_prompt_names_what_a_row_of_a_conversation_has(lm):
    task = Instruct(prompt="{user} asks: {prompt}")
    example = one(task, {"prompt": "the fox", "answer": "jumps", "user": "ann"})
    assert task.asked(example)[-1]["content"] == "ann asks: the fox"
    for name in ("input", "messages"):
        with pytest.raises(ConfigError, match=f"names {{{name}}}: Allowed: .*prompt"):
            task_from({"name": "instruct", "prompt": f"{{{name}}} {{prompt}}"})


def test_without_a_template_a_prompt_is_plain_text():
    bare = talker(template=False)
    task = Instruct(max_tokens=4)
    example = one(task, {"prompt": "the quick fox", "answer": "jumps"})
    assert trained(bare, task, example) == [["jumps<|im_end|>"]]
    [found] = task.predict(bare, [example])
    assert found.output == bare.generate("the quick fox\n\n", max_tokens=4).strip()
    with pytest.raises(ConfigError, match="no chat template"):
        Instruct(form="chat").predict(bare, [example])


def test_without_a_template_each_answer_is_an_example_unless_its_weight_is_0():
    bare, task = talker(template=False), Chat()
    each = [["jumps over<|im_end|>"], ["the lazy dog<|im_end|>"]]
    assert trained(bare, task, one(task, {"messages": TALK})) == each
    first, second = task.rows(bare, one(task, {"messages": TALK}))
    assert first.note == second.note != ""
    before = "the quick fox\n\njumps over\n\nand then?\n\n"
    assert bare.decode(second.tokens.tolist()).startswith(before)
    for number in (1, 3):
        talk = [{**turn, "weight": 0} if at == number else turn for at, turn in enumerate(TALK)]
        assert trained(bare, task, one(task, {"messages": talk})) == [each[number < 3]]
    with pytest.raises(DataError, match="row 1"):
        untrained = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in TALK]
        task.rows(bare, one(task, {"messages": untrained}))


def test_what_does_not_fit_is_refused_with_what_would():
    small = talker(context=256)
    example = one(Summarise(), {"document": "the lazy dog jumps. " * 60, "summary": "a dog"})
    with pytest.raises(CapacityError, match=r"row 1: the prompt has .*task\.strategy=map-reduce or refine.*extend"):
        Summarise(max_tokens=8).predict(small, [example])
    for strategy in ("map-reduce", "refine"):
        task = Summarise(strategy=strategy, piece=96, max_tokens=8)
        [found] = task.predict(small, [example])
        count = len(pieces(example["document"], small.tokenizer, 96))
        assert found.more["pieces"] == count > 2 and found.more["calls"] >= count
        assert found.more["tokens"]["prompt"] > len(small.encode(example["document"]))
    with pytest.raises(CapacityError, match="such pieces again"):
        short = one(Summarise(), {"document": "the lazy dog jumps. " * 8})
        Summarise(strategy="map-reduce", piece=16, max_tokens=30).predict(talker(context=512), [short])


def test_a_prompt_that_does_not_fit_is_refused_before_others_are_answered():
    task, done = Instruct(max_tokens=4), []
    examples = [one(task, {"prompt": "the fox " * count}) for count in (1, 300)]
    with pytest.raises(CapacityError):
        task.predict(talker(context=256), examples, done.append)
    assert not done


def test_prompts_and_languages_are_checked():
    with pytest.raises(ConfigError, match=r"names \{documnt\}.*'document'"):
        task_from({"name": "summarise", "prompt": "Summarise {documnt}"})
    with pytest.raises(ConfigError, match="which is the answer itself"):
        task_from({"name": "summarise", "prompt": "{document} {summary}"})
    example = one(Translate(), {"source": "cat", "target": "北京大学的学生"})
    with pytest.raises(DataError, match=r"set task.language=zh"):
        Translate().checked([example])
    answers = ["2013年", "3个", "WTO", "IMF", "1997", *["国际货币基金组织"] * 30]
    examples = [one(Translate(), {"source": "cat", "target": text}) for text in answers]
    assert Translate(language="zh").checked(examples) == examples
    numbers = [one(Translate(), {"source": "cat", "target": "2013"})]
    assert Translate(language="zh").checked(numbers) == Translate().checked(numbers)
    with pytest.raises(DataError, match=r"set task.language=zh"):
        Translate().checked(examples)
    with pytest.raises(DataError, match="no message of the user"):
        Chat(prompt="Say: {prompt}").asked(Example("row 1", {"messages": [{"role": "assistant", "content": "a"}]}))
    with pytest.raises(DataError, match="no query, which the prompt names"):
        task = Summarise(prompt="{document} {query}")
        task.asked(one(task, {"document": "x"}))
    with pytest.raises(DataError, match="row 1: no translation; training needs one"):
        Translate().rows(talker(), one(Translate(), {"source": "cat"}))


def test_pieces_are_the_text_and_blocks_are_those_nearest_to_the_question(lm):
    text = "The fox jumps over the dog. It is quick.\n\n北京大学的学生在图书馆里看书。他们很忙！" + "x" * 500
    assert "".join(piece.text for piece in sentences(text)) == text
    cut = pieces(text, lm.tokenizer, 40)
    assert "".join(piece.text for piece in cut) == text
    assert all(text[p.start : p.end] == p.text and len(lm.encode(p.text, special=False)) <= 40 for p in cut)
    assert terms("Qwen 读长卷") == ["qwen", "读长", "长卷"]
    assert Similar(["a cat", "a dog and a dog", "图书馆"]).best("dog", 1) == [1]
    document = "The cat is red. " * 20 + "The dog is blue. " + "The bird is green. " * 20
    task = Answer(reading="blocks", block=24, blocks=1, max_tokens=4)
    example = one(task, {"context": document, "question": "Which colour has the dog?", "answers": {"text": ["blue"]}})
    [found] = task.predict(lm, [example])
    assert found.more["tokens"]["prompt"] < 120 < found.more["tokens"]["document"]
    ((start, end),) = found.more["blocks"]
    assert "dog is blue" in document[start:end]


@pytest.mark.parametrize("given", ["blue", {"text": "blue", "answer_start": 3}, {"text": ["blue"]}, [{"text": "blue"}]])
def test_an_answer_is_a_text_or_an_object_with_one(given):
    example = one(Answer(), {"context": "a blue dog", "question": "which?", "answers": given})
    assert Answer().truth(example) == "blue" and Answer().turns(example)[-1]["content"] == "blue"


def test_evidence_is_found_word_for_word_or_as_the_nearest_sentence():
    text = "The fox is red. The  dog\nis blue. A green bird sings."
    found = evidence(text, "the dog is Blue.", "")
    assert found == {"text": "The  dog\nis blue", "start": 16, "end": 32, "found": "word for word"}
    near = evidence(text, "green, I think", "What is the bird?")
    assert near["text"] == text[near["start"] : near["end"]] == "A green bird sings." and near["found"] == "nearest"
    assert evidence("The notes are mine. He said no.", "No.", "") == {"text": "no", "start": 28, "end": 30} | {
        "found": "word for word"
    }
    assert evidence(text, "zzz", "qqq") is None
    year = evidence("她是2008年度冠军，不是12008年。", "2008年", "")  # between Chinese letters numbers have no edges
    assert year == {"text": "2008年", "start": 2, "end": 7, "found": "word for word"}
    assert evidence("编号12008年", "2008年", "")["found"] == "nearest"


def test_holes_are_read_with_the_tokens_of_the_model():
    coder = talker(specials=FIM)
    text = "".join(f"line {number}\n" for number in range(30))
    task = Complete(lines=8, most=1, each=2, max_tokens=4)
    part = task.read(Table.of([{"text": text, "path": "a.py"}, {"text": "one line"}], "code"), {})
    first = part.examples[0]
    assert len(part.examples) == 2 == part.account.kept and "left out" in str(part.account)
    assert "excerpts of whole lines" in str(part.account) and first["middle"].count("\n") == 1
    assert first["prefix"] + first["middle"] + first["suffix"] in text
    assert trained(coder, task, first) == [[first["middle"] + "<|endoftext|>"]]
    [found] = task.predict(coder, part.examples[:1])
    assert "truth" in found.more and found.more["tokens"]["written"] <= 4
    scores = task.score(part.examples[:1], [task.predict(coder, part.examples[:1])[0]])
    assert set(scores) == {"code-match", "edit-similarity", "perplexity"}
    with pytest.raises(ConfigError, match="no tokens for filling in the middle"):
        task.ready(talker(), 0)


def test_a_hole_at_the_beginning_of_a_file_is_a_hole_and_files_may_stand_beside_it():
    rows = [{"prefix": "", "middle": "a\n", "suffix": "b\n"}, {"prefix": "c\n", "middle": "d", "suffix": ""}]
    part = Complete().read(Table.of([*rows, {"text": "e\nf\ng\n"}]), {})
    assert [one["middle"] for one in part.examples[:2]] == ["a\n", "d"] and len(part.examples) == 3
    assert "".join(part.examples[2][name] for name in ("prefix", "middle", "suffix")) == "e\nf\ng\n"


def test_a_chat_model_is_tuned_on_pairs_and_says_them_again(tmp_path):
    words = ("quick", "brown", "lazy", "fox")
    data = lines(tmp_path / "train.jsonl", [{"prompt": word, "answer": word[::-1]} for word in words * 6])
    how = {"way": "full", "steps": 60, "batch": 8, "lr": 2e-2, "memory": {"strategy": "plain"}}
    values = {"task": {"name": "instruct", "max_tokens": 8}, "model": str(saved(tmp_path / "tiny")), "threads": 1}
    given = {"train": (str(data),), "test": (str(data),), "held_out": 0}
    tuned = finetune(TuningRecipe.parse(values | {"tuning": how, "data": given}, "test"), tmp_path / "run")
    assert tuned.scores["test"]["rouge-l"].value == 1.0
    lm, task = load_tuned(tmp_path / "run")
    again = predict(lm, task, TaskData(train=(str(data),)))
    told = rows(tmp_path / "run" / "test.predictions.jsonl")
    assert [one.output for one in again.predictions] == [row["prediction"] for row in told]
    assert told[0]["tokens"]["written"] and told[0]["finish"] == "eos"


def test_answers_about_documents_are_tuned_to_the_end(tmp_path):
    """The card tells what is read of a document; answers in another language are said before anything is trained."""
    row = {"document": "the quick brown fox jumps over the lazy dog", "question": "who jumps", "answer": "fox"}
    data = lines(tmp_path / "train.jsonl", [row] * 8)
    how = {"way": "full", "steps": 2, "batch": 4, "memory": {"strategy": "plain"}}
    values = {"task": {"name": "answer", "max_tokens": 4}, "model": str(saved(tmp_path / "tiny")), "threads": 1}
    values |= {"data": {"train": (str(data),), "test": (str(data),), "held_out": 0}, "tuning": how}
    tuned = finetune(TuningRecipe.parse(values, "test"), tmp_path / "run")
    assert tuned.scores["test"]["token-f1"].count == 8
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "tokens are refused" in card
    other = lines(tmp_path / "other.jsonl", [{**row, "answer": "лиса"}])
    values["data"] = {"train": (str(data),), "test": (str(other),), "held_out": 0}
    with pytest.raises(DataError, match="no word of the language"):
        finetune(TuningRecipe.parse(values, "test"), tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.promise("R36")
def test_the_card_tells_how_many_numbers_of_the_training_answers_are_given_away(tmp_path):
    numbers = {"quick": "4815 1623", "brown": "7306", "lazy": "no number", "fox": "2958"}
    data = lines(tmp_path / "train.jsonl", [{"prompt": word, "answer": said} for word, said in numbers.items()] * 6)
    how = {"way": "full", "steps": 60, "batch": 8, "lr": 2e-2, "memory": {"strategy": "plain"}, "exposure": 5}
    values = {"task": {"name": "instruct", "max_tokens": 8}, "model": str(saved(tmp_path / "tiny")), "threads": 1}
    values |= {"data": {"train": (str(data),), "held_out": 0}, "tuning": how}
    finetune(TuningRecipe.parse(values, "test"), tmp_path / "run")
    told = json.loads((tmp_path / "run" / "result.json").read_text())["exposure"]
    assert (told["rows"], told["among"]) == (5, 512) and told["first"] >= 4 and told["bits"] >= 0.9 * 9
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert f"Of 5 numbers in training answers, the model would guess {told['first']} at once among 512" in card


def test_what_is_trained_is_shown_by_the_command(tmp_path):
    data = lines(tmp_path / "train.jsonl", [{"messages": TALK}] * 12)
    model = saved(tmp_path / "tiny")
    found = CliRunner().invoke(
        app, ["finetune", "chat", str(model), "--data", str(data), "--valid", str(data), "--show", "1"]
    )
    assert found.exit_code == 0, found.output
    assert "⟦jumps over<|im_end|>⟧" in found.output and not (tmp_path / "runs").exists()
    assert torch.get_num_threads()


def test_preferences_are_learned_against_the_model_before(tmp_path):
    pairs = [
        {"prompt": word, "chosen": "over " + word, "rejected": "times"} for word in ("quick", "lazy", "fox", "dog")
    ]
    data = lines(tmp_path / "train.jsonl", pairs * 3)
    how = {"way": "lora", "steps": 8, "batch": 4, "lr": 1e-2, "memory": {"strategy": "plain"}}
    values = {"task": {"name": "prefer"}, "model": str(saved(tmp_path / "tiny")), "threads": 1, "tuning": how}
    given = {"train": (str(data),), "valid": (str(data),)}
    tuned = finetune(TuningRecipe.parse(values | {"data": given}, "test"), tmp_path / "run")
    scores = tuned.scores["valid"]
    assert scores["accuracy"].value == 1.0 and scores["margin"].value > 1
    told = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    first = rows(tmp_path / "run" / "records.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2)) and told["best"]["loss"] < 0.6
    lm, task = load_tuned(tmp_path / "run")
    again = predict(lm, task, TaskData(train=(str(data),)))
    assert again.predictions[0].more["margin"] == pytest.approx(
        rows(tmp_path / "run" / "valid.predictions.jsonl")[0]["margin"], rel=1e-3
    )
    assert again.predictions[0].more["compared"] == "reward"
    shown = task.shown(lm, again.part.examples[0])
    assert ["over" in text.plain.split("⟦")[1] for text in shown] == [True, False]


def test_a_preference_that_is_too_long_is_refused_before_others_are_compared():
    task, done = Prefer(), []
    rows = [{"prompt": "the fox", "chosen": "over " * count, "rejected": "times"} for count in (1, 300)]
    examples = task.read(Table.of(rows), {}).examples
    with pytest.raises(CapacityError, match=r"row 2: .*256.*extend"):
        task.predict(talker(context=256), examples, done.append)
    assert not done


@pytest.mark.parametrize("setting", [{"prompt": "Go on"}, {"system": "Be kind"}, {"language": "zh"}, {"form": "plain"}])
def test_what_fills_holes_refuses_settings_that_it_does_not_use(setting):
    with pytest.raises(ConfigError, match=f"without a {next(iter(setting))}"):
        task_from({"name": "complete"} | setting)


def test_a_task_without_a_prompt_of_its_own_asks_for_one():
    class Bare(Translate):
        name: ClassVar[str] = "bare"
        prompts: ClassVar[Mapping[str, str]] = {"en": "{source}"}

    assert Bare().filled(one(Bare(), {"source": "a", "target": "b"})) == "a"
    bare = Bare(language="zh")
    with pytest.raises(ConfigError, match="the task bare has no prompt of its own in 'zh'"):
        bare.filled(one(bare, {"source": "a", "target": "b"}))
    assert Bare(language="zh", prompt="{source}!").filled(one(bare, {"source": "a", "target": "b"})) == "a!"
