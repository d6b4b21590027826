"""Foreign configurations in and out: the Hugging Face `config.json` of each family.

Every key is read here, or is listed as ignored because it does not change the logits at inference, or is refused.
Defaults of absent keys are those of the family's published configuration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from handscroll.base.errors import ConfigError, nearest
from handscroll.models.model import Decoder

if TYPE_CHECKING:  # side.py imports this file
    from handscroll.models.gguf.side import GGUFSide

Foreign = dict[str, Any]

# Keys ignored on purpose: training-time dropout, initialisation, bookkeeping, decoding defaults.
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
    """One foreign tensor and the names of our tensors in it.

    Several of ours are stacked along their output dimension (a fused projection). `transposed`: the tensor is stored as
    (in, out), as in GPT-2's Conv1D. `heads`: ours are interleaved head by head, for this number of heads. `pairs` (E,
    R): the first R of the E outputs of each head are rotated; the file stores them as adjacent pairs, and we store them
    as halves. `also`: names of the tensor in other files. `plus`: the number that the stored values have added (a
    norm's 1 + w).
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
    """Functions that read, build and write one foreign `model_type`.

    `forms` are small configurations in the format of `config.json`, one for each form of the family ("" is the plain
    one); tests/conformance runs over them. `own`: no other library knows the family, and others refuse its folders;
    families that others know are tested against them. `settle(config, tensor)` reads from the weights what
    `config.json` leaves open; `tensor(name)` is None if absent. `copies(config)` names further foreign tensors that
    files may hold, and which of our tensors each must equal (None: the reference library does not read it). `gguf`
    describes its GGUF files, if llama.cpp supports the family.
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
    """Refuse quantised checkpoints, remote code and unknown keys."""
    if "quantization_config" in foreign:
        raise ConfigError(
            "config.json has 'quantization_config': the weights are quantised; use the full-precision checkpoint"
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
    """The key that stores the trained length of a context that was lengthened here.

    Other libraries store this key without reading it. `unused` is the number of rows of a learned table before the
    first position.
    """
    return {} if config.original is None else {"original_max_position_embeddings": config.original + unused}


def end_tokens(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def written_ends(ends: tuple[int, ...]) -> int | list[int] | None:
    """`eos_token_id` in the usual form of files: none, a number, or a list of several."""
    return list(ends) if len(ends) > 1 else ends[0] if ends else None
