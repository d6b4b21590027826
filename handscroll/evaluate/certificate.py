"""The truncation certificate: how many tokens a score was asked of, how many the model saw, and the hash of those ids.

The commonest silent fault of long-context scores is that a part of the text never reached the model. So every record of
a score carries a certificate, and a score over unseen tokens is refused unless it was asked for.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from handscroll.base.errors import DataError


@dataclass(frozen=True)
class Certificate:
    """`offered` tokens were to be read and `seen` were fed to the model; `sha256` is the hash of the ids fed.

    The hash is over the ids as whole numbers of eight bytes, the lowest byte first; that of several texts (`together`)
    is over the hashes of each.
    """

    offered: int
    seen: int
    sha256: str

    @property
    def whole(self) -> bool:
        """Whether the model saw every token that was offered."""
        return self.seen >= self.offered

    def record(self) -> dict[str, Any]:
        """The certificate as it stands in a record."""
        return asdict(self)


def certify(ids_fed: Sequence[int] | np.ndarray | Tensor, offered: int) -> Certificate:
    """The certificate of one text: the ids that were fed to the model, of `offered` tokens that the whole text has."""
    ids = np.asarray(ids_fed.cpu() if isinstance(ids_fed, Tensor) else ids_fed, dtype="<i8")
    return Certificate(offered, len(ids), hashlib.sha256(ids.tobytes()).hexdigest())


def together(certificates: Iterable[Certificate]) -> Certificate:
    """The certificate of several texts, in their order."""
    some = list(certificates)
    digest = hashlib.sha256("".join(one.sha256 for one in some).encode())
    # What one text has beyond what was offered of it makes up for nothing that another lacks.
    missing = sum(max(0, one.offered - one.seen) for one in some)
    offered = sum(one.offered for one in some)
    return Certificate(offered, offered - missing, digest.hexdigest())


def require_whole(certificate: Certificate, what: str) -> None:
    """Refuse the score of a text that was not read to its end.

    Raises:
        DataError: fewer tokens were seen than offered.
    """
    if not certificate.whole:
        raise DataError(
            f"{what}: the model saw {certificate.seen:,} of {certificate.offered:,} tokens, and the score of a part of "
            "a text is no score of the text; lengthen the model, take shorter texts, or ask for a score of parts"
        )
