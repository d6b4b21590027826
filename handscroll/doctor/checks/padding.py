"""Is padding harmless on either side, and do prompts in one batch go on as they go on alone?

The second is what decides which side is right: a runtime takes the logits of one place of every row, and where that
place is padding the continuation is noise.
"""

import torch

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.probes import probe, room
from handscroll.doctor.runtime import Runtime, Trial, apart, close, rows_apart

SIZES = (29, 12, 20)


def run(runtime: Runtime) -> Seen:
    rows = tuple(probe(runtime, room(runtime, size) + number)[number:] for number, size in enumerate(SIZES))
    alone = [runtime.read(Trial((row,)))[0] for row in rows]
    faults, notes, told = [], [], []
    try:
        if runtime.facts is not None and runtime.facts.spec is not None and runtime.facts.spec.recurrent:
            raise Cannot("a recurrent model reads its rows from their first token on")
        padded = runtime.read(Trial(rows, pad="left"))
        off = max(float(rows_apart(found, wanted).max()) for found, wanted in zip(padded, alone, strict=True))
        told.append(f"left padding: {close(off, 5 * runtime.rounding)}")
        if off > 5 * runtime.rounding:
            faults.append(_moved(off))
    except Cannot as error:
        notes.append(f"left padding could not be tried: {error}")
    try:
        following, wanted = runtime.following(rows), torch.stack([one[-1] for one in alone])
        off = apart(torch.stack(following), wanted)
        told.append(f"next tokens of a batch: {close(off, 5 * runtime.rounding)}")
        if off > 5 * runtime.rounding:
            notes, faults = _sided(runtime, off, notes, faults)
    except Absent:
        pass
    if not told:
        raise Cannot("; ".join(notes))
    return Seen("; ".join(told), tuple(faults), tuple(notes))


def _sided(runtime: Runtime, off: float, notes: list[str], faults: list[Fault]) -> tuple[list[str], list[Fault]]:
    """A tokenizer that nobody told a side pads on the right in `transformers`: that is worth a note, not an alarm."""
    words = runtime.words
    if (
        words is not None
        and not words.pads
        and getattr(getattr(words, "tokenizer", None), "padding_side", "") == "right"
    ):
        say = "the tokenizer's settings name no padding side and the library pads on the right: for generate() with "
        return [*notes, say + "several prompts set tokenizer.padding_side = 'left'"], faults
    fault = Fault(
        f"the next token of a prompt in a batch is not that of the prompt alone (off by {off:.2g} of the spread): the "
        "logits are taken from padding",
        "the shorter prompts of a batch are continued with nonsense; one prompt at a time works",
        "pad on the left (tokenizer.padding_side = 'left'), or take the logits of each row's last token",
    )
    return notes, [*faults, fault]


def _moved(off: float) -> Fault:
    return Fault(
        f"a row that is padded on the left differs from the same row alone, by {off:.2g} of its spread",
        "batched generation gives other texts than one prompt at a time",
        "padding is attended to, or counted as positions: pass attention_mask, and position_ids counted from the first "
        "real token",
    )


CHECK = Check("Is padding harmless, and are the next tokens of a batch those of each prompt?", run)
