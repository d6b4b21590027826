"""What is held true of every form of every family, as a table: `run` where the family can, `refused` where it cannot.

What a family can is said by its table entry, its configuration and its model (`can`), never by a name in here; and what
it cannot is refused by name, which is checked too. So no check is ever left out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.base.spec import ModelSpec
from handscroll.base.workload import CHUNKED, Workload
from handscroll.data.batch import Batch, collate
from handscroll.extend.extend import GUARD
from handscroll.extend.methods import candidates
from handscroll.extend.trials import applied
from handscroll.generate.sample import Sampling
from handscroll.models.encoder_decoder import EncoderDecoder
from handscroll.models.gguf.save import save_gguf
from handscroll.models.model import Model
from handscroll.models.weights import load_model, save_model
from handscroll.nn.init import initialise
from handscroll.nn.marks import Marks
from handscroll.nn.mask import looks_ahead
from handscroll.nn.noise import Noise
from handscroll.nn.positions.candidate import Candidate
from handscroll.objectives.settings import OBJECTIVES, objective_from
from handscroll.plan.choose import options
from handscroll.plan.machine import Machine
from handscroll.train.step import Memory, Step, build_strategy
from handscroll.train.strategies.plain import Plain
from tests.conformance.families import SCALINGS, Form, reference, reference_class
from tests.conformance.layers import described
from tests.conformance.material import LENGTH, Learned, documents, gguf_tokens, learned_by, padded
from tests.generate.asking import decode
from tests.naming import naming

FLOAT32 = 1e-4  # largest difference of logits from the reference library's
EXACT = 1e-11  # of hidden states in float64
GRADIENTS = 1e-12  # relative, in float64
MACHINE = Machine(memory=1 << 34, disk=1 << 34)


@dataclass(frozen=True)
class Check:
    """`can` says whether a form is to do it; then `run` holds it to that, otherwise `refused` sees it refused."""

    can: Callable[[Form], bool]
    run: Callable[[Form, Path], None]
    refused: Callable[[Form, Path], None]


@cache
def random(form: Form) -> Model:
    """The form's random model in float64; nobody changes it."""
    return form.build()


def always(form: Form) -> bool:
    return True


def never(form: Form, folder: Path) -> None:
    raise AssertionError("there is no family that cannot")


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(20, 97, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def said(model: Model, tokens: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """What a model says of a text, by the head that it has: logits of tokens or of labels, or hidden states."""
    marks = Marks.run(0, tokens.shape[1])
    here = model.under(model.encode(source)) if isinstance(model, EncoderDecoder) else model
    hidden = here.hidden(here.embed(tokens, marks), marks, here.mask(), length=tokens.shape[1])
    head = model.spec.head
    if head is not None and head.kind in ("tokens", "answer"):
        return model.judge(hidden)
    if head is not None and head.kind == "text":
        at = torch.zeros_like(tokens, dtype=torch.bool)
        at[:, 0 if head.pool == "first" else -1] = True
        return model.classify(hidden, Marks.rows(*torch.tensor([[0] * len(at), [at.shape[1]] * len(at)])), at)
    return hidden if learned_by(model)[0].task is None else model.logits(hidden)


@torch.no_grad()
def theirs_say(model: Any, tokens: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The same of a model of the reference library, by the head that its class has."""
    given = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        given = {"input_ids": source, "decoder_input_ids": tokens}
    out = model(**given)
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], dim=-1)
    if hasattr(model, "discriminator_predictions"):  # one number a token
        return out.logits.unsqueeze(-1)
    return next(out[name] for name in ("prediction_logits", "logits", "last_hidden_state") if name in out)


def their_model(form: Form, folder: Path) -> Any:
    """The model that the reference library reads from a folder, every tensor of it and nothing besides."""
    model, told = reference_class(folder).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"] - form.kind.copies(form.config).keys(), told
    assert not told["unexpected_keys"] and not told["mismatched_keys"], told
    return model.eval()


# --- files ---


def holds_to_the_reference(
    form: Form, folder: Path, foreign: dict[str, Any] | None = None, lengths: tuple[int, ...] = (1, 63, 64)
) -> None:
    """Logits equal those of `transformers` to 1e-4 in float32, for folders written by either side."""
    model = form.build(torch.float32, foreign=foreign)
    save_model(model, folder / "ours", shard_bytes=60_000)
    theirs = their_model(form, folder / "ours")
    theirs.save_pretrained(folder / "theirs", max_shard_size="60KB")
    for name in ("ours", "theirs"):
        assert (folder / name / "model.safetensors.index.json").exists()
    again = load_model(folder / "theirs")
    assert again.config == model.config
    for length in lengths:
        tokens, source = ids(2, length), ids(2, 40)
        want = theirs_say(theirs, tokens, source)
        limit = FLOAT32 * max(1.0, float(want.abs().max()) / 10)
        for ours in (model, again):
            assert (said(ours, tokens, source) - want).abs().max() < limit, length


def others_refuse_it(form: Form, folder: Path) -> None:
    save_model(form.build(torch.float32), folder)
    with pytest.raises(ValueError, match=f"model type `{form.family}`"):
        transformers.AutoConfig.from_pretrained(folder)


def comes_back(form: Form, folder: Path) -> None:
    """Settings and weights survive writing and reading a folder bit for bit, in one file or several."""
    model = form.build(torch.float32)
    written = form.kind.write(model.config)
    assert {key: written[key] for key in form.foreign if key in written} == {
        key: value for key, value in form.foreign.items() if key in written
    }
    for name, size in (("one", 4 << 30), ("several", 60_000)):
        save_model(model, folder / name, shard_bytes=size)
        assert (folder / name / "model.safetensors.index.json").exists() == (name == "several")
        again = load_model(folder / name)
        assert type(again) is type(model) and again.config == model.config
        kept = again.state_dict()
        assert kept.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, kept[key]) for key, tensor in model.state_dict().items())
        # A product may round otherwise where its weights begin elsewhere in memory, as those of a mapped file do.
        assert (said(again, ids(2, 9), ids(2, 12)) - said(model, ids(2, 9), ids(2, 12))).abs().max() < 1e-5


def unwritten(form: Form) -> str:
    """Why llama.cpp does not compute a form; empty where it does."""
    if form.kind.gguf is None:
        return "llama.cpp does not know the family"
    try:
        form.kind.gguf.write(form.config, form.kind.write(form.config))
    except ConfigError as error:
        return str(error)
    return ""


def comes_back_from_gguf(form: Form, folder: Path) -> None:
    """A GGUF file gives back the same sizes and, in float32, the same numbers (norms of 1 + w: 1e-6)."""
    model = form.build(torch.float32)
    again = load_model(save_gguf(model, gguf_tokens(), folder / "a.gguf", "f32", {}))
    kept = again.state_dict()
    left_out = model.state_dict().keys() - kept.keys()
    assert all(name.startswith("pooler.") for name in left_out)
    assert all((tensor - model.state_dict()[name]).abs().max() < 1e-6 for name, tensor in kept.items())
    assert (again.config.spec.layers, again.config.spec.positions) == (
        model.config.spec.layers,
        model.config.spec.positions,
    )
    assert (said(again, ids(2, 9), ids(2, 12)) - said(model, ids(2, 9), ids(2, 12))).abs().max() < 1e-4


def is_not_exported(form: Form, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"llama\.cpp|GGUF"):
        save_gguf(form.build(torch.float32), gguf_tokens(), folder / "a.gguf", "f32", {})


def is_scaled_as_the_reference(form: Form, folder: Path) -> None:
    """The same holds under rotary scalings, to four times the trained length, or both libraries refuse them. The first
    form of a family meets each of them, and its other forms, which rotate alike, meet two."""
    first, *others = form.kind.forms
    names, turn = sorted(SCALINGS.keys() - {"none"}), 0 if form.name == first else others.index(form.name)
    for scaling in names if form.name == first else [names[(turn + more) % len(names)] for more in (0, 2)]:
        foreign = form.scaled(scaling)
        if knows(form, foreign):
            holds_to_the_reference(form, folder / scaling, foreign, lengths=(63, 256))
            continue
        with pytest.raises((StrictDataclassError, KeyError, TypeError)):
            reference(str(form), scaling)


def knows(form: Form, foreign: dict[str, Any]) -> bool:
    try:
        form.kind.parse(foreign)
    except ConfigError as error:
        assert f"family '{form.family}' knows no scaling" in str(error)
        return False
    return True


def has_no_scaling(form: Form, folder: Path) -> None:
    with pytest.raises(ConfigError, match="'rope_scaling'"):
        form.kind.parse(form.foreign | {"rope_scaling": SCALINGS["yarn"]})


def is_as_its_spec_says(form: Form, folder: Path) -> None:
    """The spec of a family describes each layer as it is made, counts the parameters of the model, and is the same
    after a round trip through JSON."""
    model, spec = random(form), form.config.spec
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    assert described(model, LENGTH) == [side for side in (spec.layers, spec.encoder) if side]
    assert spec.both_ways == looks_ahead(model.mask())


# --- reading ---


@torch.no_grad()
def reads_in_pieces(form: Form, folder: Path) -> None:
    """Reading over a cache, in pieces or token by token, equals reading at once: 1e-11 in float64."""
    for learned in learned_by(random(form)):
        (row, *_) = documents(max(learned.rows(4), key=lambda row: max(map(len, map(_tokens, documents(row))))))
        batch = collate([row])
        whole, marks, here = learned.read(batch), batch.marks(), learned.model
        if batch.source is not None:
            assert isinstance(here, EncoderDecoder)
            here = here.under(here.encode(batch.source.tokens, batch.source.marks()))
        counted = (batch.targets[0] != -100).nonzero()
        # What is given of a text that is read in both directions is read at once: all before the first target.
        first = int(counted[0]) if here.spec.both_ways else 0
        length = batch.tokens.shape[1]
        edges = sorted({0, *(edge for edge in (first, first + 1, first + 2, length - 3, length) if edge > 0)})
        cache, parts = here.new_cache(), []
        mask = here.mask() if learned.objective is None else learned.objective.mask(here, marks)
        for a, b in pairwise(edges):
            here_marks = marks.part(a, b)
            embedded = here.embed(batch.tokens[:, a:b], here_marks)
            parts.append(here.hidden(embedded, here_marks, mask, cache, LENGTH))
        assert len(parts) > 2 and (torch.cat(parts, dim=1) - whole).abs().max() < EXACT


def keeps_nothing(form: Form, folder: Path) -> None:
    model = random(form)
    with pytest.raises(ConfigError, match="cache"):
        model.new_cache()
    assert model.config.spec.cache_bytes(1, 4) == 0


def _tokens(row: Any) -> Any:
    return row.tokens


def rows_are_alone(form: Form, folder: Path) -> None:
    """Padded rows of different lengths in one batch equal each row alone: states (1e-11) and losses."""
    for learned in learned_by(random(form)):
        rows = [row for packed in learned.rows(2) for row in documents(packed)][:4]
        assert len({len(row.tokens) for row in rows}) > 1
        together, alone = padded(rows), [collate([row]) for row in rows]
        for batch in (together, _unparted(together)):
            states = learned.read(batch)
            for number, one in enumerate(alone):
                size = one.tokens.shape[1]
                assert (states[number, :size] - learned.read(one)[0]).abs().max() < EXACT
        assert learned.loss(together) == pytest.approx(sum(map(learned.loss, alone)), rel=1e-12)


def _unparted(batch: Batch) -> Batch:
    """The same with padding told by the index alone, as decoding has it: no segment keeps it apart."""
    source = None if batch.source is None else _unparted(batch.source)
    return replace(batch, segment=None if batch.segment is None else batch.segment * 0, source=source)


def packed_are_separate(form: Form, folder: Path) -> None:
    """The documents of a packed row equal each document alone: states (1e-11) and losses."""
    for learned in learned_by(random(form)):
        row = next(row for row in learned.rows(4) if len(documents(row)) > 1)
        together, alone = collate([row]), [collate([one]) for one in documents(row)]
        states = learned.read(together)
        for number, one in enumerate(alone):
            here = states[0, torch.from_numpy(row.segment == number)]
            assert (here - learned.read(one)[0]).abs().max() < EXACT
        assert learned.loss(together) == pytest.approx(sum(map(learned.loss, alone)), rel=1e-12)


def stays_within_its_positions(form: Form, folder: Path) -> None:
    """Positions past a learned table are refused."""
    model = random(form)
    context, tokens = model.config.context, ids(1, 1)
    model.embed(tokens, Marks.run(context - 1, 1))
    with pytest.raises(CapacityError, match=rf"\b{context}\b.*\b{context}\b"):
        model.embed(tokens, Marks.run(context, 1))


@torch.no_grad()
def runs_on(form: Form, folder: Path) -> None:
    """What has no table is read past what it was trained to."""
    length = min(form.config.context, 512) + 10
    assert said(random(form), ids(1, length), ids(1, 30)).isfinite().all()


@torch.no_grad()
def goes_on_with_a_text(form: Form, folder: Path) -> None:
    """Greedy tokens of a batch are the likeliest ones of each text when it is read again without a cache."""
    model, prompts = random(form), [[30, 41, 52, 63], [70, 71]]
    found: list[list[int]] = [[], []]
    for step in decode(model, prompts, Sampling(max_tokens=6, ignore_eos=True)):
        for new in step:
            found[new.row].append(new.token)
    for prompt, new in zip(prompts, found, strict=True):
        text = [model.config.start] if isinstance(model, EncoderDecoder) else prompt
        for number, token in enumerate(new):
            logits = said(model, torch.tensor([[*text, *new[:number]]]), torch.tensor([prompt]))
            assert int(logits[0, -1].argmax()) == token
        assert len(new) == 6


def writes_nothing(form: Form, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"continued|predicts|causal"):
        for _ in decode(random(form), [[30, 41]], Sampling(max_tokens=2)):
            pass


# --- learning ---


CHUNK = 24  # tokens: three chunks of a row


def settings_of_memory(form: Form) -> dict[str, list[dict[str, Any]]]:
    """The settings that the planner offers for a form, by strategy. Only the last chunked one is offloaded too."""
    workload = Workload(spec=form.config.spec, length=LENGTH, strategy="auto")
    found: dict[str, list[dict[str, Any]]] = {}
    for forecast in options(workload, MACHINE):
        one = forecast.workload
        setting = {"strategy": one.strategy, "offload": one.offload, "stage_layers": one.stage_layers}
        if setting not in found.setdefault(one.strategy, []):
            found[one.strategy].append(setting)
    last = [strategy for strategy in CHUNKED if strategy in found][-1:]
    return {
        strategy: [setting for setting in offered if strategy in last or setting["offload"] == "none"]
        for strategy, offered in found.items()
    }


def gradients_are_certified(form: Form, folder: Path) -> None:
    """Offered strategies give the gradients of the plain step, to 1e-12 in float64. All others are refused."""
    model, offered = form.build(), settings_of_memory(form)
    for learned in learned_by(model):
        batch, objective, noise = collate(learned.rows(1)), learned.objective, Noise(0.1, seed=3, update=1)
        assert objective is not None
        wanted = gradients(model, Step(Plain()), batch, objective, noise)
        for strategy in ("checkpoint", *CHUNKED):
            free = {"strategy": strategy, "offload": "none", "stage_layers": 2 if strategy == "staged" else 0}
            possible = strategy in offered and (objective.additive or strategy not in CHUNKED)
            for setting in offered[strategy] if possible else [free]:
                memory = Memory.parse({"chunk": 64 if strategy in CHUNKED else 0, **setting}, "test")
                memory = memory.model_copy(update={"chunk": CHUNK}) if memory.chunk else memory
                if not possible:
                    with pytest.raises(ConfigError, match=r"strategy|add up"):
                        gradients(model, Step(build_strategy(memory, model, folder)), batch, objective, noise)
                    continue
                found = gradients(model, Step(build_strategy(memory, model, folder)), batch, objective, noise)
                apart = sum(float((found[name] - value).square().sum()) for name, value in wanted.items())
                size = sum(float(value.square().sum()) for value in wanted.values())
                assert found.keys() == wanted.keys() and (apart / size) ** 0.5 < GRADIENTS, setting


def gradients(model: Model, step: Step, batch: Batch, objective: Any, noise: Noise) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss = step(model, [batch], objective, noise)  # type: ignore[arg-type]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss.total.reshape(1)}


@cache
def taught(form: Form) -> tuple[Learned, Batch, list[float]]:
    """The form's model learning one small batch of its first objective by heart until the loss is halved, and the
    losses (nats a target) on the way there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = form.kind.build(form.config)
    initialise(model, "xavier", model.config.layers, torch.Generator().manual_seed(0))
    learned = learned_by(model)[0]
    batch, objective = collate(learned.rows(1)), learned.objective
    assert objective is not None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    losses: list[float] = []
    while len(losses) < STEPS and (not losses or losses[-1] > HALF * losses[0]):
        model.zero_grad(set_to_none=True)
        loss = Step(Plain())(model, [batch], objective)  # type: ignore[arg-type]
        losses.append(float(loss.total) / loss.count)
        optimizer.step()
    return learned, batch, losses


STEPS = 60  # at most
HALF = 0.5


def learns(form: Form, folder: Path) -> None:
    """A few steps on one batch halve its loss; other objectives are refused, and the error names those that fit."""
    _, _, losses = taught(form)
    assert losses[-1] < HALF * losses[0], losses
    fitting = {learned.task.name for learned in learned_by(random(form)) if learned.task is not None}
    for name in OBJECTIVES.keys() - fitting:
        with pytest.raises(ConfigError, match=naming(f"'{name}'", f"'{form.config.family}'", "use '")):
            objective_from(name).objective(random(form))


def learns_nothing(form: Form, folder: Path) -> None:
    for name in OBJECTIVES:
        with pytest.raises(ConfigError, match=naming(f"'{name}'", f"'{form.config.family}'")):
            objective_from(name).objective(random(form))


# --- lengthening ---


FACTOR = 2
# Nats a target that a text learned by heart may lose to a factor of 2, untuned, where a method moves near positions.
RISE = 0.2
MOVED = {"pi": 1.0, "interpolate": 2.5}  # these move every position alike: they are meant to be tuned


def is_lengthened(form: Form, folder: Path) -> None:
    """For every method the folder can be read back and a longer text is read. Short text is unchanged where the method
    promises it; otherwise its loss rises by no more than a stated bound, and some method stays within the guard."""
    model, made = random(form), {}
    to = FACTOR * model.config.context
    for candidate in candidates(model, "all", to):
        made.setdefault(candidate.method, []).append(candidate)
    for method, found in made.items():
        candidate = found[-1]  # the others differ in their dials
        short = max(1, min(candidate.exact, model.config.trained, LENGTH))
        want = said(model, ids(1, short), ids(1, short))
        with applied(model, candidate):
            apart = (said(model, ids(1, short), ids(1, short)) - want).abs().max()
            assert not candidate.exact or apart < EXACT, candidate.name
            assert said(model, ids(1, min(to, 150)), ids(1, 30)).isfinite().all()
            save_model(model, folder / method)
            assert load_model(folder / method).config == model.config
    rises = rises_of_the_loss(form, made) if learns_something(form) else {}
    for method, found in rises.items():
        assert max(found) < MOVED.get(method, RISE), (method, found)
    assert not rises or min(min(found) for method, found in rises.items() if method != "none") < GUARD


def rises_of_the_loss(form: Form, made: dict[str, list[Candidate]]) -> dict[str, list[float]]:
    """By how many nats a target each candidate raises the loss of rows that the model was taught."""
    learned, batch, _ = taught(form)
    before = learned.loss(batch)
    found: dict[str, list[float]] = {}
    for method, several in made.items():
        for candidate in (several[0], several[-1])[: len(several)]:
            with applied(learned.model, candidate):
                found.setdefault(method, []).append((learned.loss(batch) - before) / batch.counted)
    return found


def is_not_lengthened(form: Form, folder: Path) -> None:
    assert form.config.spec.positions[0].unlengthened
    with pytest.raises(ConfigError, match=f"'{form.config.family}'"):
        candidates(random(form), "all", 2 * 64)


CHECKS: dict[str, Check] = {
    "reference": Check(lambda form: not form.kind.own, holds_to_the_reference, others_refuse_it),
    "scalings": Check(lambda form: form.config.spec.rotates, is_scaled_as_the_reference, has_no_scaling),
    "spec": Check(always, is_as_its_spec_says, never),
    "folder": Check(always, comes_back, never),
    "gguf": Check(lambda form: not unwritten(form), comes_back_from_gguf, is_not_exported),
    "pieces": Check(lambda form: random(form).spec.cached, reads_in_pieces, keeps_nothing),
    "rows": Check(always, rows_are_alone, never),
    "packed": Check(always, packed_are_separate, never),
    "table": Check(lambda form: form.config.spec.limit is not None, stays_within_its_positions, runs_on),
    "text": Check(
        lambda form: not random(form).spec.both_ways and form.config.spec.predicts, goes_on_with_a_text, writes_nothing
    ),
    "gradients": Check(lambda form: learns_something(form), gradients_are_certified, learns_nothing),
    "overfit": Check(lambda form: learns_something(form), learns, learns_nothing),
    "lengthened": Check(lambda form: bool(form.config.spec.positions[0].methods), is_lengthened, is_not_lengthened),
}


def learns_something(form: Form) -> bool:
    return learned_by(random(form))[0].task is not None
