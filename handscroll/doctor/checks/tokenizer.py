"""Does the tokenizer belong to the model, and do texts survive it?"""

from handscroll.doctor.finding import Check, Fault, Seen
from handscroll.doctor.runtime import Runtime, Words

TEXTS = (
    "The keeper counted four ships, at 6.30 in the morning.",
    "灯塔建在岩石上，潮水每天两次淹没它。",
    "def count(ships):\n    return {name: 1 for name in ships}\n",
    "naïve café — “quoted”, 12,345.67 €, 🙂",
)


def run(runtime: Runtime) -> Seen:
    words = runtime.speaks()
    faults, notes = [], []
    vocab = runtime.facts.vocab if runtime.facts is not None else 0
    lost, drifting, highest = [], [], 0
    for text in TEXTS:
        ids = words.encode(text, frame=False)
        highest = max([highest, *ids])
        once = words.decode(ids)
        twice = words.decode(words.encode(once, frame=False))
        lost += [text] if once.strip() != text.strip() else []
        drifting += [text] if twice.strip() != once.strip() else []
    if vocab and highest >= vocab:
        faults.append(_foreign(highest, vocab))
    elif vocab and words.size - words.beyond > vocab:
        faults.append(_foreign(words.size - 1, vocab))
    if drifting:
        notes.append(f"'{drifting[0][:24]}...' changes again each time it is decoded and encoded")
    if lost:
        notes.append(f"{len(lost)} of {len(TEXTS)} texts come back changed (letters that it does not know or folds)")
    if words.roles.get("unk") is None and lost and not drifting and _all_garbled(words):
        faults.append(_garbled())
    return Seen(f"{len(TEXTS) - len(lost)} of {len(TEXTS)} texts come back as they were", tuple(faults), tuple(notes))


def _all_garbled(words: Words) -> bool:
    """Whether even plain English comes back as something else, letters and all."""
    text = TEXTS[0]
    letters = [one for one in words.decode(words.encode(text, frame=False)).lower() if one.isalnum()]
    return letters != [one for one in text.lower() if one.isalnum()]


def _foreign(number: int, vocab: int) -> Fault:
    return Fault(
        f"the tokenizer gives token {number:,}, and the model's table has {vocab:,} rows",
        "an error in the middle of a text, or on a GPU a failed assertion far from its cause",
        "the tokenizer belongs to another model, or tokens were added without resize_token_embeddings: take the "
        "tokenizer of this checkpoint",
    )


def _garbled() -> Fault:
    return Fault(
        "plain English does not survive encoding and decoding, although the tokenizer knows every byte",
        "prompts and answers are garbled",
        "the decoder of tokenizer.json does not fit its pre-tokenizer: copy the tokenizer of the checkpoint again",
    )


CHECK = Check("Does the tokenizer fit the model, and do texts come back from it?", run)
