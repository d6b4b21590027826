"""Text that the model writes itself, to choose a scaling when the user gives no text.

The texts are no longer than needed (nor than the trained context), sampled at temperature 0.8, and joined. They show
whether positions still work, but not whether the model uses far context. The user's own long
text is always the better choice.
"""

from handscroll.base.errors import ConfigError
from handscroll.extend.measuring import ROWS, own_size
from handscroll.generate.decode import decode
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.lm import LM
from handscroll.text.readers import Document


def own_text(lm: LM, tokens: int, seed: int = 0) -> Document:
    """A document of at least `tokens` tokens, written by the model in batches of `ROWS` texts.

    Raises:
        ConfigError: the model has no bos or eos token, so it cannot begin a text.
    """
    config = lm.model.config
    start = config.bos if config.bos is not None else next(iter(config.eos), None)
    if start is None:
        raise ConfigError("the model has no bos or eos token, so it cannot begin a text: give --text FILES")
    size = own_size(config.trained, tokens)
    parts: list[str] = []
    count = 0
    for batch in range(1, 1000):
        rows: list[list[int]] = [[] for _ in range(ROWS)]
        sampling = Sampling(max_tokens=size, temperature=0.8, seed=seed * 1000 + batch)
        for step in decode(lm.model, [Request([start], sampling)] * ROWS):
            for new in step:
                rows[new.row].append(new.token)
        parts += [lm.decode(row) for row in rows if len(row) > 1]
        count += sum(len(row) for row in rows)
        if count >= tokens * 1.1:
            break
    return Document("\n".join(parts), "the model's own writing")
