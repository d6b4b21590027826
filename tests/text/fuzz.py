"""Mutated tokenizer files, tried in a process that may die; `python -m tests.text.fuzz KIND FIRST COUNT [SEED]`.

A wrong tokenizer file can end the whole process inside the tokenizers library, so a test that tries many runs here. The
process writes the number of each case before it tries it, and what was wrong after it.
"""

import copy
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from handscroll.base.errors import HandscrollError
from handscroll.text.sentencepiece import sentencepiece_json
from handscroll.text.tokenizer import Tokenizer
from tests.hostile import VALUES, damaged, places, put
from tests.text.small import LINES, trained

TEXTS = (
    "",
    "a",
    LINES[0],
    "北京 x\u0301 ﬁ\u200b\n\n  12345 👍🏽",
    "<s>hi</s> [MASK] <|endoftext|>",
    "\0\ufeff\u0600 ﷺ",
)
WORDS = ("BPE", "Unigram", "WordPiece", "WordLevel", "ByteLevel", "Split", "Metaspace", "Replace", "Precompiled", "NFC")
MORE = ("Strip", "ByteFallback", "TemplateProcessing", "BertNormalizer", "FixedLength", "Digits", "Punctuation", "CTC")
REGEXES = (
    {"Regex": "("},
    {"Regex": ""},
    {"Regex": "(a*)*b"},
    {"Regex": "(?<=a+)b"},
    {"String": ""},
    {"Regex": "x" * 9},
)
STRINGS = ("Isolated", "Removed", "▁▁", "\ud7ff", "a" * 70_000)
OWN: tuple[Any, ...] = (*VALUES, *WORDS, *MORE, *REGEXES, *STRINGS, 2**32 - 1)


def kinds() -> dict[str, Callable[[], dict[str, Any]]]:
    return {"bytes": _bytes, "llama": _llama, "bert": _bert, "words": _words, "unigram": _unigram}


def _bytes() -> dict[str, Any]:
    return json.loads(trained("bpe").source)


def _llama() -> dict[str, Any]:
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    built = Engine(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    built.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    built.decoder = decoders.Sequence(parts)
    built.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return json.loads(built.to_str())


def _bert() -> dict[str, Any]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    built = Engine(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(True)])
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    built.train_from_iterator(LINES, trainer)
    built.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    built.decoder = decoders.WordPiece()
    return json.loads(built.to_str())


def _words() -> dict[str, Any]:
    built = Engine(models.WordLevel({"[UNK]": 0, "the": 1, "fox": 2, "<s>": 3, "</s>": 4}, "[UNK]"))
    steps = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Strip(), normalizers.Lowercase()]
    built.normalizer = normalizers.Sequence(steps)
    split = pre_tokenizers.Split(pre_tokenizers.Split.__name__, "isolated")
    built.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), split, pre_tokenizers.Punctuation()])
    built.add_special_tokens(["<s>", "</s>"])
    built.post_processor = processors.RobertaProcessing(("</s>", 4), ("<s>", 3))
    built.decoder = decoders.CTC()
    return json.loads(built.to_str())


def _unigram() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "spiece.model"
        file.write_bytes(_model())
        made, _ = sentencepiece_json(file, {}, {})
    return json.loads(made)


def _model() -> bytes:
    """A SentencePiece model with a small table of characters that are written otherwise."""
    import sentencepiece

    written = io.BytesIO()
    with tempfile.TemporaryDirectory() as work:
        rules = Path(work) / "rules.tsv"
        rules.write_text("FB01\t66 69\n200B\t\n65 301\tE9\n", encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([line.strip() for line in LINES * 40]),
            model_writer=written,
            model_type="unigram",
            vocab_size=110,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(rules),
            minloglevel=2,
            num_threads=1,
        )
    return written.getvalue()


def case(spec: dict[str, Any], number: int, seed: int = 0) -> str:
    """The file of one case: a value, a key or some bytes were changed."""
    chance = random.Random(f"{seed}-{number}")
    if number % 4 == 0:
        return damaged(json.dumps(spec).encode(), chance, 1 << 30).decode("utf-8", "replace")
    spots = [place for place in places(spec) if place[:2] != ("model", "vocab") and place[:2] != ("model", "merges")]
    inner = [place for place in places(spec) if len(place) > 2 and place[0] == "model"]
    changed = copy.deepcopy(spec)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        place = chance.choice(inner if inner and chance.random() < 0.2 else spots)
        try:
            changed = put(changed, place, _new(changed, place, chance))
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    return json.dumps(changed)


def _new(spec: dict[str, Any], place: tuple, chance: random.Random) -> Any:
    value: Any = spec
    for key in place:
        value = value[key]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.4:
        return value + chance.choice([-1, 1, 1000])
    if isinstance(value, str) and value and chance.random() < 0.3:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice(["", "é", "A", "\0", value]) + value[at + 1 :]
    if isinstance(value, list) and value and chance.random() < 0.3:
        return chance.choice([value[1:], value + value, value[::-1]])
    return chance.choice(OWN)


def folder_case(folder: Path, number: int, seed: int = 0) -> None:
    """Damage one file of a folder."""
    chance = random.Random(f"{seed}-{number}")
    file = chance.choice(sorted(folder.iterdir()))
    data = file.read_bytes()
    if file.suffix == ".json" and len(data) < 4000 and chance.random() < 0.8:
        content = json.loads(data)
        spots = list(places(content))
        if spots:
            file.write_text(json.dumps(put(content, chance.choice(spots), chance.choice(OWN))), encoding="utf-8")
            return
    file.write_bytes(damaged(data, chance, 1 << 30))


def folders() -> dict[str, Callable[[Path], None]]:
    return {"vocabulary": _vocabulary, "wordpiece": _wordpiece, "settings": _settings, "sentencepiece": _pieces}


def _vocabulary(folder: Path) -> None:
    model = _bytes()["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true, "tokenizer_class": "GPT2Tokenizer"}')
    (folder / "config.json").write_text('{"model_type": "gpt2", "eos_token_id": 3, "vocab_size": 300}')


def _wordpiece(folder: Path) -> None:
    names = sorted(_bert()["model"]["vocab"])
    (folder / "vocab.txt").write_text("\n".join(names), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": null}')


def _settings(folder: Path) -> None:
    trained("bpe").save(folder)
    token = {"content": "<t>", "lstrip": False, "normalized": False, "special": True}
    settings = {
        "added_tokens_decoder": {"299": {**token, "content": "<|endoftext|>"}, "300": token},
        "bos_token": {"__type": "AddedToken", **token},
        "eos_token": "<|endoftext|>",
        "additional_special_tokens": ["<t>"],
        "chat_template": [{"name": "default", "template": "{{ messages }}"}],
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": token, "eos_token": "<|endoftext|>"}))
    (folder / "config.json").write_text('{"eos_token_id": [299], "bos_token_id": 300, "vocab_size": 301}')


def _pieces(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(_model())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 3}')


def use(tokenizer_json: str) -> None:
    """Load a tokenizer and use it in every way."""
    tried(Tokenizer(tokenizer_json))


def tried(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        tokenizer.decode(ids, special=True)
        tokenizer.encode(text, parse=True, follows=True)
        tokenizer.around(tokenizer.encoding(text), tokenizer.encoding("a"))
    tokenizer.decode(range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // 300)))
    tokenizer.room(True)
    with tempfile.TemporaryDirectory() as work:
        tokenizer.reaching(64).save(work)


def act(kind: str, seed: int) -> Callable[[int], None]:
    """What is done with a case, by its number."""
    if kind in kinds():
        spec = kinds()[kind]()
        use(json.dumps(spec))
        return lambda number: use(case(spec, number, seed))
    whole = Path(tempfile.mkdtemp())
    folders()[kind](whole)
    tried(Tokenizer.load(whole))

    def one(number: int) -> None:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(shutil.copytree(whole, Path(work) / "folder"))
            folder_case(folder, number, seed)
            tried(Tokenizer.load(folder))

    return one


def main(kind: str, first: int, count: int, seed: int = 0) -> None:
    one = act(kind, seed)
    for number in range(first, first + count):
        print(f"case {number}", flush=True)
        try:
            one(number)
        except HandscrollError:
            pass
        except BaseException as error:  # noqa: BLE001  (every other error is a fault, panics too)
            print(f"fault {number} {type(error).__name__}: {str(error)[:150]!r}", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
