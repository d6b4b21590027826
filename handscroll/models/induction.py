"""An initialisation with hand-set induction heads, for small models of the Llama form.

Retrieval needs a previous-token head and, above it, heads that match "the token before this key" with "the current
token" (Elhage et al. 2021; Olsson et al. 2022). From a random start a small model needs very many tokens to find this
pair. With hand-set heads it copies at step 0, and training only has to refine it (in the spirit of Trockman & Kolter
2023, "Mimetic initialization"). The retrieval of the trained model is thus partly constructed, and its model card
states this.

The construction, in the basis of the embeddings:

- column 0 of every embedding is the same constant, so that a head can attend by position alone;
- layer 0, head 0: query and key are that constant in the fastest rotary pairs, and the key is turned back by one token,
  which gives attention to the previous token. The head writes a projection of that token into a second subspace;
- layers 1 and 2, one head in each of two kv groups: the query is the current token and the key is the token before the
  key, both in the slowest rotary pairs, where positions hardly matter; values copy part of the token found.
"""

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.models.llama import Llama
from handscroll.models.model import Decoder
from handscroll.nn.attention import Attention
from handscroll.nn.block import Block
from handscroll.nn.scaling.base import plain_frequencies

EMBEDDING_STD = 0.4
CONSTANT = 4 * EMBEDDING_STD
HEAD_NORM = 0.05 / EMBEDDING_STD  # keeps the first logits small although the embeddings are large
FAST_PAIRS = 5
FAST_SCORE = 13.0  # for each fast pair; attention to the previous token is then above 0.99
MATCH_SCORE = 30.0
COPY_WEIGHT = 6.0


def set_induction_heads(model: Decoder, generator: torch.Generator) -> None:
    """Set the heads of a freshly initialised model, in place; all other writes to the residual stream become zero.

    Raises:
        ConfigError: the model has fewer than 3 layers or 2 kv heads, a head size below 16, or a width that is too small
            for the subspaces.
    """
    if not isinstance(model, Llama):
        raise ConfigError("recipe: model.induction is made for family 'llama' only")
    config = model.config
    size, width = config.head_size, config.width
    if config.layers < 3 or config.kv_heads < 2 or size < 16 or width < 6 * size + 1 or config.query_key_norm:
        raise ConfigError(
            "initialise = 'induction' needs at least 3 layers, 2 kv heads, head size 16 and a width above 6 x head size"
        )
    with torch.no_grad():
        model.embedding.weight.normal_(0.0, EMBEDDING_STD, generator=generator)
        model.embedding.weight[:, 0] = CONSTANT
        model.get_parameter("norm.weight").fill_(HEAD_NORM)
        layers = [layer for layer in model.layers if isinstance(layer, Block)]
        for layer in layers:
            layer.attention.output.weight.zero_()
            layer.mlp.get_parameter("down.weight").zero_()
        random = torch.randn(width - 1, width - 1, generator=generator)
        basis = torch.cat(
            [torch.zeros(width - 1, 1), torch.linalg.qr(random)[0]], dim=1
        )  # the rows are zero in column 0
        token, before, *copied = basis.split(size)[:6]
        frequencies = plain_frequencies(size, config.positions.base).float()
        _previous_token(layers[0].attention, frequencies, token, before)
        for number, layer in enumerate(layers[1:3]):
            _match(layer.attention, token, before, copied[2 * number : 2 * number + 2])


def _previous_token(attention: Attention, frequencies: Tensor, token: Tensor, before: Tensor) -> None:
    size, half = attention.shape.head_size, attention.shape.head_size // 2
    normed = CONSTANT / EMBEDDING_STD  # approximate value of the constant after the norm
    strength = torch.zeros(half)
    strength[:FAST_PAIRS] = FAST_SCORE / normed
    query, key = attention.query.weight[:size], attention.key.weight[:size]
    query.zero_()
    key.zero_()
    query[:half, 0] = strength
    key[:half, 0] = strength * torch.cos(frequencies)
    key[half:, 0] = strength * torch.sin(frequencies)
    attention.value.weight[:size] = token
    attention.output.weight[:, :size] = before.T * EMBEDDING_STD * 1.5


def _match(attention: Attention, token: Tensor, before: Tensor, copied: list[Tensor]) -> None:
    size, half = attention.shape.head_size, attention.shape.head_size // 2
    group = attention.shape.heads // attention.shape.kv_heads
    slow = half // 2
    places = torch.cat([torch.arange(half - slow, half), torch.arange(size - slow, size)])
    for kv, values in enumerate(copied):
        q, k = kv * group * size, kv * size
        chosen = slice(kv * half % size, kv * half % size + 2 * slow)
        attention.query.weight[q : q + size].zero_()
        attention.key.weight[k : k + size].zero_()
        attention.query.weight[q + places] = token[chosen] * MATCH_SCORE**0.5
        attention.key.weight[k + places] = before[chosen] * MATCH_SCORE**0.5
        attention.value.weight[k : k + size] = values
        attention.output.weight[:, q : q + size] = values.T * EMBEDDING_STD * COPY_WEIGHT
