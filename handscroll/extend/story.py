"""A demonstration of one extension with all measurements: the failure, every method, a short tuning, and the proof.

`handscroll demo` runs it on the starter model and this machine's Python standard library, or on the user's model and
text. The texts for choosing, tuning and proving are disjoint.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handscroll.base.errors import DataError
from handscroll.base.records import read_records
from handscroll.data.corpus import select
from handscroll.evaluate.needle import NeedleGrid, needle_grid
from handscroll.evaluate.perplexity import Losses, measure
from handscroll.evaluate.samples import Sample, windows
from handscroll.extend.bakeoff import Outcome
from handscroll.extend.extend import extension
from handscroll.extend.tune import TuneSettings
from handscroll.lm import LM
from handscroll.text.readers import Document, Reader, read

STARTER = Path(__file__).parent.parent / "starter"
# These modules were not in the starter's training text (recipes/starter.toml). The three lists are disjoint.
CHOOSE = ("argparse.py", "zipfile.py", "logging/__init__.py")
TUNE = (
    "pickle.py",
    "pickletools.py",
    "doctest.py",
    "mailbox.py",
    "imaplib.py",
    "optparse.py",
    "unittest/mock.py",
    "pdb.py",
)
PROVE = ("typing.py", "tarfile.py", "turtle.py", "_pydecimal.py", "inspect.py", "subprocess.py", "statistics.py")

Note = Callable[[str], None]


@dataclass(frozen=True)
class Texts:
    """The documents of one story, by their purpose."""

    choose: list[Document]
    tune: list[Document]
    prove: list[Document]

    @classmethod
    def of_library(cls) -> "Texts":
        """Modules of the running Python's standard library."""
        parts = (_library(names) for names in (CHOOSE, TUNE, PROVE))
        return cls(*parts)

    @classmethod
    def of_files(cls, files: Sequence[str | Path], reader: Reader | None = None) -> "Texts":
        """The user's files: 30 % for tuning, 20 % for choosing, the rest for the proof.

        Six documents or more are distributed whole. Fewer documents are each cut into three parts.
        """
        documents = list((reader or Reader()).read(list(files)))
        if len(documents) >= 6:
            return cls(
                choose=documents[3::5], tune=documents[1::5], prove=documents[0::5] + documents[2::5] + documents[4::5]
            )
        cut = [(d, round(0.3 * len(d.text)), round(0.5 * len(d.text))) for d in documents]
        return cls(
            tune=[Document(d.text[:a], f"{d.source} (first 30 %)") for d, a, b in cut],
            choose=[Document(d.text[a:b], f"{d.source} (next 20 %)") for d, a, b in cut],
            prove=[Document(d.text[b:], f"{d.source} (last half)") for d, a, b in cut],
        )


@dataclass(frozen=True)
class Plan:
    """The size of each part of the story. The defaults take about three minutes with the starter on two cores."""

    to: int
    windows: int = 8
    choose_windows: int = 2
    needle_samples: int = 5
    needles: bool = True
    tune_steps: int = 20
    tune_rows: int = 1
    seed: int = 0


@dataclass
class Story:
    """All results. `records` gives them for the report; the curves are before, after and sliding window."""

    before: LM
    after: LM
    outcome: Outcome
    curves: dict[str, Losses] = field(default_factory=dict)
    needles: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    training: dict[str, Any] | None = None

    def records(self) -> list[dict[str, Any]]:
        curves = [curve.record(self.after if name == "after" else self.before) for name, curve in self.curves.items()]
        tail = [] if self.training is None else [self.training]
        return [*curves, self.outcome.record(), *self.needles.values(), *tail, *self.samples]


def tell(lm: LM, texts: Texts, plan: Plan, folder: Path, note: Note) -> Story:
    """Run the story. The tuning's checkpoints go to `folder`/tuning, and the lengthened model to `folder`/model.

    Raises:
        DataError: no text is long enough for one window of the target length.
    """
    trained = lm.model.config.trained
    proof = windows(texts.prove, lm.tokenizer, plan.to, plan.windows, plan.seed)
    note(f"1/5 how it fails: loss by position to {plan.to:,} (trained to {trained:,})")
    curves = {} if lm.model.spec.limit is not None else {"before": measure(lm, proof, "before")}
    curves["sliding window"] = measure(lm, proof, "sliding window", window=trained)
    needles = {}
    if plan.needles:
        note("2/5 needles before")
        needles["before"] = _needle(lm, texts, plan, "before", trained)
    note(f"3/5 every method at {plan.to:,} tokens")
    settings, tuning_files = None, _write_texts(texts.tune, folder / "tuning-text")
    if plan.tune_steps:
        values = {"files": (str(tuning_files),), "steps": plan.tune_steps, "rows": plan.tune_rows, "seed": plan.seed}
        settings = TuneSettings.parse(values | {"precision": "bfloat16"}, "demo")
    choose_files = _write_texts(texts.choose, folder / "choosing-text")
    result = extension(
        lm,
        plan.to,
        text=choose_files,
        measured=plan.choose_windows * plan.to,
        tune=settings,
        folder=folder / "tuning",
        seed=plan.seed,
        progress=lambda text, *_: note(f"3/5 {text}"),
        on_record=lambda record: note(
            f"4/5 tuning: step {record['step']}/{plan.tune_steps}, loss {record['loss']:.3f}"
        ),
    )
    assert result.outcome is not None
    story = Story(lm, result.lm, result.outcome, curves, needles)
    note("5/5 proof: loss by position")
    story.curves["after"] = measure(result.lm, proof, "after")
    if plan.needles:
        note("5/5 proof: needles")
        story.needles["after"] = _needle(result.lm, texts, plan, "after", trained)
    if settings is not None:
        story.training = _training_record(folder / "tuning")
    story.samples.append(_sample(result.lm, proof[0], plan))
    result.lm.save(folder / "model")
    return story


def _needle(lm: LM, texts: Texts, plan: Plan, label: str, trained: int) -> dict[str, Any]:
    limit = lm.model.spec.limit or plan.to
    lengths = tuple(length for length in _doublings(trained, plan.to) if length <= limit)
    filler = [token for document in texts.prove for token in lm.tokenizer.encode(document.text, special=False)]
    return needle_grid(lm, filler, NeedleGrid(lengths=lengths, samples=plan.needle_samples, seed=plan.seed), label)


def _sample(lm: LM, proof: Sample, plan: Plan) -> dict[str, str]:
    """The model's continuation of a prompt that fills most of the new context, with the end of that prompt."""
    size, new = min(plan.to - 128, 3 * plan.to // 4), 80
    ids = proof.ids[:size]
    text = lm.generate(ids, max_tokens=new, plain=True)
    shown = lm.decode(ids[-60:])
    return {"kind": "sample", "prompt": f"[{size - 60:,} tokens before this]{shown}", "text": text}


def _training_record(folder: Path) -> dict[str, Any]:
    records = list(read_records(folder / "records.jsonl"))
    return {"kind": "training", "steps": [r["step"] for r in records], "loss": [r["loss"] for r in records]}


def _write_texts(documents: Sequence[Document], folder: Path) -> Path:
    """Write the documents to files, so that tuning and choosing can record and hash their texts."""
    if not documents:
        raise DataError(
            "there is not enough text: choosing, tuning and proving need one document each; give more files"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for number, document in enumerate(documents):
        (folder / f"{number:03d}.txt").write_text(document.text, encoding="utf-8", newline="")
    return folder


def _doublings(first: int, last: int) -> list[int]:
    lengths = [first]
    while lengths[-1] * 2 <= last:
        lengths.append(lengths[-1] * 2)
    return lengths if lengths[-1] == last else [*lengths, last]


def _library(names: Sequence[str]) -> list[Document]:
    return list(read(select([f"{{stdlib}}/{name}" for name in names])))
