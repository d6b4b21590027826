"""Is the head the token table, where the configuration ties the two, and its own matrix where it does not?"""

import torch

from handscroll.doctor.finding import Cannot, Check, Fault, Seen
from handscroll.doctor.runtime import Runtime


def run(runtime: Runtime) -> Seen:
    facts = runtime.facts
    if facts is None:
        raise Cannot("its configuration is not known")
    table, head = runtime.head()
    equal = table.shape == head.shape and torch.equal(table, head)
    if facts.tied:
        return Seen("the head is the token table") if equal else Seen("the head is another matrix", (_lost(),))
    try:
        stored = runtime.stored_head()
    except Cannot:
        stored = True
    if not stored and not equal:
        return Seen("the head is in no file", (_invented(),))
    return Seen("the head is a matrix of its own")


def _lost() -> Fault:
    return Fault(
        "the configuration ties the head to the token table (tie_word_embeddings), and the runtime has another matrix",
        "every answer is noise from the first token on, or training makes two matrices of what was one",
        "call tie_weights() after the weights were changed or loaded, and save the model with its tie",
    )


def _invented() -> Fault:
    return Fault(
        "the configuration gives the head a matrix of its own, and the files hold none: it was made of random numbers",
        "every answer is noise from the first token on, with a warning at loading that is easily missed",
        "set tie_word_embeddings to true in config.json (the head was tied and the key was lost), or fetch the file "
        "that holds the head",
    )


CHECK = Check("Is the head the one that the configuration names (tied or its own)?", run)
