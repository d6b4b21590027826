"""The truncation certificate: what was fed, of what was offered, and a score of parts refused."""

import hashlib
import struct

import pytest
import torch

from handscroll.base.errors import DataError
from handscroll.evaluate.certificate import Certificate, certify, require_whole, together
from handscroll.evaluate.perplexity import Losses
from handscroll.evaluate.samples import Sample
from tests.naming import naming


@pytest.mark.promise("R15")
def test_the_hash_is_over_the_ids_that_were_fed():
    ids = [5, 0, 70_000]
    expected = hashlib.sha256(b"".join(struct.pack("<q", one) for one in ids)).hexdigest()
    assert certify(ids, 4) == certify(torch.tensor(ids), 4) == Certificate(4, 3, expected)
    assert certify([0, 5, 70_000], 4).sha256 != expected


def test_what_one_text_lacks_no_other_makes_up_for():
    whole, cut, longer = certify([1, 2, 3], 3), certify([1], 3), certify([1, 2, 3, 4], 3)
    assert [one.whole for one in (whole, cut, longer)] == [True, False, True]
    both = together([whole, cut, longer])
    assert (both.offered, both.seen, both.whole) == (9, 7, False)
    assert both.sha256 != together([cut, whole, longer]).sha256


def test_a_score_over_unseen_tokens_is_refused():
    require_whole(certify([1, 2], 2), "a text")
    with pytest.raises(DataError, match=naming("notes.txt", "1 of 2")):
        require_whole(certify([1], 2), "notes.txt")


def test_a_loss_curve_of_a_part_of_its_windows_gives_no_record():
    """The commonest fault: a window of 8 tokens of which the model was given 5."""
    samples = [Sample(list(range(8)), "a.txt", 0)]
    assert Losses("exact", torch.ones(1, 7), samples).certificate.whole
    with pytest.raises(DataError, match=naming("exact", "5 of 8")):
        Losses("exact", torch.ones(1, 4), samples).record(None)  # pyright: ignore[reportArgumentType]
