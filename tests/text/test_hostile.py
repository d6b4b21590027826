"""Damaged tokenizer files: each is taken or refused with an error for users; none ends the process."""

import subprocess
import sys
from collections import Counter

import pytest

from handscroll.base.errors import CheckpointError
from handscroll.text.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.text import fuzz

KINDS = (*fuzz.kinds(), *fuzz.folders())
SECONDS = 60  # without an answer; a busy machine is slow


def campaign(kind: str, count: int, seed: int) -> list[str]:
    """What was wrong with the cases of a kind; a process that dies or hangs is one fault, and another goes on."""
    faults, first = [], 0
    while first < count:
        command = [sys.executable, "-m", "tests.text.fuzz", kind, str(first), str(min(500, count - first)), str(seed)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=10 * SECONDS, check=False)
            said, ended = done.stdout.decode(), f"the process ended with {done.returncode}"
        except subprocess.TimeoutExpired as error:
            said, ended = (error.stdout or b"").decode(), "no answer"
        lines = said.splitlines()
        faults += [line for line in lines if line.startswith("fault")]
        tried = [int(line.split()[1]) for line in lines if line.startswith("case")]
        assert tried, f"{kind}: nothing was tried"
        if lines[-1:] != ["done"]:
            faults.append(f"fault {tried[-1]} {ended}")
        first = tried[-1] + 1
    return faults


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_answered(kind):
    faults = campaign(kind, 1500, seed=1)
    kinds = Counter(" ".join(fault.split()[2:]) for fault in faults)
    assert not faults, f"{len(faults)} of 1,500: {kinds.most_common(8)}, first {faults[0]}"


@pytest.mark.promise("R19")
@pytest.mark.parametrize("kind", ["unigram", "settings"])
def test_some_damaged_files_are_answered(kind):
    assert campaign(kind, 40, seed=0) == []


FOUND = {  # what the campaigns found
    "bytes": ("decoder", {"type": "Strip", "content": "a", "start": 0, "stop": 9}, "decode"),
    "unigram": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "read"),
    "bert": ("model", {"unk_token": "[NONE]"}, "Missing"),
    "llama": ("normalizer", {"type": "Sequence", "normalizers": "NFC"}, "not a list"),
}


@pytest.mark.parametrize("kind", FOUND)
def test_what_was_found_is_refused(kind):
    part, value, words = FOUND[kind]
    spec = fuzz.kinds()[kind]()
    spec[part] = {**(spec[part] if part == "model" else {}), **value}
    with pytest.raises(CheckpointError, match=words):
        fuzz.use(fuzz.json.dumps(spec))


@pytest.mark.parametrize(
    ("kind", "file", "old", "new", "words"),
    [
        ("vocabulary", "vocab.json", '"a": 64', '"a": 1000000000000', "1000000000000"),
        ("wordpiece", "tokenizer_config.json", "true", '"no"', "do_lower_case"),
        ("sentencepiece", "tokenizer_config.json", "3", "4294967295", "extra_ids"),
    ],
)
def test_what_was_found_in_folders_is_refused(kind, file, old, new, words, tmp_path):
    fuzz.folders()[kind](tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.load(tmp_path)


def test_ids_of_another_type_are_left_out(tmp_path):
    fuzz.folders()["settings"](tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": {"a": 1}, "vocab_size": 301}')
    fuzz.tried(Tokenizer.load(tmp_path))
