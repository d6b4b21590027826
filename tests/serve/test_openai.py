"""The official client of OpenAI against a live server."""

import json

import openai
import pytest

import handscroll
from handscroll.generate.constrain import Constraint
from handscroll.models import sentences
from tests.serve.material import CONTEXT, TEMPLATE, TEXT

ASKED = [{"role": "user", "content": "import os"}]


@pytest.fixture(scope="module")
def lm(served_models):
    return handscroll.load(served_models["tiny"])


def test_models_are_listed_and_found(server):
    listed = {one.id: one for one in server.openai.models.list()}
    assert list(listed) == ["tiny", "vectors", "tiny:other"]
    assert listed["tiny"].kind == "decoder" and listed["tiny"].context == CONTEXT and listed["tiny"].chat
    assert listed["vectors"].kind == "encoder" and listed["tiny:other"].parent == "tiny"
    assert server.openai.models.retrieve("tiny:other").id == "tiny:other"
    with pytest.raises(openai.NotFoundError, match="tiny"):
        server.openai.models.retrieve("tinny")


def test_a_chat_is_that_of_the_library_whole_and_streamed(server, lm):
    want = lm.chat(ASKED, max_tokens=12)
    made = server.openai.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12, temperature=0)
    choice, usage = made.choices[0], made.usage
    assert choice.message.content == want and choice.message.role == "assistant"
    assert (usage.prompt_tokens, usage.completion_tokens) == (want.prompt, want.tokens)
    assert choice.finish_reason == {"eos": "stop", "length": "length"}[want.finish]
    asked = {"model": "tiny", "messages": ASKED, "max_tokens": 12, "temperature": 0}
    chunks = list(server.openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == want
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].usage.completion_tokens == want.tokens and not chunks[-1].choices
    assert len({one.id for one in chunks}) == 1


def test_the_answer_says_what_was_read_and_a_second_turn_reads_only_what_is_new(server, lm):
    first = [{"role": "user", "content": TEXT * 8}]
    made = server.openai.chat.completions.create(model="tiny", messages=first, max_tokens=4, temperature=0)
    assert made.handscroll["tokens"]["offered"] == made.handscroll["tokens"]["seen"] == made.usage.prompt_tokens
    later = [*first, {"role": "assistant", "content": made.choices[0].message.content}, *ASKED]
    again = server.openai.chat.completions.create(model="tiny", messages=later, max_tokens=4, temperature=0)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached >= made.usage.prompt_tokens - 32 and again.handscroll["tokens"]["cached"] == cached
    assert again.choices[0].message.content == lm.chat(later, max_tokens=4)


def test_several_answers_differ_by_seed_and_each_can_be_had_again(server):
    asked = {"model": "tiny", "prompt": "def walk", "max_tokens": 10, "temperature": 1.0, "n": 3, "seed": 5}
    texts = [one.text for one in server.openai.completions.create(**asked).choices]
    assert len(set(texts)) == 3
    assert [one.text for one in server.openai.completions.create(**asked).choices] == texts
    free = {name: value for name, value in asked.items() if name != "seed"}
    one, other = (server.openai.completions.create(**free).choices[0].text for _ in range(2))
    assert one != other


def test_completions_are_those_of_the_library(server, lm):
    prompts = ["def walk", "import"]
    made = server.openai.completions.create(model="tiny", prompt=prompts, max_tokens=9, temperature=0)
    assert [one.text for one in made.choices] == [lm.generate(one, max_tokens=9) for one in prompts]
    ids = [lm.encode(one) for one in prompts]
    same = server.openai.completions.create(model="tiny", prompt=ids, max_tokens=9, temperature=0)
    assert [one.text for one in same.choices] == [one.text for one in made.choices]
    stop = made.choices[0].text[2:4]
    cut = server.openai.completions.create(model="tiny", prompt=prompts[0], max_tokens=9, temperature=0, stop=stop)
    assert cut.choices[0].text == made.choices[0].text.partition(stop)[0] and cut.choices[0].finish_reason == "stop"
    chunks = server.openai.completions.create(model="tiny", prompt=prompts, max_tokens=9, temperature=0, stream=True)
    streamed = ["", ""]
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [one.text for one in made.choices]


def test_a_bias_bans_a_token_and_forces_another(server, lm):
    asked = {"model": "tiny", "prompt": "def walk", "max_tokens": 3, "temperature": 0}
    usual = server.openai.completions.create(**asked, logprobs=0).choices[0]
    first = lm.continuations("def walk", max_tokens=1)[0].tokens[0]
    banned = server.openai.completions.create(**asked, logit_bias={str(first): -100}).choices[0]
    assert banned.text != usual.text
    forced = server.openai.completions.create(**asked, logit_bias={str(lm.encode("o")[0]): 100}).choices[0]
    assert forced.text == "ooo"
    with pytest.raises(openai.BadRequestError, match="vocabulary is 0 to 299"):
        server.openai.completions.create(**asked, logit_bias={"300": 1})


def test_an_echo_scores_the_prompt_as_evaluations_ask_for_it(server, lm):
    ids = lm.encode(TEXT)
    asked = {"model": "tiny", "prompt": [ids, ids[:5]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    made = server.openai.completions.create(**asked)
    found = made.choices[0].logprobs
    assert found.token_logprobs[0] is None and len(found.tokens) == len(ids) + 1
    want = -lm.nll(ids)
    assert found.token_logprobs[1:-1] == pytest.approx(want.tolist(), abs=1e-4)
    assert made.choices[0].text == TEXT + lm.generate(ids, max_tokens=1)
    assert all(
        max(top.values()) >= one for one, top in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True)
    )
    longer = server.openai.completions.create(**asked | {"max_tokens": 3}).choices[1]
    assert longer.text == lm.decode(ids[:5]) + lm.generate(ids[:5], max_tokens=3)
    assert longer.logprobs.token_logprobs[1:5] == pytest.approx(want[:4].tolist(), abs=1e-4)
    alone = server.openai.completions.create(**asked | {"max_tokens": 0, "prompt": TEXT})
    assert alone.choices[0].text == TEXT and len(alone.choices[0].logprobs.tokens) == len(ids)


def test_offsets_of_tokens_lie_in_the_text(server, lm):
    """A special token has no text, and a Chinese character is several tokens of this model."""
    special, text = lm.tokenizer.words.index("<|endoftext|>"), "def 船 walk"
    ids = [special, *lm.encode(text)]
    asked = {"model": "tiny", "prompt": ids, "temperature": 0, "logprobs": 2, "echo": True}
    for most in (1, 6):
        made = server.openai.completions.create(**asked, max_tokens=most).choices[0]
        found, whole = made.logprobs, made.text
        assert found.text_offset[:2] == [0, 0] and found.text_offset == sorted(found.text_offset)
        assert found.text_offset[len(ids)] == len(text) and found.text_offset[-1] <= len(whole)
        for token, at in zip(found.tokens, found.text_offset, strict=True):
            unseen = "\ufffd" in token or token.startswith("<|")
            assert unseen or whole[at : at + len(token)] == token, (token, at)
    streamed = {"model": "tiny", "prompt": ids, "temperature": 0, "logprobs": 0, "max_tokens": 6}
    pieces = [one.choices[0] for one in server.openai.completions.create(**streamed, stream=True)]
    whole = server.openai.completions.create(**streamed).choices[0]
    assert [at for one in pieces for at in one.logprobs.text_offset] == whole.logprobs.text_offset
    assert whole.logprobs.text_offset[0] == 0


def test_a_suffix_fills_the_hole_with_the_models_own_tokens(server, lm):
    from handscroll.data.infill import Infill

    made = server.openai.completions.create(
        model="tiny", prompt="import ", suffix="\ndef walk", max_tokens=6, temperature=0
    )
    asked = Infill.of(lm.tokenizer).prompt("import ", "\ndef walk")
    assert made.choices[0].text == lm.generate(asked, max_tokens=6)
    assert made.usage.prompt_tokens == len(asked)


def test_log_probabilities_of_a_chat(server):
    made = server.openai.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    found = made.choices[0].logprobs.content
    assert len(found) == made.usage.completion_tokens
    assert all(one.token == one.top_logprobs[0].token and len(one.top_logprobs) == 3 for one in found)
    spelled = [bytes(one.bytes) for one in found if one.bytes is not None]
    assert b"".join(spelled).decode("utf-8", "replace").startswith(made.choices[0].message.content[:1])


def test_an_answer_follows_a_schema_a_grammar_an_expression_or_choices(server, lm):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}

    def said(form) -> str:
        asked = {"model": "tiny", "messages": ASKED, "max_tokens": 60, "temperature": 0, "response_format": form}
        return server.openai.chat.completions.create(**asked).choices[0].message.content

    assert json.loads(said(form)) in ({"n": 1}, {"n": 2})
    assert said(form) == lm.chat(ASKED, max_tokens=60, constraint=Constraint.schema(schema, lm.tokenizer))
    assert said({"type": "choice", "choices": ["yes", "no"]}) in ("yes", "no")
    assert said({"type": "regex", "regex": "[ab]{3}"}).strip("ab") == ""
    assert said({"type": "grammar", "grammar": 'start: "x" "y"'}) == "xy"
    assert said({"type": "json_object"}).lstrip().startswith("{")
    assert said({"type": "text"}) == lm.chat(ASKED, max_tokens=60)


def test_tools_are_handed_to_the_template(server, lm):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    asked = {"model": "tiny", "messages": ASKED, "max_tokens": 5, "temperature": 0}
    made = server.openai.chat.completions.create(**asked, tools=tools)
    assert made.choices[0].message.content == lm.chat(ASKED, tools=tools, max_tokens=5)
    without = server.openai.chat.completions.create(**asked, tools=tools, tool_choice="none")
    assert without.usage.prompt_tokens < made.usage.prompt_tokens and "tools" in TEMPLATE


def test_an_adapter_is_a_model_of_its_own(server, served_models):
    lm = handscroll.load(served_models["tiny"], adapter=served_models["tiny:other"])
    asked = {"prompt": TEXT[:60], "max_tokens": 12, "temperature": 0}
    texts = [server.openai.completions.create(model=name, **asked).choices[0].text for name in ("tiny", "tiny:other")]
    assert texts[1] == lm.generate(TEXT[:60], max_tokens=12) != texts[0]


def test_vectors_are_those_of_the_library_in_both_encodings(server, served_models):
    lm = handscroll.load(served_models["vectors"])
    texts = ["w1 w2 w3", "w4"]
    want = lm.embed(texts)
    packed = server.openai.embeddings.create(model="vectors", input=texts)  # the client asks for base64
    plain = server.openai.embeddings.create(model="vectors", input=texts, encoding_format="float")
    for made in (packed, plain):
        for one, vector in zip(made.data, want, strict=True):
            assert one.embedding == pytest.approx(vector.tolist(), abs=1e-6)
        assert made.usage.prompt_tokens == 8
    long = " ".join(["w1"] * 30)
    with pytest.raises(openai.BadRequestError, match=r"input 0 has 32 tokens, and 'vectors' reads 8 at once"):
        server.openai.embeddings.create(model="vectors", input=long)
    whole = server.openai.embeddings.create(model="vectors", input=long, extra_body={"windows": True})
    assert whole.data[0].embedding == pytest.approx(lm.embed([long], windows=True)[0].tolist(), abs=1e-6)


def test_windows_are_a_long_work_between_which_others_go_on(server, served_models, monkeypatch):
    breaths, worker, lm = [], server.serving.worker, handscroll.load(served_models["vectors"])
    monkeypatch.setattr(worker, "breathe", breaths.append)
    monkeypatch.setattr(sentences, "SHORT", 64)
    long = [" ".join(f"w{n % 20}" for n in range(300)), "w4"]
    made = server.openai.embeddings.create(model="vectors", input=long, extra_body={"windows": True})
    assert len(breaths) >= 5 and made.usage.prompt_tokens == 300 + 2 + 1 + 2
    for one, vector in zip(made.data, lm.embed(long, windows=True), strict=True):
        assert one.embedding == pytest.approx(vector.tolist(), abs=1e-6)


def test_what_is_too_long_is_refused_with_the_numbers(server):
    words = {"role": "user", "content": "walk " * CONTEXT}
    with pytest.raises(
        openai.BadRequestError, match=rf"tokens, but the context of 'tiny' is {CONTEXT:,}: shorten"
    ) as it:
        server.openai.chat.completions.create(model="tiny", messages=[words])
    assert it.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=f"context is {CONTEXT}; ask for at most"):
        server.openai.completions.create(model="tiny", prompt="walk", max_tokens=CONTEXT)
    with pytest.raises(openai.BadRequestError, match="characters, which are at least"):
        server.openai.completions.create(model="tiny", prompt="w" * 1_000_000)


@pytest.mark.parametrize(("extra", "said"), [
    ({"temprature": 1}, "did you mean 'temperature'"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"top_logprobs": 3}, "needs logprobs"),
    ({"stream_options": {"include_usage": True}}, "needs stream"),
    ({"model": "vectors"}, "gives vectors, not text"),
    ({"stop": ["x"], "response_format": {"type": "json_object"}}, "remove stop strings"),
    ({"max_completion_tokens": 3}, "max_tokens and max_completion_tokens differ"),
    ({"document": "doc-000000000000000000000000"}, "there is no document"),
])  # fmt: skip
def test_nothing_is_accepted_and_ignored(server, extra, said):
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 4} | extra
    made = server.http.post("/v1/chat/completions", json=body)
    assert made.status_code in (400, 404) and said in made.json()["error"]["message"], made.text


def test_counts_are_those_of_the_engine(server, lm):
    made = server.http.post("/v1/count", json={"model": "tiny", "messages": ASKED}).json()
    chat = server.openai.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1)
    assert made == {"model": "tiny", "count": chat.usage.prompt_tokens, "context": CONTEXT,
                    "left": CONTEXT - chat.usage.prompt_tokens}  # fmt: skip
    tokens = server.http.post("/v1/tokenize", json={"model": "tiny", "text": TEXT}).json()
    assert tokens["tokens"] == lm.encode(TEXT) and "".join(tokens["texts"]) == TEXT
    back = server.http.post("/v1/detokenize", json={"model": "tiny", "tokens": tokens["tokens"]}).json()
    assert back == {"text": TEXT}


def test_health_and_metrics_are_told(server):
    assert server.http.get("/health").json() == {"status": "ready"}
    text = server.http.get("/metrics").text
    assert 'handscroll_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert 'handscroll_tokens_total{kind="cached",model="tiny"}' in text and "handscroll_blocks{" in text
    page = server.http.get("/")
    assert page.headers["content-type"].startswith("text/html") and "page/js/app.js" in page.text
