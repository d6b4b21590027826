"""Adapters of PEFT over bases of several families and formats: equal logits, merged or not, and refusals."""

import json
import shutil
import warnings
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import handscroll
import handscroll.lm
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.cache.reading.store import Store
from handscroll.extend.tune import TuneSettings, Tuning
from handscroll.kernels.formats import FORMATS
from handscroll.models.adapters import Weighted, adapt, merge, weighted
from handscroll.models.documents import judged
from handscroll.models.weights import load_model, save_model
from handscroll.nn.quantised import Quantised
from handscroll.text.framed import Framed
from handscroll.train.lora import LoRA, add_lora
from tests.cli.material import run
from tests.conformance.families import reference, save
from tests.models.heads import PLAIN
from tests.text.small import trained as tokenizer

TOKENIZER = tokenizer("bpe")
ROUNDED = 2e-3  # of int8 weights, whose products round their rows; by torch's products it is 1.0e-3 on these models
KINDS = {
    "plain": {"r": 4},
    "rslora": {"r": 4, "use_rslora": True, "lora_alpha": 3},
    "dora": {"r": 4, "use_dora": True, "bias": "all"},
    "patterns": {"r": 4, "lora_alpha": 5},
}
# Family -> its projections, and whole modules to save.
TARGETS = {
    "llama": (["q_proj", "v_proj", "down_proj"], ["lm_head", "norm"]),
    "qwen2": (["k_proj", "o_proj", "gate_proj"], ["input_layernorm"]),
    "gpt2": (["c_attn", "c_fc", "c_proj"], ["ln_f"]),
    "gemma3_text": (["q_proj", "up_proj"], ["norm"]),
    "bloom": (["query_key_value", "dense_4h_to_h"], ["ln_f"]),
    "glm": (["q_proj", "v_proj", "gate_up_proj"], ["norm"]),
    "bert": (["query", "output.dense"], ["cls"]),
    "phi3": (["qkv_proj", "gate_up_proj", "down_proj"], ["norm"]),
    "gpt_neox": (["query_key_value", "dense_4h_to_h"], ["final_layer_norm"]),
    "mixtral": (["q_proj", "o_proj"], ["norm"]),
}


@pytest.fixture
def tokens():
    return torch.randint(3, 90, (2, 20), generator=torch.Generator().manual_seed(0))


def trained(base, folder, **settings):
    """The logits of the reference library under an adapter that is no longer zero, which is saved in `folder`."""
    torch.manual_seed(5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what peft says about itself
        model = peft.get_peft_model(base, peft.LoraConfig(**settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder)
    return model.eval()


def settings_of(family, kind):
    targets, whole = TARGETS[family]
    settings = {"target_modules": targets, "modules_to_save": whole, **KINDS[kind]}
    if kind == "patterns":
        settings |= {"rank_pattern": {targets[0]: 2}, "alpha_pattern": {rf".*\.1\..*{targets[-1]}": 9}}
        settings |= {"layers_to_transform": [0, 1]}
    return settings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TARGETS)
def test_equals_peft(tmp_path, tokens, family, kind):
    base = reference(family)
    folder = save(base, tmp_path / "base")
    want = trained(base, tmp_path / "adapter", **settings_of(family, kind))
    model = load_model(folder)
    before = model(tokens).detach()
    adapt(model, weighted(tmp_path / "adapter"))
    with torch.no_grad():
        logits = want(tokens)[0]
        assert (before - logits).abs().max() > 0.01
        torch.testing.assert_close(model(tokens), logits, atol=1e-4, rtol=1e-4)
        merge(model)
        torch.testing.assert_close(model(tokens), logits, atol=1e-4, rtol=1e-4)


def tied(folder, own_head=False, **changes):
    """A Llama with a tied head, unless it has its own, and the tokenizer of the tests, in a folder."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=not own_head, bos_token_id=None, eos_token_id=299, **changes,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    TOKENIZER.save(folder)
    return model


def logits_of(model, tokens):
    with torch.no_grad():
        return model(tokens).logits[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [9, 5]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [9, 5], "lm_head": [7, 4]}},
    ],
    ids=[
        "table",
        "head",
        "both whole",
        "whole head",
        "whole table",
        "tied whole table",
        "tied table",
        "tokens",
        "tokens of table and head",
    ],
)
@pytest.mark.parametrize("rounded", [False, True], ids=["floats", "int8"])
def test_tied_tables_are_changed_as_in_peft(tmp_path, settings, rounded):
    reference = tied(tmp_path / "base")
    ids = torch.tensor([[5, 9, 100, 7, 5]])
    lm = handscroll.load(tmp_path / "base", weights="int8" if rounded else "")
    if rounded:  # the reference gets the same rounded numbers
        for parameter in reference.parameters():
            parameter.data = rounded_like(parameter.data) if parameter.dim() == 2 else parameter.data
        reference.save_pretrained(tmp_path / "base")
    want = logits_of(trained(reference, tmp_path / "adapter", r=4, **settings), ids)
    lm = handscroll.load(tmp_path / "base", weights="int8" if rounded else "", adapter=tmp_path / "adapter")
    limit = ROUNDED if rounded else 1e-4
    torch.testing.assert_close(lm.logits(ids[0]), want, atol=limit, rtol=limit)
    torch.testing.assert_close(lm.nll(ids[0]), loss(want, ids[0]), atol=1e-3, rtol=1e-3)
    if not rounded:
        lm.merge().save(tmp_path / "merged")
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(logits_of(merged, ids), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rounded", [False, True], ids=["floats", "int8"])
def test_trained_tokens_of_an_own_head_are_those_of_peft(tmp_path, rounded):
    base, ids = tied(tmp_path / "base", own_head=True), torch.tensor([[5, 9, 100, 7, 5]])
    if rounded:
        for parameter in base.parameters():
            parameter.data = rounded_like(parameter.data) if parameter.dim() == 2 else parameter.data
        base.save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [9, 5], "lm_head": [7, 4]}}
    want = logits_of(trained(base, tmp_path / "adapter", r=4, **settings), ids)
    lm = handscroll.load(tmp_path / "base", weights="int8" if rounded else "", adapter=tmp_path / "adapter")
    limit = ROUNDED if rounded else 1e-4
    torch.testing.assert_close(lm.logits(ids[0]), want, atol=limit, rtol=limit)
    torch.testing.assert_close(lm.nll(ids[0]), loss(want, ids[0]), atol=1e-3, rtol=1e-3)
    if not rounded:
        torch.testing.assert_close(lm.merge().logits(ids[0]), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, target, changes",
    [
        ("bert", "query", {}),
        ("roberta", "query", {}),
        ("electra", "query", {}),
        ("distilbert", "q_lin", {}),
        ("modernbert", "Wqkv", {"classifier_pooling": "cls"}),
        ("modernbert", "Wqkv", {"classifier_pooling": "mean"}),
    ],
)
def test_a_classifier_of_an_encoder_is_that_of_peft(tmp_path, name, target, changes):
    form = PLAIN[name]
    save_model(form.build(torch.float32), tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text()) | changes
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    whole = ["pooler"] if name == "bert" else None  # PEFT saves the classifier alone, and this base has no pooler
    settings = {"task_type": "SEQ_CLS", "r": 4, "target_modules": [target], "modules_to_save": whole}
    want = trained(base, tmp_path / "adapter", **settings)
    model = adapt(load_model(tmp_path / "base"), weighted(tmp_path / "adapter"))
    rows = [list(range(5, 5 + size)) for size in (12, 7)]
    found = judged(model, [Framed(row, [0] * len(row), [(0, 0)] * len(row), [None] * len(row)) for row in rows])
    with torch.no_grad():
        for row, ours in zip(rows, found, strict=True):
            torch.testing.assert_close(ours, want(torch.tensor([row])).logits[0], atol=1e-4, rtol=1e-4)
    save_model(load_model(tmp_path / "base"), tmp_path / "again")
    assert changes.items() <= json.loads((tmp_path / "again" / "config.json").read_text()).items()


def test_one_of_the_names_of_a_table_of_an_encoder_decoder_is_refused(tmp_path):
    base = reference("t5")
    folder = save(base, tmp_path / "base")
    trained(base, tmp_path / "adapter", r=4, target_modules=["q"], modules_to_save=["shared"])
    with pytest.raises(ConfigError, match="one of several names"):
        adapt(load_model(folder), weighted(tmp_path / "adapter"))


def test_a_table_that_another_adapter_parts_from_its_head_still_changes_both(tmp_path):
    tokens = {"embed_tokens": [9, 5]}
    base, ids = tied(tmp_path / "base"), torch.tensor([5, 9, 100, 7, 5])
    trained(base, tmp_path / "both", r=4, target_modules=["q_proj"], trainable_token_indices=tokens)
    base = tied(tmp_path / "base")
    trained(base, tmp_path / "apart", r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    want = handscroll.load(tmp_path / "base", adapter=tmp_path / "both").logits(ids)
    adapters = [tmp_path / "both", (tmp_path / "apart", 0)]
    torch.testing.assert_close(handscroll.load(tmp_path / "base", adapter=adapters).logits(ids), want)


@pytest.mark.parametrize("biased", [False, True], ids=["without a bias", "with a bias"])
def test_a_bias_of_an_update_is_added_to_that_of_the_base(tmp_path, biased):
    base, ids = tied(tmp_path / "base", attention_bias=biased), torch.tensor([[5, 9, 100, 7]])
    settings = {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 12, "lora_bias": True}
    want = logits_of(trained(base, tmp_path / "adapter", r=4, **settings), ids)
    lm = handscroll.load(tmp_path / "base", adapter=tmp_path / "adapter")
    torch.testing.assert_close(lm.logits(ids[0]), want, atol=1e-4, rtol=1e-4)
    if biased:
        torch.testing.assert_close(lm.merge().logits(ids[0]), want, atol=1e-4, rtol=1e-4)
    else:
        with pytest.raises(ConfigError, match="cannot be merged"):
            lm.merge()


def rounded_like(weight):
    format = FORMATS["int8"]
    return format.dequantise(format.quantise(weight))


def loss(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and two adapters, one of them DoRA with a whole norm."""
    folder = tmp_path_factory.mktemp("adapters")
    for number, settings in enumerate(({"r": 4}, {"r": 2, "use_dora": True, "modules_to_save": ["norm"]})):
        base = tied(folder / "base")
        trained(base, folder / str(number), target_modules=["q_proj", "down_proj"], **settings)
    return folder


def test_several_adapters_add_their_shares(folders):
    ids = [5, 9, 100, 7]
    state = load_model(folders / "base").state_dict()
    changes = []
    for number in "01":
        own = load_model(folders / "base")
        adapt(own, weighted(folders / number))
        merge(own)
        changes.append({name: tensor - state[name] for name, tensor in own.state_dict().items()})
    want = load_model(folders / "base")
    for name, parameter in want.named_parameters():
        parameter.data = state[name] + 0.5 * changes[0][name] - 2 * changes[1][name]
    lm = handscroll.load(folders / "base", adapter=[f"{folders / '0'}=0.5", (folders / "1", -2)])
    assert lm.adapters == (Weighted(folders / "0", 0.5), Weighted(folders / "1", -2.0))
    with torch.no_grad():
        torch.testing.assert_close(lm.logits(ids), want(torch.tensor([ids]))[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(handscroll.load(folders / "base", adapter=(folders / "0", 0)).logits(ids),
                       handscroll.load(folders / "base").logits(ids))  # fmt: skip


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_quantised_base_stays_as_it_is(folders, tmp_path, kind):
    handscroll.load(folders / "base").export_gguf(tmp_path / "base.gguf", kind)
    adapters = [folders / "0", folders / "1"]
    lm = handscroll.load(tmp_path / "base.gguf", adapter=adapters)
    floats = handscroll.load(tmp_path / "base.gguf", weights="float", adapter=adapters)
    query: Any = lm.model.get_submodule("layers.0.attention.query")
    assert isinstance(query.base, Quantised) and "weight" not in dict(query.named_parameters())
    ids = [5, 9, 100, 7]
    torch.testing.assert_close(lm.logits(ids), floats.logits(ids), atol=2e-3, rtol=2e-3)
    with pytest.raises(ConfigError, match="quantised"):
        lm.merge()
    want = floats.logits(ids)
    floats.merge().export_gguf(tmp_path / "merged.gguf", "f32")
    torch.testing.assert_close(handscroll.load(tmp_path / "merged.gguf").logits(ids), want, atol=1e-4, rtol=1e-4)


def test_readings_belong_to_their_adapter(folders, tmp_path):
    store, text = Store(tmp_path / "store"), "the quick brown fox " * 4
    base = handscroll.load(folders / "base")
    half, whole = (handscroll.load(folders / "base", adapter=(folders / "0", share)) for share in (0.5, 1.0))
    kept = base.read(text, store, "plain", room=16)
    assert half.read(text, store, "half", room=16).number != kept.number
    assert store.find(whole.identity(64), kept.tokens) is None
    half.ask("half", "why", store, max_tokens=2)
    for other in (base, whole):
        with pytest.raises(ConfigError, match="another model"):
            other.ask("half", "why", store, max_tokens=2)
    assert handscroll.load(folders / "base", adapter=store.named("half")[0].adapters).adapters == half.adapters
    run("ask", "half", "why", "--store", tmp_path / "store", "--max-tokens", "2")


def test_commands_take_adapters(folders, tmp_path):
    base, adapter = folders / "base", folders / "0"
    plain, own = (run("generate", base, "--prompt", "a", "--max-tokens", "12", "--temperature", "1", *more)
                  for more in ((), ("--adapter", f"{adapter}=8")))  # fmt: skip
    assert plain != own
    said = run("info", base, "--adapter", adapter)
    assert "LoRA of rank 4 on 4 modules (down_proj, q_proj)" in said and "family" in said
    run("export", base, tmp_path / "merged", "--adapter", adapter)
    merged, want = handscroll.load(tmp_path / "merged"), handscroll.load(base, adapter=adapter)
    torch.testing.assert_close(merged.logits([5, 9]), want.logits([5, 9]), atol=1e-4, rtol=1e-4)
    assert merged.provenance["merged"] == [str(adapter)]
    with pytest.raises(ConfigError, match="merge"):
        want.save(tmp_path / "no")
    run("export", base, tmp_path / "int8", "--type", "int8", "--adapter", adapter)
    torch.testing.assert_close(
        handscroll.load(tmp_path / "int8").logits([5, 9]), merged.logits([5, 9]), atol=0.3, rtol=0.1
    )
    run("export", base, tmp_path / "no", "--type", "q4_0", fails="for files that end in .gguf")


def test_a_bfloat16_base_is_merged_in_bfloat16(folders, tmp_path):
    shutil.copytree(folders / "base", tmp_path / "base")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "base" / "model.safetensors").items()}
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    run("export", tmp_path / "base", tmp_path / "merged", "--adapter", folders / "1")
    kept = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}


def test_an_adapter_as_model_finds_its_base_or_says_what_it_is(folders, tmp_path):
    rewrite(folders / "0", tmp_path / "a", base_model_name_or_path=str(folders / "base"))
    lm = handscroll.load(tmp_path / "a")
    assert torch.equal(lm.logits([5, 9]), handscroll.load(folders / "base", adapter=folders / "0").logits([5, 9]))
    assert "LoRA" in run("info", tmp_path / "a")
    rewrite(folders / "0", tmp_path / "b", base_model_name_or_path="someone/model")
    run("generate", tmp_path / "b", "--prompt", "a", fails="is an adapter, not a model: it changes someone/model")
    assert "someone/model" in run("info", tmp_path / "b")
    shutil.copy(folders / "base" / "config.json", tmp_path / "b")  # some trainers write it beside the adapter
    run("generate", tmp_path / "b", "--prompt", "a", fails="is an adapter, not a model")


def rewrite(source, folder, without=(), tensors=None, **changes):
    """A copy of an adapter with another configuration, fewer tensors or others."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    held = load_file(folder / "adapter_model.safetensors")
    held = {name: tensor for name, tensor in held.items() if not name.endswith(tuple(without) or ("\n",))}
    save_file(held | (tensors or {}), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"peft_type": "IA3"}, "only 'LORA'"),
        ({"init_lora_weights": "pissa"}, "changed the base"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"a_key_of_tomorrow": {"x": 1}}, "a_key_of_tomorrow"),
        ({"r": 8}, "rank 8"),
        ({"r": "four"}, "expected a number"),
        ({"lora_alpha": float("nan")}, "expected a number"),
        ({"alpha_pattern": {"(": 2}}, "no table of patterns"),
        ({"use_dora": True}, "use_dora"),
        ({"without": ["lora_B.weight"]}, "has no B"),
        ({"without": ["weight"]}, "changes nothing"),
        ({"tensors": {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64),
                      "base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight": torch.zeros(64, 4)}},
         "layers.7"),
        ({"tensors": {"base_model.model.model.norm.weight": torch.zeros(7)}}, "requires"),
        ({"tensors": {"base_model.model.model.norm.weight": torch.full((64,), float("inf"))}}, "not finite"),
        ({"tensors": {"base_model.model.model.norm.scales": torch.zeros(64)}}, "not understood"),
        ({"tensors": {"base_model.model.lm_head.base_layer.weight": torch.ones(300, 64)}}, "another base"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(folders, tmp_path, changes, said):
    rewrite(folders / "0", tmp_path / "a", **changes)
    with pytest.raises((ConfigError, CheckpointError), match=said):
        handscroll.load(folders / "base", adapter=tmp_path / "a")


def test_folders_and_weights_are_checked(folders, tmp_path):
    for given, said in (
        (tmp_path, "not an adapter folder"),
        ((folders / "0", float("inf")), "not finite"),
        (f"{folders / '0'}=half", "no number"),
    ):
        with pytest.raises((ConfigError, CheckpointError), match=said):
            handscroll.load(folders / "base", adapter=given)


def test_losses_never_dequantise_the_head(folders, tmp_path, monkeypatch):
    handscroll.load(folders / "base").export_gguf(tmp_path / "base.gguf", "q8_0")
    lm = handscroll.load(tmp_path / "base.gguf")
    monkeypatch.setattr(Quantised, "weight", property(lambda self: pytest.fail("a whole matrix was dequantised")))
    ids = list(range(3, 60))
    want = torch.nn.functional.cross_entropy(lm.logits(ids)[:-1], torch.tensor(ids[1:]), reduction="none")
    torch.testing.assert_close(lm.nll(ids), want, atol=1e-4, rtol=1e-4)
    assert lm.nll(ids, window=16).isfinite().all()


def test_an_adapter_is_trained_over_quantised_weights(folders, tmp_path):
    handscroll.load(folders / "base").export_gguf(tmp_path / "base.gguf", "q8_0")
    grads = []
    for weights in ("", "float"):
        model = handscroll.load(tmp_path / "base.gguf", weights=weights).model
        add_lora(model, LoRA(rank=2))
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        model(torch.tensor([[5, 9, 100, 7]])).logsumexp(-1).sum().backward()
        grads.append({name: one.grad for name, one in model.named_parameters() if one.requires_grad})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) == 16
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-3, rtol=1e-3)


def test_all_weights_are_not_trained_over_quantised_ones(folders, tmp_path):
    handscroll.load(folders / "base").export_gguf(tmp_path / "base.gguf", "q8_0")
    lm, text = handscroll.load(tmp_path / "base.gguf"), tmp_path / "a.txt"
    text.write_text("a quick brown fox " * 200)
    with pytest.raises(ConfigError, match="weights='float'"):
        Tuning.of(lm, 32, TuneSettings(files=(str(text),), steps=1, rows=1), tmp_path / "run").run(lm, "pi")


def test_a_question_computes_in_the_dtype_that_the_text_was_read_in(folders, tmp_path, monkeypatch):
    """Caches of quantised weights are float16, the computation is not."""
    handscroll.load(folders / "base").export_gguf(tmp_path / "base.gguf", "q8_0")
    text, store = tmp_path / "a.txt", tmp_path / "store"
    text.write_text("a quick brown fox")
    wanted, load = [], handscroll.lm.load_model
    monkeypatch.setattr("handscroll.lm.load_model", lambda *args: wanted.append(load(*args)) or wanted[-1])
    for options, dtype in (((), torch.float32), (("--dtype", "bfloat16"), torch.bfloat16)):
        run("read", tmp_path / "base.gguf", text, "--save", "a", "--store", store, "--room", "32", *options)
        run("ask", "a", "why", "--store", store, "--max-tokens", "2")
        assert wanted[-1].dtype == dtype
