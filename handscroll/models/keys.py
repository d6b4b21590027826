"""The keys of foreign `config.json` files: one table for all families.

A key is read by its family, or may bear on the forward pass, or is bookkeeping. Keys that no family reads are judged by
what such a key can do, because exporters and trainers add new ones all the time. Sizes and biases show in the tensors,
which are checked one by one. What no tensor shows is how numbers are masked, rotated, scaled, activated, normalised and
routed: keys with such words are refused, unless their value means "off". The rest is ignored, and `info` names it.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from handscroll.base.errors import ConfigError, nearest

# What a key with one of these words may do to the forward pass, under one spelling of the word.
_BEARING = {
    word: group
    for group, words in {
        "mask": "causal bidirectional window windows windowed sliding local global sparse dilated banded",
        "position": "rope rotary mrope yarn ntk logn alibi xpos position positions positional relative theta "
        "interleaved nope",
        "scale": "scale scales scaled scaling multiplier multipliers factor factors softcap softcapping cap clip clamp "
        "mup",
        "act": "act activation activations glu swiglu geglu gelu silu relu",
        "norm": "norm norms layernorm rmsnorm prenorm postnorm normalize normalization qk residual residuals",
        "eps": "eps epsilon",
        "expert": "expert experts moe router routed routing topk gate gated gating mod",
        "order": "shared share sharing skip skipped loop recurrent universal",
    }.items()
    for word in words.split()
}
# These name parts of a model: a kind, a table or a switch may change them, a number is a size.
_PARTS = frozenset("attn attention mlp ffn feedforward block blocks layer layers embedding embeddings".split())
# With one of these words a key is about training, or about how numbers are stored and computed, whatever else it names.
_ELSEWHERE = frozenset(
    """
    dropout drop pdrop dropping layerdrop stochastic jitter noise augment smoothing initializer initialization init
    initrange loss losses aux coef coeff train training trained finetune finetuned finetuning pretrain pretraining
    pretrained lora peft qlora unsloth lr learning optimizer grad gradient gradients checkpoint checkpoints
    checkpointing recompute recomputation offload step steps epoch epochs decay warmup adam dtype fp32 fp16 bf16
    float32 float16 bfloat16 precision upcast fused fusion implementation implementations flash sdpa eager xformers
    triton
    """.split()
)
# These say the same of a key that has no bearing word; a folder with code of its own may have no other keys.
_OTHER = frozenset(
    """
    std seed batch rank cache caches token tokens tokenizer tokenization vocab beam beams penalty sample sampling ngram
    version commit hash revision name names path paths url file files language languages license author date kernel
    kernels parallelism tp pp ep tensor pipeline neuron onnx openvino tflite exported export gguf js quantize quantized
    output outputs return summary label labels classifier pooler pooling problem task tasks bias biases prompt prompts
    """.split()
)
# Words that bear alone, and not together.
_PHRASES = re.compile(
    r"(sequence|context|data|model|expert)_parallel|^(max|num|n)_(\w+_)?positions?(_embeddings)?$|_token_ids?$|^summary_"
    r"|^(output|return)_(attentions|hidden_states|scores|logits|router_logits|past|dict)"
)
# Lengths, settings that do nothing without one that is judged by itself, and what follows the logits of a reranker.
_INERT = frozenset(
    """
    max_position_embeddings n_positions n_ctx max_positions original_max_position_embeddings seq_length
    max_window_layers cache_implementation slow_but_exact output_past reorder_and_upcast_attn sliding_window_pattern
    _sliding_window_pattern scale_grad_by_freq offset_alibi skip_bias_add
    skip_bias_add_qkv sbert_ce_default_activation_function
    """.split()
)
# Settings whose "off" is another value than false, null, an empty table or a factor of 1.
_OFF: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "scale_attn_weights": (True,),
    "use_rope": (True,),
    "rotary": (True,),
    "causal": (True,),
    "norm_type": ("rmsnorm", "layernorm"),
}
# What every model does: false is a change here, although it is "off" elsewhere.
_ALWAYS = re.compile(r"^(is_|use_|apply_|with_)?(causal|causal_mask|rope|rotary|scale_att\w*|softmax|residual|mlp)$")
_OFF_WORDS = frozenset(["", "none", "default", "full", "full_attention", "absolute"])
_OFF_NUMBERS = {"scale": (1,), "position": (1,), "expert": (0,), "mask": (0,), "order": (0,)}


def words(key: str) -> frozenset[str]:
    """The words of a key: `FFN_type`, `numExperts` and `transformers.js_config` are two words and more."""
    return frozenset(re.split(r"[^a-z0-9]+", _snake(key)))


def _snake(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()


def unread(foreign: Mapping[str, Any], read: Collection[str]) -> dict[str, Any]:
    """The keys of a file that its family does not read, with their values."""
    known = {*read, "model_type", "auto_map", "architectures"}
    return {key: value for key, value in foreign.items() if key not in known}


def check_keys(foreign: Mapping[str, Any], read: Collection[str], name: str) -> None:
    """Refuse quantised checkpoints, and keys that may bear on the forward pass and are not read by the family `name`.

    A folder with code of its own may do anything with a key, so there every key must be known to change nothing.

    Raises:
        ConfigError: see above; the message names key and value and says what may be done.
    """
    for key in ("quantization_config", "quantization"):  # the second is MLX's
        if foreign.get(key):
            raise ConfigError(
                f"config.json has '{key}': the weights are quantised; use the full-precision checkpoint or a GGUF file"
            )
    own_code = bool(foreign.get("auto_map"))
    for key, value in unread(foreign, read).items():
        if harmless(key, value, foreign) or not (own_code or _bears(key, value)):
            continue
        if any(_same(key, value, other, foreign.get(other)) for other in read):
            continue
        raise ConfigError(
            f"config.json of family '{name}' has '{key}' = {short(value)}, which no {name} here understands and which "
            f"may change the model: delete the key if the model computes as without it, else take another model; "
            f"{nearest(key, sorted(read))}"
        )


def harmless(key: str, value: Any, foreign: Mapping[str, Any]) -> bool:
    """Whether a setting is off, or is about something else than the forward pass."""
    return is_off(key, value, foreign) or _bookkeeping(key)


def is_off(key: str, value: Any, foreign: Mapping[str, Any]) -> bool:
    """Whether a setting changes nothing, whatever it is about."""
    if key in _OFF:
        return value is None or value in _OFF[key]
    if key == "sliding_window" and isinstance(value, int):  # a window that nothing falls out of
        longest = foreign.get("max_position_embeddings")
        return isinstance(longest, int) and value >= longest
    if value is False:
        return not _ALWAYS.match(_snake(key))
    if isinstance(value, str):
        return value.lower() in _OFF_WORDS
    if isinstance(value, int | float) and value is not True:
        return any(value in _OFF_NUMBERS.get(group, ()) for group in _groups(key))
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return value is None or (inner is not None and all(is_off(key, part, foreign) for part in inner))


def _groups(key: str) -> set[str]:
    return {_BEARING[word] for word in words(key) if word in _BEARING}


def _bookkeeping(key: str) -> bool:
    """Whether a key cannot bear on the forward pass, whatever its value."""
    if key in _INERT or key in _SILENT or _PHRASES.search(key) or words(key) & _ELSEWHERE:
        return True
    return not _groups(key) and bool(words(key) & _OTHER)


def _bears(key: str, value: Any) -> bool:
    number = isinstance(value, int | float) and value is not True
    return bool(_groups(key)) or (not number and bool(words(key) & _PARTS))


# Decoding defaults and bookkeeping of the reference library that have no word of their own.
_SILENT = frozenset(
    """
    transformers_version is_causal use_cache id2label label2id max_length min_length temperature top_k
    top_p typical_p do_sample early_stopping is_decoder is_encoder_decoder add_cross_attention torchscript pruned_heads
    gradient_checkpointing chunk_size_feed_forward bad_words_ids tie_encoder_decoder tie_word_embeddings prefix
    cross_attention_hidden_size model_max_length max_sequence_length
    """.split()
)


def _same(key: str, value: Any, other: str, known: Any) -> bool:
    """Whether a key repeats, under another name, what a key that is read says (`hidden_act`, `activation_function`)."""
    return known is not None and known == value and type(known) is type(value) and bool(_groups(key) & _groups(other))


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# -- values ---------------------------------------------------------------------------------------------------------

_FLAG = re.compile(r"^(is|use|tie|add|apply|scale|reorder)_|_bias$|^norm_topk_prob$")
_WHOLE = re.compile(
    r"^(n|num|d)_|_(size|dim|heads|experts|positions|ctx|buckets|window|embeddings|length|distance)$|^max_window_layers$"
    r"|^(dim|hidden_dim|n_layers|n_heads)$"
)
_TOKEN = re.compile(r"_token_id$")
_NUMBER = re.compile(
    r"^(?!rope_(theta|scaling))(.*_)?(eps|epsilon|theta|factor|base|freq|scalar|softcapping|multiplier|scaling|scale|pct)$"
)
_TEXT = re.compile(r"(^|_)(act|act_fn|activation|activation_function|proj|type)$")
_MAY_BE_ZERO = re.compile(r"expert|^max_window_layers$|^n_inner$|^num_labels$|^type_vocab_size$")
LONGEST = 1 << 40  # tokens
LARGEST = 1e30
MOST_LAYERS = 1 << 12
# The largest sizes taken from a file, by the first pattern that fits its key; far above what is published.
_BOUNDS = (
    (re.compile(r"layers?$|experts?"), MOST_LAYERS),
    (re.compile(r"heads?$|labels$"), 1 << 16),
    (re.compile(r"vocab"), 1 << 28),
    (re.compile(r"positions$|ctx$|embeddings$|length$|window$|distance$"), LONGEST),
    (re.compile(""), 1 << 24),
)
_TOKENS = 1 << 31


def check_values(foreign: Mapping[str, Any], read: Collection[str]) -> None:
    """Check the types and ranges of the values that a family reads, before anything is made of them.

    Raises:
        ConfigError: a size is not a whole number within reason, a switch not true or false, a number not finite.
    """
    for key, value in foreign.items():
        if value is None or key not in (*read, "architectures"):
            continue
        wanted = _wrong(key, value)
        if wanted:
            raise ConfigError(f"config.json: {key} is {short(value)}; expected {wanted}")


def _wrong(key: str, value: Any) -> str:
    """What a value should have been, or nothing."""
    if _FLAG.search(key):
        return "" if isinstance(value, bool) else "true or false"
    if _TOKEN.search(key):
        return _wrong_token(key, value)
    if _WHOLE.search(key):
        least = 0 if _MAY_BE_ZERO.search(key) else 1
        largest = next(largest for pattern, largest in _BOUNDS if pattern.search(key))
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest
        return "" if fits else f"a whole number from {least} to {largest:,}"
    if _NUMBER.search(key):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST
        return "" if fits else f"a number from 0 to {LARGEST:g}"
    if _TEXT.search(key):
        return "" if isinstance(value, str) else "a text"
    if key in ("layer_types", "architectures"):
        fits = isinstance(value, list) and all(isinstance(name, str) for name in value)
        return "" if fits else "a list of names"
    return ""


def _wrong_token(key: str, value: Any) -> str:
    several = key == "eos_token_id"  # only texts may end in several ways
    ids = value if several and isinstance(value, list) else [value]
    fits = all(isinstance(one, int) and not isinstance(one, bool) and -1 <= one < _TOKENS for one in ids)
    return "" if fits else "the number of a token" + (", or a list of them" if several else "")
