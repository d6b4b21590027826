"""Foreign configurations in and out: the Hugging Face `config.json` of each family.

Every key is either read here, listed as knowingly ignored (it does not change the logits at inference), or
refused. Defaults for absent keys are those that the published configuration of the family defines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from handscroll.base.errors import ConfigError, nearest
from handscroll.models.model import Decoder

if TYPE_CHECKING:  # its reader needs what stands here
    from handscroll.models.gguf.side import GGUFSide

Foreign = dict[str, Any]

# Knowingly ignored: training-time dropout, initialisation, bookkeeping, decoding defaults.
IGNORED = frozenset(
    """
    _name_or_path architectures model_type torch_dtype dtype transformers_version use_cache
    initializer_range attention_dropout hidden_dropout embd_pdrop attn_pdrop resid_pdrop pretraining_tp
    return_dict output_attentions output_hidden_states pad_token_id unk_token_id task_specific_params
    gradient_checkpointing chunk_size_feed_forward is_encoder_decoder problem_type id2label label2id
    bad_words_ids num_beams do_sample temperature top_k top_p max_length min_length repetition_penalty
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    attn_implementation _attn_implementation_autoset
""".split()
)


@dataclass(frozen=True)
class Entry:
    """One foreign tensor. Several of ours: stacked along their output dimension (a fused projection).

    `transposed`: stored (in, out), as GPT-2's Conv1D does. `heads`: ours are interleaved head by head, so many.
    `pairs` (E, R): of each head of E outputs the first R are rotated, stored as pairs side by side, ours in halves.
    `also`: names that it has in other files. `plus`: stored with so much added (a norm's 1 + w).
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    heads: int = 0
    pairs: tuple[int, int] | None = None
    also: tuple[str, ...] = ()
    plus: float = 0.0


def _tied_head(config: Any) -> dict[str, str]:
    return {"lm_head.weight": "embedding.weight"} if config.tied else {}


@dataclass(frozen=True)
class Family:
    """How one foreign `model_type` is read, built and written.

    `forms` are small configurations, as `config.json` gives them, one for each form that the family has ("" names the
    plain one): tests/conformance runs over them, and so over every family of the table. `own`: no other library knows
    the family, and they refuse its folders; what others know is held to them.
    `settle(config, tensor)`, where given, decides by the weights (`tensor(name)`, None where absent) what `config.json`
    leaves open. `copies(config)`: foreign tensors that files may hold besides, and which of ours each must be equal to
    (None: the reference library does not read it). `gguf`: how its models lie in GGUF files, where llama.cpp has it.
    """

    name: str
    build: Callable[[Any], Decoder]
    read: Callable[[Foreign], Any]
    write: Callable[[Any], Foreign]
    entries: Callable[[Any], list[Entry]]
    forms: Mapping[str, Foreign]
    own: bool = False
    settle: Callable[[Any, Callable[[str], Tensor | None]], Any] | None = None
    copies: Callable[[Any], Mapping[str, str | None]] = _tied_head
    gguf: "GGUFSide | None" = None


def known_keys(foreign: Foreign, allowed: frozenset[str], name: str) -> None:
    """Refuse quantised checkpoints, remote code and keys that nobody has looked at."""
    if "quantization_config" in foreign:
        raise ConfigError(
            "config.json has 'quantization_config': the weights are quantised; use the full-precision one"
        )
    if foreign.get("auto_map"):
        raise ConfigError("config.json has 'auto_map': the model needs remote code, which is never run")
    for key in foreign:
        if key not in allowed and key not in IGNORED and key != "auto_map":
            raise ConfigError(
                f"config.json of family '{name}' has the unknown key '{key}' = {foreign[key]!r}, which may change "
                f"the model: {nearest(key, allowed)}"
            )


def required(foreign: Foreign, key: str, name: str) -> Any:
    if foreign.get(key) is None:
        raise ConfigError(f"config.json of family '{name}' has no '{key}'; it cannot be guessed")
    return foreign[key]


def original_length(config: Any, unused: int = 0) -> Foreign:
    """The key that keeps the trained length of a context that was lengthened here; others store it and read it not.

    `unused`: rows of a learned table before the first position.
    """
    return {} if config.original is None else {"original_max_position_embeddings": config.original + unused}


def end_tokens(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def written_ends(ends: tuple[int, ...]) -> int | list[int] | None:
    """`eos_token_id` as most files have it: none, a number, or several in a list."""
    return list(ends) if len(ends) > 1 else ends[0] if ends else None
