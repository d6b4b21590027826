"""How rows are changed into new ones, as a recipe says it; words are filled in by a masked model."""

from collections.abc import Sequence

import torch

from handscroll.base.errors import ConfigError
from handscroll.data.table.augment import Way, delete, replace, swap, translate
from handscroll.lm import LM, load
from handscroll.models.sentences import groups
from handscroll.nn.marks import Marks
from handscroll.tasks.back_translation import BackTranslation, OnWork
from handscroll.tasks.made import NOWHERE, Made
from handscroll.tasks.recipe import Augment

TOKENS = 4096  # of a batch


def changing(settings: Augment, on_work: OnWork = lambda what, total, done: None, made: Made = NOWHERE) -> Way:
    """The way of `settings`; `on_work` is told how far translations are, and `made` keeps them.

    Raises:
        ConfigError: a model cannot do it.
    """
    if settings.way == "replace":
        lm = load(settings.model)
        return replace(lambda gaps: filled(lm, gaps), settings.share)
    if settings.way == "translate":
        return translate(BackTranslation(settings, on_work, made))
    return {"swap": swap, "delete": delete}[settings.way](settings.share)


@torch.no_grad()
def filled(lm: LM, gaps: Sequence[tuple[str, str]]) -> list[str]:
    """The likeliest word of a masked model for each gap, given the text before and behind it.

    A word is a token of letters and digits only, which WordPiece gives to no continuation of another one.

    Raises:
        ConfigError: the model is not an encoder with a masked-LM head and a mask token.
        CapacityError: a text is longer than the model's context.
    """
    tokenizer, mask = lm.tokenizer, lm.tokenizer.mask
    if lm.model.spec.reads != "both" or not lm.model.spec.predicts or mask is None:
        raise ConfigError(
            f"words are filled in by an encoder with a masked-LM head and a mask token (bert, roberta); {lm.source} "
            "lacks one of them"
        )
    words = {number: tokenizer.decode([number]) for number in range(tokenizer.vocab_size)}
    allowed = torch.tensor([word.strip().isalnum() for word in words.values()])
    allowed = torch.cat([allowed, allowed.new_zeros(max(0, lm.model.config.vocab - len(allowed)))]).to(lm.model.device)
    rows = [_masked(lm, before, behind, mask) for before, behind in gaps]
    found = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    for group in groups(order, [len(row) for row in rows], TOKENS):
        ids = torch.zeros(len(group), max(len(rows[at]) for at in group), dtype=torch.int64)
        index = torch.full_like(ids, -1)
        for place, at in enumerate(group):
            ids[place, : len(rows[at])] = torch.tensor(rows[at])
            index[place, : len(rows[at])] = torch.arange(len(rows[at]))
        ids, marks = ids.to(lm.model.device), Marks.of(index.to(lm.model.device))
        hidden = lm.model.hidden(lm.model.embed(ids, marks), marks, lm.model.mask(), length=ids.shape[1])
        logits = lm.model.logits(hidden[torch.arange(len(group)), [rows[at].index(mask) for at in group]][:, None])
        best = logits[:, 0].masked_fill(~allowed, float("-inf")).argmax(dim=-1).tolist()
        for at, number in zip(group, best, strict=True):
            found[at] = words[number].strip()
    return found


def _masked(lm: LM, before: str, behind: str, mask: int) -> list[int]:
    """The text with a mask token in its gap, between the tokenizer's special tokens."""
    middle = [*lm.encode(before, special=False), mask, *lm.encode(behind, special=False, follows=True)]
    around = lm.encode("", special=True)
    first = len(around) - len(around) // 2
    return [*around[:first], *middle, *around[first:]]
