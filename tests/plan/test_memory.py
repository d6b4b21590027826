"""Forecasts from shapes: numbers by hand, and what must grow with what."""

import itertools

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Footprint, Workload
from handscroll.models.bert import Bert, BertConfig
from handscroll.models.bloom import BloomConfig
from handscroll.models.glm import GLMConfig
from handscroll.models.gpt2 import GPT2, GPT2Config
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.lstm import LSTM, LSTMConfig
from handscroll.models.model import Model
from handscroll.models.t5 import T5, T5Config
from handscroll.nn.positions.slopes import Slopes
from handscroll.plan import inference, memory
from handscroll.plan.choose import check, options
from handscroll.plan.forecast import disk_bytes, predict
from handscroll.plan.layer import Layer
from handscroll.train.lora import LoRA, add_lora
from tests.conformance.families import FORMS
from tests.plan.conftest import SIZES, llama

POSITIONS = {"base": 1e4, "scaling": {"name": "none"}, "context": 64, "trained": 64}
LLAMA = {"vocab": 90, "width": 24, "layers": 3, "heads": 4, "kv_heads": 2, "head_size": 6, "mlp_width": 40}
STRATEGIES = [
    {"strategy": "plain"},
    {"strategy": "checkpoint"},
    {"strategy": "chunk-outer", "chunk": 512},
    {"strategy": "layer-outer", "chunk": 512},
    {"strategy": "staged", "stage_layers": 2, "chunk": 512},
    {"strategy": "layer-outer", "chunk": 512, "offload": "disk"},
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("family", ["llama", "gpt2", "glm4", "lstm", "t5", "t5 relu"])
def test_parameters_are_those_of_the_model(family, rank, tied):
    if family == "llama":
        model: Model = Llama(LlamaConfig(**LLAMA, tied=tied, positions=POSITIONS))
    elif family == "glm4":
        sizes = LLAMA | {"rotated_size": 2, "attention_bias": False, "positions": POSITIONS}
        model = Llama(GLMConfig.parse(sizes | {"family": family, "tied": tied}, "test"))
    elif family.startswith("t5"):
        sizes = {name: size for name, size in LLAMA.items() if name != "kv_heads"} | {"encoder_layers": 2, "start": 0}
        model = T5(T5Config(**sizes, mlp="relu" if "relu" in family else "gated-gelu", tied=tied, buckets=8))
    elif family == "lstm":
        if rank:
            return  # it has no projections to adapt
        model = LSTM(LSTMConfig(vocab=90, width=24, layers=3, trained=64, tied=tied))
    else:
        model = GPT2(GPT2Config(vocab=90, width=24, layers=3, heads=4, mlp_width=96, context=64, tied=tied))
    if rank:
        add_lora(model, LoRA(rank=rank))
    run = Workload(spec=model.spec, lora=rank, length=64)
    assert run.parameters == sum(p.numel() for p in model.parameters())
    assert run.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert run.largest == max(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "olmo2", "gpt2", "gpt2-untied", "glm4", "t5-v1.1"])
def test_tables_that_are_trained_beside_an_adapter_are_counted(name):
    model = FORMS[name].build(torch.float32)
    add_lora(model, LoRA(rank=2, tables=True))
    run = Workload(spec=model.spec, lora=2, tables=True, length=64, strategy="plain")
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert (run.trainable, run.largest) == (sum(trained), max(trained))
    assert memory.state_bytes(run) == 8 * sum(trained)
    assert disk_bytes(run) == 3 * (4 + 8) * sum(trained) + 4 * run.parameters


def test_a_tied_head_has_a_gradient_where_its_table_is_trained(workload):
    adapted = workload(lora=4)
    tables = adapted.changed(tables=True)
    head = 4 * adapted.spec.table
    assert memory.loss_bytes(tables, 2048) == memory.loss_bytes(adapted, 2048) + head
    found, before = memory.phases(tables), memory.phases(adapted)
    assert found["mlp"]["gradients"] == head and before["mlp"]["gradients"] == 0
    assert found["update"]["gradients"] == 4 * tables.trainable > 4 * adapted.trainable
    untied = tables.changed(spec=llama(tied=False))
    assert memory.loss_bytes(untied, 2048) == memory.loss_bytes(adapted, 2048)
    # a norm that is trained keeps its scaled input: two in each of six layers, and one behind them
    more = found["loss"]["kept"] - before["loss"]["kept"]
    assert more == 2048 * (6 * 2 + 1) * 4 * 256


def test_optimisers_keep_of_trained_tables_what_they_keep_of_all_weights(workload):
    adapted = workload(lora=4, tables=True)
    table, norms = adapted.spec.table, adapted.trainable - adapted.adapted - adapted.spec.table
    state = {name: memory.state_bytes(adapted.changed(optimizer=name)) for name in ("sgd", "muon", "adafactor")}
    assert state["sgd"] == 4 * adapted.trainable
    assert state["muon"] == 4 * adapted.adapted + 8 * (table + norms), "two moments for a table, one for a matrix"
    assert state["adafactor"] < 4 * (adapted.adapted // 2 + 1024 + 256 + norms) + 100


def test_the_best_weights_lie_on_disk_beside_the_checkpoints(workload):
    """Two copies are kept and one for each checkpoint, and one more is there while it is written."""
    adapted = workload(lora=4, keep=4)
    more = disk_bytes(adapted.changed(best=True)) - disk_bytes(adapted)
    assert more == 7 * 4 * adapted.trainable


def test_the_host_of_a_gpu_holds_the_model_while_it_is_made_and_then_the_text(workload, machine):
    here = machine(100_000)
    run = workload(device="cuda", lora=4, micro=3)
    bare = here.calibration.base
    assert predict(run, here).host == bare + 4 * run.spec.parameters
    text = 10**9
    batches = 3 * 2048 * 8 * 2
    assert predict(run.changed(data_bytes=text), here).host == bare + text + batches
    chunked = run.changed(strategy="layer-outer", chunk=512, offload="host", data_bytes=text)
    assert predict(chunked, here).host == bare + text + batches + sum(memory.carried(chunked).values())


@pytest.mark.parametrize("encoder", [False, True])
def test_page_locked_blocks_are_rounded_up_to_a_power_of_two(workload, encoder):
    sizes = {name: size for name, size in SIZES.items() if name != "kv_heads"}
    spec = T5Config(**sizes, encoder_layers=2, start=0, buckets=8).spec if encoder else llama()
    run = workload(spec=spec, device="cuda", data_bytes=10**9, strategy="layer-outer", chunk=384, offload="host")
    kept = sum(memory.carried(run).values())
    bare = memory.host_bytes(run.changed(offload="none"))
    assert memory.host_bytes(run) - bare == pytest.approx(kept * 512 / 384)


def test_what_was_read_before_is_not_counted_again(workload, machine):
    parts = {
        past: predict(workload(kind="generate", strategy="auto", length=100, new=9, past=past), machine(2000)).parts
        for past in (0, 5000)
    }
    each = 2 * 6 * 128 * 4
    assert parts[0]["cache"] == parts[5000]["cache"] == each * 108
    evicting = workload(kind="generate", strategy="auto", length=100, past=5000, cache=Footprint(each=1000, most=200))
    assert predict(evicting, machine(2000)).parts["cache"] == 1000 * (300 - 201)
    whole = inference.phases(workload(kind="generate", strategy="auto", length=5100, new=9))
    assert (
        inference.phases(workload(kind="generate", strategy="auto", length=100, new=9, past=5000))["token"]
        == whole["token"]
    )


def test_bias_tensors_of_a_tile_are_counted(workload):
    """Of 512 queries over 1,024 keys, the bias and its sum with the mask; of a new token over all keys."""
    plain = workload(kind="generate", strategy="auto", length=4096, new=1)
    biased = plain.changed(spec=plain.spec.model_copy(update={"positions": (Slopes(context=64, trained=64),)}))
    more = {name: inference.phases(biased)[name]["work"] - inference.phases(plain)[name]["work"] for name in ("token",)}
    assert more["token"] == 2 * 4 * 8 * 4097
    tile = 4 * (2 * 8 + 1) * 512 * 1024
    assert inference.phases(biased)["prompt"]["work"] > tile
    assert BloomConfig(vocab=90, width=24, layers=3, heads=4, context=64).spec.bias == "fixed"


@pytest.mark.parametrize("heads", [{"masked": False}, {"pooler": True}, {"pooler": True, "following": True}])
def test_parameters_of_an_encoder(heads):
    model = Bert(BertConfig(vocab=90, width=24, layers=3, heads=4, mlp_width=96, context=64, offset=2, **heads))
    spec = model.spec
    assert not spec.cached and spec.parameters == sum(p.numel() for p in model.parameters())


def test_an_encoder_decoder_by_hand(workload, machine):
    """1,843 tokens of source and 410 of target in a text of 2,048; encoder of 4 layers, decoder of 3, 4 heads of 16."""
    sizes = {"vocab": 90, "width": 32, "layers": 3, "encoder_layers": 4, "heads": 4, "head_size": 16, "mlp_width": 40}
    text = workload(spec=T5Config(**sizes, start=0).spec, chunk=256, strategy="layer-outer", read=0.9, written=0.2)
    assert [len(side.spec.layers) for side in text.sides] == [4, 3]
    assert [side.length for side in text.sides] == [1844, 410]
    # inputs of encoder layers 2 to 4, their end and its gradient; of decoder layers 2 and 3
    assert memory.carried(text)["inputs"] == 4 * 32 * (5 * 1844 + 2 * 410)
    # of one layer: the encoder's or the decoder's of the source, and the decoder's own of all chunks but the last
    assert memory.carried(text)["keys"] == 4 * 2 * 4 * 16 * (2 * 1844 + 256)
    assert {one.workload.strategy for one in options(text.changed(strategy="auto", chunk=0), machine(10_000))} == {
        "plain",
        "checkpoint",
        "layer-outer",
    }
    order = [{"strategy": "plain", "chunk": 0}, {"strategy": "checkpoint", "chunk": 0}, {}, {"offload": "disk"}]
    peaks = [predict(text.changed(length=65_536, **strategy), machine(10_000)).host for strategy in order]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 4
    longer, shorter = (predict(text.changed(written=share), machine(10_000)) for share in (0.4, 0.2))
    assert longer.host > shorter.host and longer.seconds > shorter.seconds


def test_an_encoder_keeps_one_input_more_and_all_keys(workload, machine):
    spec = workload().spec.model_copy(update={"reads": "both", "transformed": True})
    there = {"spec": spec, "chunk": 512}
    carried = memory.carried(workload(strategy="layer-outer", **there))
    assert carried["inputs"] == 6 * 2048 * 256 * 4 and carried["keys"] == 2 * 2048 * 128 * 4
    assert {one.workload.strategy for one in options(workload(spec=spec, strategy="auto"), machine(10_000))} == {
        "plain",
        "checkpoint",
        "layer-outer",
    }
    with pytest.raises(ConfigError, match="causal"):
        check(workload(strategy="chunk-outer", **there), machine(10_000))
    with pytest.raises(ConfigError, match="generates"):
        check(workload(kind="generate", strategy="auto", spec=spec), machine(10_000))
    few = memory.loss_bytes(workload(spec=spec, targets=0.15), 2048)
    assert few < memory.loss_bytes(workload(), 2048)


def test_what_a_layer_keeps_by_hand(workload):
    """D 256, H E 256, K E 128, H 8, F 688: 4 (6 D + 3 H E + 2 K E + H + 4 F + 2) bytes a token."""
    assert Layer.widest(workload()).kept == 4 * (6 * 256 + 3 * 256 + 2 * 128 + 8 + 4 * 688 + 2) + 0
    narrow = Layer.widest(workload(precision="bfloat16")).kept
    # float32: two inputs and two scaled inputs of norms, two root mean squares, log-sum-exps; bfloat16: five copies
    # of the norms' outputs, q, k, v, output twice, four of the MLP.
    assert narrow == 4 * (4 * 256 + 2 + 8) + 2 * (5 * 256 + 3 * 256 + 2 * 128 + 4 * 688)
    assert Layer.widest(workload(mlp_tile=256)).kept < 0.5 * Layer.widest(workload()).kept


def test_the_widest_moment_of_a_plain_step_by_hand(workload):
    """In the loss: all layers, the final norm (3 D), rotary tables and marks, and one chunk of logits (1,024 wide)."""
    found = memory.phases(workload())["loss"]
    assert found["kept"] == 2048 * (6 * Layer.widest(workload()).kept + 3 * 256 * 4 + 32 * 4 + 8)
    assert found["loss"] == 2048 * 256 * 4 + 1024 * 256 * 4 + 2048 * 1024 * 4


def test_what_chunks_carry_by_hand(workload):
    carried = memory.carried(workload(strategy="staged", stage_layers=2, chunk=512))
    assert carried["inputs"] == 2 * 2048 * 256 * 4
    assert carried["keys"] == 2 * 2 * 1536 * 128 * 4
    assert carried["key gradients"] == carried["keys"]


@pytest.mark.parametrize("settings", STRATEGIES, ids=lambda item: "-".join(map(str, item.values())))
@pytest.mark.parametrize("change", ["length", "rows", "micro", "layers", "width", "vocab"])
def test_more_takes_more(workload, machine, settings, change):
    here = machine(10_000)
    before = workload(**settings)
    if change in ("length", "rows", "micro"):
        after = workload(**settings, **{change: 2 * getattr(before, change)})
    else:
        sizes = {name: 2 * size if name == change else size for name, size in SIZES.items()}
        after = workload(**settings, spec=llama(**sizes))
    small, large = predict(before, here), predict(after, here)
    assert small.host < large.host
    assert small.seconds < large.seconds


def test_strategies_go_down_in_memory_and_up_in_time(workload, machine):
    strategies = [predict(workload(length=8192, **settings), machine(10_000)) for settings in STRATEGIES]
    plain, checkpoint, chunked, layered, staged, disk = (forecast.host for forecast in strategies)
    assert plain > checkpoint > chunked > disk
    assert plain > 2 * layered
    assert layered < staged < chunked
    assert disk < layered
    assert all(strategies[0].seconds < other.seconds for other in strategies[1:])


def test_parts_add_up(workload, machine):
    for settings in STRATEGIES:
        forecast = predict(workload(**settings), machine(10_000))
        assert sum(forecast.parts.values()) == forecast.host


def test_what_stays_by_hand(workload):
    count = workload().parameters
    assert memory.fixed_parts(workload(average=True, rows=2, packed=True)) == {
        "weights": 4 * count,
        "optimizer": 8 * count,
        "average": 4 * count,
        "data": 2 * 2048 * 8 * 5,
    }
    assert memory.fixed_parts(workload(steps=1))["optimizer"] == 0


def test_optimisers_keep_what_they_keep(workload):
    count = workload().trainable
    state = {name: memory.state_bytes(workload(optimizer=name)) for name in ("adamw", "sgd", "muon", "adafactor")}
    assert state["adamw"] == 8 * count
    assert state["sgd"] == 4 * count
    assert 4 * count < state["muon"] < 8 * count
    assert state["adafactor"] < 0.05 * count * 4


def test_disk_counts_one_checkpoint_more_than_are_kept(workload):
    here = workload(keep=3)
    assert disk_bytes(here) == 4 * (4 + 8) * here.parameters + 4 * here.parameters


def test_generation_grows_by_its_cache(workload, machine):
    sizes = [
        predict(workload(kind="generate", strategy="auto", length=length, new=1), machine(10_000)).parts["cache"]
        for length in (1024, 2048)
    ]
    assert sizes[0] == 2 * 6 * 1024 * 128 * 4
    assert sizes[1] == 2 * sizes[0]
    for one, other in itertools.pairwise(sizes):
        assert one < other


def test_a_state_does_not_grow_and_its_steps_follow_each_other(workload, machine):
    spec = LSTMConfig(vocab=1024, width=256, layers=3, trained=64).spec
    state = 2 * 3 * 256 * 4
    for length in (512, 1 << 20):
        asked = workload(spec=spec, kind="generate", length=length, new=64)
        assert predict(asked, machine(4000)).parts["cache"] == state
    chunked = workload(spec=spec, strategy="chunk-outer", chunk=256, length=4096)
    assert memory.carried(chunked) == {"inputs": 0, "keys": 15 * state, "key gradients": 15 * state}
    longer = predict(chunked.changed(length=1 << 20), machine(4000))
    assert longer.host - predict(chunked, machine(4000)).host < 100e6  # 53 MB of them are tokens and targets
    # 256 times the tokens: the same seconds a token, but for what an update costs once.
    assert longer.seconds / predict(chunked, machine(4000)).seconds == pytest.approx(256, rel=0.05)


def test_a_windowed_layer_keeps_its_window_and_no_more(workload, machine):
    """Two of six layers see all: they grow by the token, the others stay at 512 tokens once the prompt is read."""
    spec = llama(windows=(512, 512, None) * 2)
    each = 2 * 128 * 4  # of a layer, a token
    footprint = inference.footprint(workload(kind="generate", strategy="auto", spec=spec))
    assert footprint.held(4096) == each * (2 * 4096 + 4 * 512) == spec.cache_bytes(4096, 4)
    assert inference.footprint(workload(kind="generate", strategy="auto")).held(4096) == each * 6 * 4096
    long, short = (
        predict(workload(kind="generate", strategy="auto", spec=spec, length=length, new=1), machine(2000)).parts[
            "cache"
        ]
        for length in (8192, 4096)
    )
    assert long - short == each * 2 * 4096
