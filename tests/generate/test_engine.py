"""The engine against `decode` of each prompt alone: whatever runs beside, is shared, cancelled or read again."""

import pytest
import torch

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.cache.reading.store import Store
from handscroll.generate.engine.engine import Engine
from handscroll.generate.engine.independent import rows_together
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.kernels.formats import FORMATS
from handscroll.kernels.native import calls
from handscroll.kernels.native.library import library, reason
from handscroll.models.bloom import Bloom, BloomConfig
from handscroll.models.fingerprint import identity
from handscroll.models.gpt2 import GPT2, GPT2Config
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.weights import load_model
from handscroll.nn.marks import Marks
from handscroll.nn.positions.rotary import Rotary
from handscroll.nn.quantised import quantise
from tests.conformance.families import reference, save
from tests.generate.asking import decode
from tests.naming import naming

needs_library = pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}")
GREEDY = Sampling(max_tokens=24, ignore_eos=True)
SAMPLED = Sampling(max_tokens=24, temperature=1.1, top_p=0.95, seed=7, repetition_penalty=1.2, ignore_eos=True)


def randomised(model, dtype=torch.float32):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.15) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def llama(dtype=torch.float32, windows=(None, None, None), scaling=None, context=4096):
    """Small, with sizes at which rows may share a forward in deterministic mode."""
    positions = {"base": 500.0, "scaling": scaling or {"name": "none"}, "context": context, "trained": 64}
    sizes = {"vocab": 97, "width": 64, "layers": 3, "heads": 4, "kv_heads": 2, "head_size": 32, "mlp_width": 128}
    return randomised(Llama(LlamaConfig(**sizes, windows=windows, positions=positions, bos=1, eos=(2,))), dtype)


def gpt2(dtype=torch.float32):
    config = GPT2Config(vocab=97, width=64, layers=3, heads=2, mlp_width=128, context=512, bos=1, eos=(2,))
    return randomised(GPT2(config), dtype)


MODELS = {
    "llama": llama,
    "window": lambda dtype=torch.float32: llama(dtype, windows=(20, None, 20)),
    "gpt2": gpt2,
    "gpt2-int8": lambda dtype=torch.float32: quantise(gpt2(dtype)),
}


def prompts_of(counts, seed=0, begin=()):
    stream = torch.Generator().manual_seed(seed)
    return [[*begin, *torch.randint(3, 97, (count,), generator=stream).tolist()] for count in counts]


def alone(model, prompt, sampling, **options):
    return [item.token for step in decode(model, [prompt], sampling, model.config.eos, **options) for item in step]


def finished(engine):
    """Run to the end; no block may be lost."""
    for _ in engine.run():
        pass
    assert engine.blocks.available == engine.blocks.count
    return engine


@pytest.mark.parametrize(
    ("name", "sampling", "deterministic", "dtype"),
    [
        (name, sampling, deterministic, dtype)
        for name in MODELS
        for sampling in (GREEDY, SAMPLED)
        for deterministic, dtype in ((False, torch.float64), (True, torch.float32))
        # Rounded weights round what comes in to 16 bits, so float32 paths differ by 2e-4: a drawn token may differ.
        if not (name == "gpt2-int8" and sampling is SAMPLED and dtype == torch.float32)
    ],
)
def test_every_request_equals_decoding_it_alone(name, sampling, deterministic, dtype):
    model = MODELS[name](dtype)
    engine = Engine(model, blocks=120, block=8, deterministic=deterministic, budget=64, poison=True)
    prompts = prompts_of((5, 70, 1, 130, 17, 64))
    requests = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
    finished(engine)
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.answer == alone(model, prompt, sampling)
        assert (request.finish, len(request.logprobs)) == ("length", 24)


@pytest.mark.parametrize("family", ["mistral-window", "qwen2-window", "qwen3", "llama-mha", "gpt2-untied"])
def test_families_end_at_their_end_tokens(family, tmp_path):
    model = load_model(save(reference(family), tmp_path))
    engine = Engine(model, blocks=60, block=4, budget=16)
    prompts, sampling = prompts_of((5, 30, 17, 23)), Sampling(max_tokens=30, temperature=1.5, seed=1)
    requests = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
    finished(engine)
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.answer == alone(model, prompt, sampling)
        assert request.finish == ("eos" if request.answer[-1] in model.config.eos else "length")


def test_log_probabilities_are_the_models_own():
    model = llama(torch.float64)
    engine = Engine(model, blocks=40, block=8)
    requests = [engine.submit(Request(prompt, SAMPLED)) for prompt in prompts_of((5, 40))]
    finished(engine)
    for request in requests:
        with torch.no_grad():
            whole = model(torch.tensor([request.tokens]))[0].log_softmax(-1)
        want = [whole[at - 1, request.tokens[at]].item() for at in range(request.asked, len(request.tokens))]
        assert request.logprobs == pytest.approx(want, abs=1e-9)


def test_rows_of_different_rotary_tables_do_not_mix():
    scaling = {"name": "dynamic-ntk", "factor": 4.0, "original": 64}
    model = llama(scaling=scaling, context=256)
    prompts = prompts_of((10, 70, 12, 150, 90), begin=range(3, 20))
    engine = Engine(model, blocks=100, block=8, budget=32)
    requests = [engine.submit(Request(prompt, GREEDY)) for prompt in prompts]
    finished(engine)
    assert len({request.bucket for request in requests}) == 3
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.answer == alone(model, prompt, GREEDY)


def answers(engine, prompts, sampling):
    requests = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
    finished(engine)
    return [(request.answer, request.logprobs) for request in requests]


@pytest.mark.promise("R12")
@needs_library
@pytest.mark.parametrize(
    ("name", "dtype", "together"),
    [
        ("llama", torch.float32, "shared"),
        ("llama", torch.bfloat16, "shared"),
        ("window", torch.bfloat16, "shared"),
        ("gpt2", torch.float32, "shared"),
        ("gpt2-int8", torch.float32, "shared"),
        ("llama", torch.float32, "alone"),
    ],
)
def test_deterministic_mode_gives_the_same_bits_in_any_company(name, dtype, together, monkeypatch):
    """Batches of 1 to 16, several orders, neighbours that share a beginning, blocks that run out."""
    model = MODELS[name](dtype)
    if together == "alone":  # as without compiled products
        monkeypatch.setattr(calls, "refuses_product", lambda *tensors: "left out")
    most = calls.alike(FORMATS["int8"].number) if "int8" in name else calls.FEW
    assert rows_together(model) == (most if together == "shared" else 1)
    prompts = prompts_of((5, 70, 1, 130, 17), begin=range(3, 70)) + prompts_of((64, 65, 100))
    sampling = SAMPLED.model_copy(update={"max_tokens": 12})
    want = []
    for prompt in prompts:
        want += answers(Engine(model, blocks=200, block=8, deterministic=True), [prompt], sampling)
    for order in ([0, 1], [3, 2, 1], [7, 0, 6, 4], [*range(8), *range(8)], [*range(7, -1, -1)], [3, 3, 5, 5, 1]):
        for blocks in (200, 35) if order[-1] in (7, 1) else (200,):
            engine = Engine(model, blocks=blocks, block=8, deterministic=True, poison=True)
            got = answers(engine, [prompts[number] for number in order], sampling)
            assert got == [want[number] for number in order]
            assert answers(engine, [prompts[order[0]]], sampling) == [want[order[0]]]  # after what was kept


@needs_library
def test_rows_share_a_forward_only_where_their_bits_allow_it():
    assert rows_together(llama()) == calls.FEW
    assert rows_together(quantise(llama())) == calls.alike(FORMATS["int8"].number) <= calls.FEW
    assert rows_together(llama(torch.float64)) == 1
    model = llama()
    for change in ({"mlp_width": 100}, {"head_size": 16}, {"mlp_width": 1 << 15}):
        model.config = llama().config.model_copy(update=change)
        assert rows_together(model) == 1
    model.config = llama().config.model_copy(update={"mlp_width": 8192})
    assert rows_together(model) == 3


def test_a_shared_beginning_is_read_once_and_changes_nothing():
    model = llama()
    begin = prompts_of((100,), seed=5)[0]
    prompts = prompts_of((9, 3, 30), begin=begin)
    engine, read = Engine(model, blocks=100, block=8, budget=64), []
    _note_reads(engine, read)
    first = engine.submit(Request(prompts[0], GREEDY))
    finished(engine)
    assert sum(read) == 109 + 23
    read.clear()
    others = [engine.submit(Request(prompt, GREEDY)) for prompt in prompts[1:]]
    finished(engine)
    assert sum(read) == (103 - 96) + (130 - 96) + 2 * 23  # 96: the whole blocks of the 100
    for prompt, request in zip(prompts, [first, *others], strict=True):
        assert request.answer == alone(model, prompt, GREEDY)
    read.clear()
    chat = engine.submit(Request([*first.tokens, 5, 6, 7], GREEDY))  # an answer is a beginning too
    finished(engine)
    assert sum(read) == len(first.tokens) + 3 - 128 + 23
    assert chat.answer == alone(model, [*first.tokens, 5, 6, 7], GREEDY)


def test_requests_that_come_together_share_what_the_first_reads():
    model, read = llama(), []
    engine = Engine(model, blocks=100, block=8, budget=64)
    _note_reads(engine, read)
    prompts = prompts_of((9, 3, 30), begin=prompts_of((128,), seed=5)[0])
    requests = [engine.submit(Request(prompt, GREEDY)) for prompt in prompts]
    finished(engine)
    assert sum(read) == 128 + 9 + 3 + 30 + 3 * 23
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.answer == alone(model, prompt, GREEDY)


@pytest.mark.promise("R34")
def test_owners_never_share():
    model, read = llama(), []
    engine = Engine(model, blocks=100, block=8)
    _note_reads(engine, read)
    (prompt,) = prompts_of((100,))
    for owner in ("", "anna", "bert"):
        read.clear()
        engine.submit(Request(prompt, GREEDY), owner=owner)
        finished(engine)
        assert sum(read) == 100 + 23
    read.clear()
    engine.submit(Request(prompt, GREEDY), owner="anna")
    finished(engine)
    assert sum(read) == 4 + 23


def _note_reads(engine, read):
    """Note how many tokens each forward of the engine reads."""
    real = engine.model.hidden

    def noting(embeddings, *others):
        read.append(embeddings.shape[0] * embeddings.shape[1])
        return real(embeddings, *others)

    engine.model.hidden = noting


@pytest.mark.parametrize("deterministic", [True, False])
def test_when_blocks_run_out_the_last_one_waits_and_writes_the_same(deterministic):
    model = llama()
    engine = Engine(model, blocks=14, block=8, deterministic=deterministic, budget=64, poison=True)
    prompts = prompts_of((30, 40, 20))
    sampling = Sampling(max_tokens=60, ignore_eos=True, temperature=0.9, seed=3)
    requests = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
    back = []
    for _ in engine.run():
        back += [r.number for r in requests if r.answer and not r.blocks and r.finish is None]
    assert back and 0 not in back  # someone gave blocks back in the middle of its answer; the first never
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.answer == alone(model, prompt, sampling)


@pytest.mark.promise("R35")
@pytest.mark.parametrize(
    ("deterministic", "count"), [(False, 120), (True, 60), pytest.param(False, 500, marks=pytest.mark.long)]
)
def test_random_cancellations_leak_nothing_and_change_nobody(deterministic, count):
    model = llama()
    engine = Engine(model, blocks=40, block=8, deterministic=deterministic, budget=64, poison=True)
    draw = torch.Generator().manual_seed(4)
    prompts = prompts_of((5, 70, 1, 40), begin=range(3, 20)) + prompts_of((64, 9))
    sampling = SAMPLED.model_copy(update={"max_tokens": 9})
    want = [alone(model, prompt, sampling) for prompt in prompts]
    live, cancelled, whole = [], 0, 0
    while cancelled < count:
        while len(live) < 8:
            number = int(torch.randint(len(prompts), (1,), generator=draw))
            live.append((number, engine.submit(Request(prompts[number], sampling), priority=number % 3)))
        for _ in range(int(torch.randint(4, (1,), generator=draw))):
            engine.step()
        _, victim = live.pop(int(torch.randint(len(live), (1,), generator=draw)))
        if victim.finish is None:
            victim.cancel()
            assert victim.finish == "cancelled" and not victim.blocks
            cancelled += 1
        victim.cancel()  # once more: nothing happens
        for number, request in [one for one in live if one[1].finish is not None]:
            assert request.answer == want[number]
            whole += 1
        live = [one for one in live if one[1].finish is None]
        held = {block for _, request in live for block in request.blocks}
        assert engine.blocks.available == engine.blocks.count - len(held)
    finished(engine)
    assert whole > count // 10
    for number, request in live:
        assert request.answer == want[number]


def test_a_callback_may_cancel_and_stop():
    model = llama()
    engine = Engine(model, blocks=40, block=8)
    prompts = prompts_of((9, 9, 9))

    def stops(token):
        if len(stopped.answer) == 3:
            other.cancel()  # its row was in the same forward, after this one
        return len(stopped.answer) == 4

    stopped = engine.submit(Request(prompts[0], GREEDY), on_token=stops)
    other = engine.submit(Request(prompts[1], GREEDY))
    third = engine.submit(Request(prompts[2], GREEDY))
    finished(engine)
    assert stopped.answer == alone(model, prompts[0], GREEDY)[:4] and stopped.finish == "stop"
    assert other.finish == "cancelled" and other.answer == alone(model, prompts[1], GREEDY)[:2]
    assert third.answer == alone(model, prompts[2], GREEDY)


def test_a_long_prompt_does_not_stop_short_ones():
    """Counted in steps: beside a prompt of 3,000 tokens, short requests begin at once and go on in every step."""
    model = llama()
    engine = Engine(model, blocks=500, block=8, budget=64)
    early = engine.submit(Request(prompts_of((20,))[0], Sampling(max_tokens=200, ignore_eos=True)))
    engine.step()
    (long,) = prompts_of((3000,), seed=1)
    slow = engine.submit(Request(long, GREEDY))
    engine.step()
    late = [engine.submit(Request(prompt, GREEDY)) for prompt in prompts_of((20, 30), seed=2)]
    for step in range(40):
        before = len(early.answer)
        engine.step()
        assert len(early.answer) == before + 1
        if step == 3:
            assert all(request.answer for request in late)
    assert not slow.answer and all(request.finish == "length" for request in late)
    finished(engine)
    assert slow.answer == alone(model, long, GREEDY)


def test_high_priority_goes_first_and_low_priority_does_not_starve():
    model = llama()
    engine = Engine(model, blocks=40, block=8, most=1)
    first, low, high = (
        engine.submit(Request(prompt, Sampling(max_tokens=4, ignore_eos=True)), priority=level)
        for prompt, level in zip(prompts_of((5, 6, 7)), (0, 0, 5), strict=True)
    )
    order = []
    for _ in engine.run():
        order += [r for r in (first, low, high) if r.finish and r not in order]
    assert order == [high, first, low]
    low = engine.submit(Request(prompts_of((5,))[0], GREEDY))
    for _ in range(600):  # somebody more important is always there
        if engine.blocks.available == engine.blocks.count or all(r.finish for r in order):
            short = Sampling(max_tokens=4, ignore_eos=True)
            order.append(engine.submit(Request(prompts_of((6,))[0], short), priority=2))
        engine.step()
    assert low.finish == "length"


def test_a_request_goes_on_after_a_saved_reading(tmp_path, monkeypatch):
    model, store = llama(), Store(tmp_path)
    text = prompts_of((90,))[0]
    cache = model.new_cache()
    with torch.no_grad():
        model(torch.tensor([text]), Marks.run(0, 90), cache)
    store.save(identity(model, "test", 90), torch.tensor(text), cache, None, "test")
    reading = store.find(identity(model, "test", 90), torch.tensor(text))
    assert reading is not None
    prompts = prompts_of((5, 40), begin=text) + prompts_of((30,))
    over, few = [], calls.decode_runs

    def counted(q, runs, *more):
        over.extend((q.shape[2], run.length) for run in runs.table)
        return few(q, runs, *more)

    monkeypatch.setattr(calls, "decode_runs", counted)
    for deterministic in (True, False):
        engine, read = Engine(model, blocks=40, block=8, deterministic=deterministic, poison=True), []
        _note_reads(engine, read)
        known = [None if n == 2 else reading.part(88) for n in range(len(prompts))]
        requests = [engine.submit(Request(p, GREEDY, reading=r)) for p, r in zip(prompts, known, strict=True)]
        finished(engine)
        assert sum(read) == 2 * 2 + 5 + 40 + 30 + 3 * 23
        assert library() is None or (2, 88) in over  # both requests read the text in one pass
        over.clear()
        for prompt, request in zip(prompts, requests, strict=True):
            assert request.answer == alone(model, prompt, GREEDY)
        del model.hidden
    with pytest.raises(DataError, match="reading"):
        engine.submit(Request(prompts[2], GREEDY, reading=reading))
    with pytest.raises(DataError, match="at least one"):
        engine.submit(Request(text, GREEDY, reading=reading))


def test_what_can_never_fit_is_refused_with_the_numbers():
    model = llama()
    one = 8 * model.config.spec.cache_bytes(1, 4)
    with pytest.raises(CapacityError, match=naming(f"{one - 1:,} bytes", "8 tokens", f"{one:,} bytes")):
        Engine(model, memory=one - 1, block=8)
    with pytest.raises(CapacityError, match="0 blocks"):
        Engine(model, blocks=0)
    assert Engine(model, memory=2 * one - 1, block=8).blocks.count == 1
    engine = Engine(model, memory=10 * one, block=8)
    assert engine.pool.nbytes == 10 * one
    with pytest.raises(CapacityError, match=naming("prompt 0", "81 tokens", "11 blocks", "10")):
        engine.submit(Request(prompts_of((58,))[0], GREEDY))
    fits = engine.submit(Request(prompts_of((57,))[0], GREEDY))
    finished(engine)
    assert len(fits.answer) == 24
    with pytest.raises(CapacityError, match=r"\b4096\b"):
        engine.submit(Request(prompts_of((4090,))[0], GREEDY))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, naming("memory", "blocks")),
        ({"memory": 1 << 20, "blocks": 4}, naming("memory", "blocks")),
        ({"blocks": 4, "block": 0}, naming("block", 0)),
        ({"blocks": 4, "budget": 0}, naming("budget", 0)),
        ({"blocks": 4, "budget": 32, "deterministic": True}, naming("budget", 32, 64)),
        ({"blocks": 4, "most": 0}, naming("most", 0)),
    ],
)
def test_impossible_engines_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Engine(llama(), **options)


def test_positions_that_blocks_cannot_tell_are_refused():
    bands = {"name": "self-extend", "factor": 4.0, "original": 64, "window": 20, "group": 6}
    with pytest.raises(ConfigError, match="self-extend"):
        Engine(llama(scaling=bands, context=256), blocks=4)
    with pytest.raises(ConfigError, match="ALiBi"):
        Engine(Bloom(BloomConfig(vocab=97, width=32, layers=2, heads=4, context=256)), blocks=4)


def test_impossible_requests_are_refused():
    model = llama()
    engine = Engine(model, blocks=10, block=8)
    with pytest.raises(DataError, match=r"\b97\b"):
        engine.submit(Request([5, 97], GREEDY))
    with pytest.raises(ConfigError, match="tokenizer"):
        engine.submit(Request([5], Sampling(stop=("x",))))
    assert engine.idle
    with torch.no_grad():
        model.head[0, 0] = torch.nan
    engine.submit(Request([5], GREEDY))
    with pytest.raises(CheckpointError, match="numbers"):
        engine.step()


def test_a_model_whose_scaling_depends_on_the_length_and_a_reading_of_another(tmp_path):
    scaling = {"name": "dynamic-ntk", "factor": 4.0, "original": 64}
    model, store = llama(scaling=scaling, context=256), Store(tmp_path)
    text, cache = prompts_of((60,))[0], llama().new_cache()
    with torch.no_grad():
        model(torch.tensor([text]), Marks.run(0, 60), cache, length=64)
    number = store.save(identity(model, "test", 64), torch.tensor(text), cache, None, "test")
    with pytest.raises(ConfigError, match="again"):
        Engine(model, blocks=10).submit(Request([*text, 5], GREEDY, reading=store.open(number)))


def test_positions_are_checked_by_the_same_rules_as_decode():
    assert isinstance(llama().config.positions, Rotary)
    engine = Engine(gpt2(), blocks=100)
    with pytest.raises(CapacityError, match=r"\b512\b"):
        engine.submit(Request(prompts_of((500,))[0], GREEDY, beyond=True))
