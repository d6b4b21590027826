"""The special tokens of blank infilling (Du et al. 2022, arXiv:2103.10360)."""

from dataclasses import dataclass

from handscroll.base.errors import ConfigError
from handscroll.text.tokenizer import Tokenizer

NAMES = ("[MASK]", "[gMASK]", "[sop]", "[eop]")


@dataclass(frozen=True)
class BlankTokens:
    """Ids of the tokens for a blanked span, for all that follows, for the beginning and the end of what fills one."""

    blank: int
    rest: int
    start: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "BlankTokens":
        """
        Raises:
            ConfigError: the tokenizer lacks one of [MASK], [gMASK], [sop], [eop].
        """
        words = tokenizer.words
        missing = [name for name in NAMES if name not in words]
        if missing:
            raise ConfigError(
                f"blank infilling needs the special tokens {', '.join(NAMES)}; this tokenizer lacks "
                f"{', '.join(missing)} (tokenizer.train.special)"
            )
        return cls(*(words.index(name) for name in NAMES))
