"""LoRA: starts as the model, trains only its update, merges exactly, and PEFT reads its files."""

import json

import peft
import pytest
import torch
import transformers

import handscroll
from handscroll.base.errors import ConfigError
from handscroll.base.spec import HeadSpec
from handscroll.data.batch import Batch
from handscroll.data.row import IGNORED
from handscroll.models.new import with_head
from handscroll.models.weights import load_model, save_model
from handscroll.nn.marks import Marks
from handscroll.nn.quantised import quantise
from handscroll.objectives.causal import Causal
from handscroll.train.lora import LoRA, add_lora, merge_lora, save_adapter, stands_apart
from handscroll.train.step import Memory
from handscroll.train.strategies.certificate import certify
from tests.conformance.families import reference, reference_logits, save
from tests.models.heads import KINDS, PLAIN, words
from tests.models.t5 import reference as t5_reference
from tests.models.t5 import save as save_t5


@pytest.fixture
def tokens():
    return torch.randint(3, 97, (2, 30), generator=torch.Generator().manual_seed(0))


def trained(folder, settings, family="llama"):
    """A model with an update that is no longer zero."""
    model = load_model(save(reference(family), folder))
    add_lora(model, settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(0.0, 0.1, generator=generator)
    return model


def test_fresh_update_changes_nothing_and_only_it_trains(tmp_path, tokens):
    model = load_model(save(reference("llama"), tmp_path))
    with torch.no_grad():
        want = model(tokens)
    add_lora(model, LoRA(rank=4))
    torch.testing.assert_close(model(tokens).detach(), want)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all(name.endswith((".a", ".b")) for name in trainable)
    assert len(trainable) == 3 * 4 * 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_merged_equals_unmerged(tmp_path, tokens, family):
    model = trained(tmp_path, LoRA(rank=4, targets=("query", "value", "down")), family)
    with torch.no_grad():
        want = model(tokens)
        merge_lora(model)
        torch.testing.assert_close(model(tokens), want, atol=1e-5, rtol=1e-5)
    save_model(model, tmp_path / "merged")
    assert not any("base" in name for name in model.state_dict())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "smollm3"])
def test_peft_reads_the_adapter_with_equal_logits(tmp_path, tokens, family):
    settings = LoRA(rank=4, alpha=6.0, targets=("query", "value", "up", "down"))
    model = trained(tmp_path / "base", settings, family)
    save_adapter(model, settings, tmp_path / "adapter", str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(reference(family), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (reference_logits(theirs, tokens) - model(tokens)).abs().max() < 1e-4
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning")  # both matrices are in the adapter
@pytest.mark.parametrize(("family", "tied"), [("qwen2", True), ("llama", False)])
def test_peft_reads_tables_that_were_trained(tmp_path, tokens, family, tied):
    settings = LoRA(rank=4, alpha=6.0, tables=True)
    model = load_model(save(reference(family), tmp_path / "base"))
    assert model.config.tied == tied
    add_lora(model, settings)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
    save_adapter(model, settings, tmp_path / "adapter", str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(reference(family), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (reference_logits(theirs, tokens) - model(tokens)).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
def test_peft_reads_the_adapter_of_an_encoder_decoder(tmp_path, tokens):
    settings = LoRA(rank=4, alpha=6.0, targets=("query", "value", "down"))
    save_t5("v1.0", tmp_path / "base")
    model = load_model(tmp_path / "base")
    add_lora(model, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(0.0, 0.1)
    save_adapter(model, settings, tmp_path / "adapter", str(tmp_path / "base"))
    theirs = peft.PeftModel.from_pretrained(t5_reference("v1.0"), tmp_path / "adapter").eval()
    assert isinstance(theirs, peft.PeftModelForSeq2SeqLM)
    with torch.no_grad():
        found, target = model(tokens, tokens[:, :9]), tokens[:, :9]
        assert (
            theirs(input_ids=tokens, decoder_input_ids=target).logits - found
        ).abs().max() < 1e-4 * found.abs().max()
    merge_lora(model)
    with torch.no_grad():
        assert (model(tokens, target) - found).abs().max() < 1e-4 * found.abs().max()


def test_fused_projections_and_unknown_targets_are_refused(tmp_path):
    model = trained(tmp_path, LoRA(rank=2, targets=("query",)), "gpt2")
    with pytest.raises(ConfigError, match="fused"):
        save_adapter(model, LoRA(rank=2), tmp_path / "adapter", "x")
    with pytest.raises(ConfigError, match="'gate'"):
        add_lora(load_model(tmp_path), LoRA(targets=("gate",)))


def test_updates_of_half_precision_weights_are_float32(tmp_path, tokens):
    settings = LoRA(rank=4, alpha=8.0)
    model = load_model(save(reference("llama"), tmp_path), torch.bfloat16)
    add_lora(model, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.dtype == torch.float32 for parameter in trained)
    assert model.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens).float().square().mean().backward()
    assert any(float(parameter.grad.norm()) > 0 for parameter in trained)
    torch.nn.init.normal_(model.layers[0].attention.query.update.b, std=0.1)
    with torch.no_grad():
        want = model(tokens)
        merge_lora(model)
        apart = (model(tokens) - want).float().norm() / want.float().norm()
    assert apart < 0.02
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


HEADED = {
    ("bert", "text"): transformers.AutoModelForSequenceClassification,
    ("qwen2", "text"): transformers.AutoModelForSequenceClassification,
    ("bert", "tokens"): transformers.AutoModelForTokenClassification,
    ("bert", "answer"): transformers.AutoModelForQuestionAnswering,
}
PARTS = {"bert": ["query", "value", "attention.output.dense"]}


def judged(model, tokens):
    """What the head says of one whole text, or of each token."""
    marks = Marks.run(0, tokens.shape[1])
    states = model.hidden(model.embed(tokens, marks), marks, model.mask(), length=tokens.shape[1])
    if model.spec.head.kind != "text":
        return model.judge(states)
    at = torch.zeros_like(tokens, dtype=torch.bool)
    at[:, 0 if model.spec.pool == "first" else -1] = True
    return model.classify(states, marks, at)


def theirs_of(model, tokens):
    found = model(input_ids=tokens)
    return torch.stack([found.start_logits, found.end_logits], -1) if hasattr(found, "start_logits") else found.logits


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
@pytest.mark.parametrize(("name", "kind"), HEADED)
def test_a_trained_head_is_saved_beside_the_updates_and_read_over_a_base_without_one(name, kind, tmp_path, tokens):
    bare, labels = tmp_path / "bare", {"num_labels": len(KINDS[kind]) or 2, "pad_token_id": 1}
    save_model(PLAIN[name].build(torch.float32), bare)
    (bare / "tokenizer.json").write_text(words(), encoding="utf-8")
    model = with_head(load_model(bare), HeadSpec(kind=kind, labels=KINDS[kind]), torch.Generator().manual_seed(0))
    settings = LoRA(rank=4, alpha=6.0, targets=("query", "value", "output"))
    add_lora(model, settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        want = judged(model, tokens)
    assert stands_apart(model)
    save_adapter(model, settings, tmp_path / "adapter", str(bare))
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(
            HEADED[name, kind].from_pretrained(bare, **labels), tmp_path / "adapter"
        ).eval()
        assert (theirs_of(theirs, tokens) - want).abs().max() < 1e-4
        again = handscroll.load(tmp_path / "adapter").model
        torch.testing.assert_close(judged(again, tokens), want)
    assert again.spec.head.labels == KINDS[kind]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
@pytest.mark.parametrize(("name", "kind"), HEADED)
def test_a_head_that_peft_trained_is_read_over_a_base_without_one(name, kind, tmp_path, tokens):
    bare, labels = tmp_path / "bare", {"num_labels": len(KINDS[kind]) or 2, "pad_token_id": 1}
    save_model(PLAIN[name].build(torch.float32), bare)
    (bare / "tokenizer.json").write_text(words(), encoding="utf-8")
    types = {"text": "SEQ_CLS", "tokens": "TOKEN_CLS", "answer": "QUESTION_ANS"}
    base = HEADED[name, kind].from_pretrained(bare, **labels)
    whole = ["pooler"] if name == "bert" and kind == "text" else []
    settings = peft.LoraConfig(
        task_type=types[kind], r=4, target_modules=PARTS.get(name, ["q_proj", "v_proj"]), modules_to_save=whole or None
    )
    theirs = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        want = theirs_of(theirs.eval(), tokens)
        theirs.save_pretrained(tmp_path / "adapter")
        lm = handscroll.load(bare, adapter=tmp_path / "adapter")
        assert (judged(lm.model, tokens) - want).abs().max() < 1e-4
    assert lm.model.spec.head.outputs == labels["num_labels"]


@pytest.mark.parametrize("strategy", ["chunk-outer", "layer-outer"])
def test_over_quantised_weights_every_strategy_has_the_gradients_of_the_plain_step(tmp_path, strategy):
    model = quantise(load_model(save(reference("llama"), tmp_path)), "int8")
    add_lora(model, LoRA(rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(3, 97, (1, 61), generator=torch.Generator().manual_seed(0))
    targets = ids[:, 1:].clone()
    targets[:, :40] = IGNORED  # whole chunks without an answer
    certificate = certify(model, Memory(strategy=strategy, chunk=64), Batch(ids[:, :-1], targets), Causal(), tmp_path)
    assert certificate.passed and certificate.chunk == 15
