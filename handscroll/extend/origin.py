"""What a lengthened checkpoint was trained with, so that lengthening it once more starts from there.

A `config.json` cannot say it of a longer context that was only declared, of a larger rope base, or of stretched buckets
and slopes: the folder's `handscroll.json` does, under `trained` and `before`. A checkpoint that was tuned since, or
trained on (which leaves no such record), has learned the positions that it has, and they are its origin.
"""

from handscroll.base.spec import Positions
from handscroll.lm import LM


def origin(lm: LM) -> Positions:
    """The positions that `lm` was trained with, and their length.

    Of a record of before 2026-11-26, which has no `before`, only method `none` tells what it was; after others the
    positions are taken as trained with.
    """
    own, record = lm.model.spec.positions[0], lm.provenance
    tuned = record.get("tuned")
    if "trained" not in record or (tuned is not None and tuned.get("kept", True)):
        return own.origin()
    before = record.get("before")
    if before is None and str(record.get("method", "")).startswith("none"):
        before = own.remembered()
    return own.restored(before, lm.trained)
