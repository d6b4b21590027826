"""The positions that a lengthened checkpoint was trained with; lengthening it once more starts from them.

A `config.json` does not show that a longer context was only declared, or that the rope base, buckets or slopes were
changed. The folder's `handscroll.json` records the earlier values under `trained` and `before`. A checkpoint that was
tuned or trained afterwards (training leaves no such record) has learned its present positions, so they are its origin.
"""

from handscroll.base.spec import Positions
from handscroll.lm import LM


def origin(lm: LM) -> Positions:
    """The positions that `lm` was trained with, and their length.

    Records written before 2026-11-26 have no `before`. From such a record the original positions are known only if the
    method was `none`; after other methods the present positions count as the trained ones.
    """
    own, record = lm.model.spec.positions[0], lm.provenance
    tuned = record.get("tuned")
    if "trained" not in record or (tuned is not None and tuned.get("kept", True)):
        return own.origin()
    before = record.get("before")
    if before is None and str(record.get("method", "")).startswith("none"):
        before = own.remembered()
    return own.restored(before, lm.trained)
