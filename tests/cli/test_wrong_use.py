"""What a model cannot do is refused before any work, by the command and by the library, and says what to do instead."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import CapacityError, ConfigError, DataError, HandscrollError
from handscroll.cache.reading.store import Store
from handscroll.cli.main import app
from handscroll.data.batch import Batch
from handscroll.lm import DTYPES
from handscroll.models.weights import save_model
from handscroll.nn.marks import Marks
from handscroll.objectives.masked import Masked
from handscroll.objectives.settings import objective_from
from handscroll.plan.calibration import Calibration
from handscroll.train.step import Step
from handscroll.train.strategies.plain import Plain
from tests.conformance.families import FORMS
from tests.conformance.material import WORDS, tokenizer
from tests.conftest import ROOT
from tests.naming import naming

BOTH_WAYS = "both directions"
TINY = ROOT / "recipes" / "tiny"


def refused(*words, fails: str, also: str = "", kind: type[HandscrollError] = ConfigError, said: str = "") -> None:
    """The command ends with this error, which `main` prints as a paragraph with status 2."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=said)
    assert isinstance(result.exception, kind), (words, result.output, result.exception)
    assert fails in str(result.exception) and also in str(result.exception), str(result.exception)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")

    def saved(form: str):
        if not (base / form).exists():
            save_model(FORMS[form].build(torch.float32), base / form)
            tokenizer().save(base / form)
        return base / form

    return saved


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(WORDS * 6), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("form", "instead"),
    [
        ("bert", "causal model"),
        ("bert-bare", "embed"),
        ("roberta-classifier", "causal model"),
        ("glm-blank", "lm.fill"),
    ],
)
def test_models_that_read_both_ways_generate_nothing(form, instead, folder, text, tmp_path):
    model, requests = folder(form), tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "w30 w31", "max_tokens": 2}\n', encoding="utf-8")
    for words in (
        ("generate", model, "--prompt", "w30 w31"),
        ("generate", model, "--prompt", "w30 w31", "--beams", "2"),
        ("generate", model, "--prompt", "w30 w31", "--samples", "2"),
        ("generate", model, "--prompt", "w30 w31", "--kv-budget", "50%"),
        ("generate", model, "--prompt", " ".join(WORDS), "--max-tokens", "300"),  # and not: too long
        ("chat", model),
        ("batch", model, requests, "--out", tmp_path / "answers.jsonl"),
        ("read", model, text, "--save", "name", "--store", tmp_path / "store"),
    ):
        refused(*words, fails=BOTH_WAYS, also=instead, said="w30\n")
    lm, store = handscroll.load(model), Store(tmp_path / "store")
    for asked in (
        lambda: lm.generate("w30 w31"),
        lambda: lm.continuations("w30", 2),
        lambda: lm.beams("w30"),
        lambda: lm.nll("w30 w31 w32"),
        lambda: lm.conversation(),
        lambda: lm.read("w30 w31", store),
        lambda: lm.choose_cache("w30", "50%"),
    ):
        with pytest.raises(ConfigError, match=r"continued|causal"):
            asked()


def test_encoders_are_not_planned_to_generate(folder, monkeypatch):
    monkeypatch.setattr("handscroll.plan.calibration.load_calibration", lambda *_: Calibration())
    for verb in (("generate", "--prompt-tokens", "10"), ("serve", "--context", "10")):
        refused("plan", verb[0], folder("bert"), *verb[1:], fails="encoder")


def test_a_state_is_planned_and_takes_no_policy(folder, monkeypatch):
    monkeypatch.setattr("handscroll.plan.calibration.load_calibration", lambda *_: Calibration())
    words = ["plan", "generate", str(folder("lstm")), "--prompt-tokens", "5000", "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(done.stdout)["stages"][0]["parts"]["cache"] == FORMS["lstm"].config.spec.cache_bytes(1, 4)
    refused(*words, "--cache", "int8", fails="'int8'")


@pytest.mark.parametrize("form", ["lstm-classifier", "bert-classifier"])
def test_a_classifier_predicts_no_tokens(form, folder, text):
    words = "predicts" if form.startswith("lstm") else "masked-LM head"
    with pytest.raises(ConfigError) as told:
        handscroll.load(folder(form)).logits("w30 w31")
    assert words in str(told.value)
    refused("evaluate", "perplexity", folder(form), text, "--length", "32", "--windows", "1", fails=words)


@pytest.mark.parametrize(
    ("recipe", "objective", "kinds", "instead"),
    [
        ("llama", "masked", ("text",), "'causal'"),
        ("llama", "span-corruption", ("text",), "'causal'"),
        ("bert", "causal", ("text",), "'masked'"),
        ("t5", "masked", ("text",), "'span-corruption'"),
        ("t5", "causal", ("text",), "'span-corruption'"),
    ],
)
def test_an_objective_that_does_not_fit_the_model_is_refused(recipe, objective, kinds, instead, tmp_path):
    only = 'data={x={kind="text"}}', "stages=[{length=32,rows=2,steps=1,mix={x=1.0}}]", "tokenizer.train.vocab=300"
    given = [word for value in (f"objective={objective}", *only) for word in ("--set", value)]
    refused("train", TINY / f"{recipe}.toml", "--out", tmp_path / "run", *given, fails=f"'{objective}'", also=instead)
    model = FORMS[recipe].build(torch.float32)
    with pytest.raises(ConfigError, match=naming(f"'{objective}'", f"'{recipe}'", instead)):
        objective_from(objective).objective(model)


def test_rows_of_another_objective_are_refused_in_one_line(tmp_path):
    result = CliRunner().invoke(app, ["train", str(TINY / "llama.toml"), "--set", "objective=masked", "--out", "x"])
    said = str(result.exception)
    assert "\n" not in said and said.startswith(f"{TINY / 'llama.toml'}: ")
    assert re.match(naming("data.copies", "'copies'", "'masked'", "'text'", "'pairs'"), said)


def test_a_causal_model_under_the_masked_loss_is_refused():
    model, ids = FORMS["llama"].build(torch.float32), torch.full((1, 4), 30)
    with pytest.raises(ConfigError, match=naming("masked-LM", "llama")):
        Step(Plain())(model, [Batch(ids, ids)], Masked())  # type: ignore[arg-type]


def test_a_t5_without_a_token_to_begin_with_is_refused(folder, tmp_path):
    model = folder("t5-v1.1")
    path = tmp_path / "config.json"
    settings = json.loads((model / "config.json").read_text())
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    for settings["decoder_start_token_id"] in (None, 97):
        path.write_text(json.dumps(settings))
        words = "97" if settings["decoder_start_token_id"] else '"decoder_start_token_id": 0'
        for verb in (("info", tmp_path), ("generate", tmp_path, "--prompt", "w30")):
            refused(*verb, fails=words)
        with pytest.raises(ConfigError) as told:
            handscroll.load(tmp_path)
        assert words in str(told.value)
    given = ("--set", 'tokenizer.train.special=["<|x|>"]', "--set", "tokenizer.train.vocab=300")
    words = "tokenizer.train.special"
    refused("train", TINY / "t5.toml", "--out", tmp_path / "run", *given, fails=words)


@pytest.mark.parametrize(("form", "context"), [("gpt2", 256), ("bert", 64), ("roberta", 64)])
def test_positions_past_a_learned_table_are_refused(form, context, folder, text):
    model, longer = folder(form), context + 10
    past = f"table of {context}"
    score = ("evaluate", "perplexity", model, text, "--length", longer, "--windows", "1")
    refused(*score, kind=CapacityError, fails=past, also="lengthen")
    lm = handscroll.load(model)
    with pytest.raises(CapacityError, match=past):
        lm.logits([30] * longer)
    with pytest.raises(CapacityError, match=past):
        lm.model.embed(torch.full((1, 1), 30), Marks.run(context, 1))
    if lm.model.spec.both_ways:
        with pytest.raises(CapacityError, match=naming(context, "windows=True")):
            lm.embed([" ".join(WORDS[:50] * 2)])
        return
    prompt = " ".join(WORDS * 4)[: 4 * (context - 6) - 1]
    asked = ("generate", model, "--prompt", prompt, "--max-tokens", "16")
    refused(*asked, kind=CapacityError, fails="at most 6 new tokens")
    refused(*asked, "--beyond", kind=CapacityError, fails=past)
    with pytest.raises(CapacityError, match=past):
        lm.generate(prompt, max_tokens=16, beyond=True)


def test_rows_past_a_learned_table_are_refused_before_the_run(tmp_path):
    words = "stages.length"
    given = ("--set", "model.sizes.context=48", "--set", "tokenizer.train.vocab=300")
    refused("train", TINY / "bert.toml", "--out", tmp_path / "run", *given, kind=CapacityError, fails=words, also="48")
    assert not (tmp_path / "run" / "records.jsonl").exists()


@pytest.mark.parametrize("recipe", ["llama", "t5"])
def test_rows_past_the_declared_context_are_refused_before_the_run(recipe, tmp_path):
    words = "stages.length"
    given = ("--set", "model.sizes.context=48", "--set", "tokenizer.train.vocab=300")
    refused(
        "train", TINY / f"{recipe}.toml", "--out", tmp_path / "run", *given, kind=CapacityError, fails=words, also="48"
    )


def test_held_out_windows_past_a_learned_table_are_refused_before_the_run(tmp_path):
    given = ("--set", "validation.length=256", "--set", "tokenizer.train.vocab=300")
    words = "validation.length"
    refused("train", TINY / "bert.toml", "--out", tmp_path / "run", *given, kind=CapacityError, fails=words, also="64")


def test_what_is_never_done_is_not_planned(folder):
    refused("plan", "extend", folder("bert-classifier"), "--to", "100", fails="masked-LM head")
    refused("plan", "serve", folder("glm-blank"), "--context", "100", fails="blocks")
    for form, why in (("lstm", "lengthen"), ("glm-blank", "learned tables"), ("t5-v1.1", "span-corruption")):
        refused("plan", "extend", folder(form), "--to", "4096", fails=why)
    for form in ("lstm", "t5-v1.1", "bloom"):
        refused("plan", "serve", folder(form), "--context", "128", fails="blocks")


@pytest.mark.parametrize(
    "given",
    [
        ("--steps", "5"),
        ("--lr", "0.1"),
        ("--precision", "float12"),
        ("--strategy", "x"),
        ("--rows", "-3"),
        ("--no-end",),
    ],
)
def test_options_of_a_tuning_need_one(given, folder, tmp_path):
    words = ("extend", folder("bert"), "--to", "128", "--method", "tile", "--out", tmp_path / "longer", *given)
    refused(*words, fails=given[0])
    assert not (tmp_path / "longer").exists()


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        ("perplexity", ("--windows", "0")),
        ("perplexity", ("--windows", "-3")),
        ("perplexity", ("--length", "0")),
        ("perplexity", ("--block", "-5")),
        ("views", ("--windows", "0")),
        ("views", ("--length", "-1")),
        ("policies", ("--windows", "0")),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_model_is_looked_for(verb, given, text):
    words = ["evaluate", verb, "no-such-model", str(text), "--length", "64", *given]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2, result.exception
    assert f"'{given[0]}'" in result.output


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("--search", "--generations", "0"), "generations"),
        (("--search", "--seed", "-1"), "seed"),
        (("--compare", "--seeds", "0"), "seeds"),
        (("--compare", "--needles", "-1"), "needles"),
    ],
)
def test_sizes_of_a_search_and_of_a_comparison_are_checked_first(given, name, tmp_path):
    refused("extend", "no-such-model", "--to", "128", "--out", tmp_path / "longer", *given, fails=name, also=given[-1])


EVALUATIONS = {
    "perplexity": ("{text}", "--length", "64"),
    "views": ("{text}", "--length", "64"),
    "policies": ("{text}", "--length", "128"),
    "needle": ("--lengths", "64"),
    "length": ("--lengths", "64"),
    "ruler": ("--lengths", "512"),
    "tasks": ("{text}",),
    "leak": (),
    "exposure": ("--secret", "the code is {{{{4815}}}}"),
}


@pytest.mark.parametrize("verb", [*EVALUATIONS, "doctor", "data", "metrics"])
def test_a_record_that_cannot_be_written_is_refused_before_the_model_is_looked_for(verb, text, tmp_path):
    given = [word.format(text=text) for word in EVALUATIONS.get(verb, ())]
    words = ["evaluate", verb, "no-such-model", *given]
    words = {"doctor": ["doctor", "no-such-model"], "data": ["data", "report", text], "metrics": ["metrics", text]}.get(
        verb, words
    )
    for path in (tmp_path / "none" / "x.json", tmp_path):
        refused(*words, "--json", path, fails=f"--json {path}")
    if verb not in ("leak", "exposure", "doctor", "metrics"):
        refused(*words, "--report", text, fails=f"--report {text}")
        refused(*words, "--report", text / "inside", fails=f"{text} is a file")


@pytest.mark.parametrize("reference", [1, -5, 64, 100])
def test_a_sliding_window_that_is_none_is_refused_first(reference, text):
    words = ("evaluate", "perplexity", "no-such-model", text, "--length", "64", "--reference", reference)
    refused(*words, fails=f"--reference {reference}")


def test_a_tuning_that_failed_can_be_begun_anew(folder, text, tmp_path):
    words = ["extend", str(folder("bert")), "--to", "100", "--method", "tile", "--out", str(tmp_path / "longer")]
    words += ["--tune", str(text), "--steps", "3", "--rows", "1", "--lr"]
    failed = CliRunner().invoke(app, [*words, "1e30"])
    assert isinstance(failed.exception, HandscrollError) and "resume from a checkpoint" not in str(failed.exception)
    again = CliRunner().invoke(app, [*words, "1e-3"], catch_exceptions=False)
    assert again.exit_code == 0 and handscroll.load(tmp_path / "longer").context == 100
    other = [word.replace("longer", "other") for word in words]
    refused(*other, "inf", fails="lr")


def test_the_proof_is_named_where_there_is_one(folder, tmp_path):
    for form, method, proved in (
        ("t5-v1.1", "reach", False),
        ("bert-classifier", "tile", False),
        ("bert", "tile", True),
    ):
        words = ["extend", str(folder(form)), "--to", "600", "--method", method, "--out", str(tmp_path / form)]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert ("proof:" in done.stdout) == proved, done.stdout


def test_rates_are_finite_and_validations_have_text(tmp_path):
    train = ("train", TINY / "llama.toml", "--out", tmp_path / "run")
    refused(*train, "--set", "optimizer.lr=inf", fails="optimizer.lr")
    text = (TINY / "llama.toml").read_text()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text[: text.index("[validation]")])
    refused("train", recipe, "--out", tmp_path / "run", fails="loop.evaluate_every")


def test_an_empty_file_and_a_wrong_key_are_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    train = ("train", TINY / "llama.toml", "--out", tmp_path / "run")
    given = f'text.files=["{tmp_path}/empty.txt"]'
    refused(*train, "--set", given, kind=DataError, fails="empty")
    for value, key, near in (
        ("data.copies.segmnt=3", "data.copies.segmnt", "'segment'"),
        ('data.facts={kind="facts",digitz=4}', "data.facts.digitz", "'digits'"),
        ('data.text={kind="facts",digitz=4}', "data.text.digitz", "'digits'"),
        ('data.copies={kind="text",samplin="cyclic"}', "data.copies.samplin", "'sampling'"),
        ("stages.0.lenth=3", "stages.0.lenth", "'length'"),
        ("validation.lenth=3", "validation.lenth", "'length'"),
    ):
        refused(*train, "--set", value, fails=f"'{key}'", also=near)


def test_what_is_no_text_is_told_from_text(folder, tmp_path):
    lm = handscroll.load(folder("bert"))
    for wrong in ([1, 2], b"abc"):
        with pytest.raises(DataError, match="text"):
            lm.embed(["w30", wrong])
    with pytest.raises(DataError, match="whole numbers"):
        lm.logits([1.5, 2.5])
    assert lm.embed(text for text in ("w30", "w31 w32")).shape[0] == 2
    with pytest.raises(DataError, match="no tokens"):
        lm.logits([])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        lm.save(tmp_path / "file")


def test_help_and_errors_name_the_same_dtypes(folder):
    told = CliRunner().invoke(app, ["generate", "--help"], env={"COLUMNS": "200"}).stdout
    assert all(name in told for name in ("auto", *DTYPES)) and "float32, bfloat16, ..." not in told
    refused(
        "generate", folder("llama"), "--prompt", "w30", "--dtype", "float8", fails=", ".join(sorted(("auto", *DTYPES)))
    )
