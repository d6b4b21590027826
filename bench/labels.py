"""Labels of texts: MiniLM and Qwen tuned here, beside plain baselines, on four real data sets.

python -m bench.labels ../shared/data --minilm FOLDER [--qwen GGUF] [--only sst2,trec] [--ways majority,tfidf,full]

Ways: majority, tfidf (TF-IDF and logistic regression of scikit-learn), lstm (ours, from nothing), first and mean (a
logistic regression over MiniLM's frozen state of the first token, or the mean of all), head, lora and full (MiniLM),
last (full with the token table frozen), final (full on all training rows, the weights of the last update), peer (MiniLM
with all weights, by the Trainer of transformers: rate, epochs, batch, warm-up and weight decay of full, its own
schedule and betas, no decay by layer, all training rows), zero and few (the GGUF file as it is: the word of each label
is scored as the answer, calibrated; after 32 training rows in the prompt, the same ones for each text), qwen (LoRA over
the GGUF file, with a head; 2,000 of the training rows). What is done stays in --work, so a run that was stopped goes on
with the same command; other settings need another --work. TREC, the titles and the toxic comments have no test part
here: a tenth is held out by label, with copies on one side. MiniLM knows English; on Chinese it reads single
characters, of which it knows few.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import handscroll
from bench.kept import claim
from handscroll.data.table.read import read_table
from handscroll.data.table.split import split
from handscroll.data.table.table import Record
from handscroll.metrics.table import compare, measure
from handscroll.models.new import About, new_model
from handscroll.models.sentences import pooled
from handscroll.models.weights import save_model
from handscroll.nn.init import initialise
from handscroll.tasks.classify import Classify
from handscroll.tasks.finetune import Options, finetune
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.recipe import TuningRecipe
from handscroll.text.training import TokenizerConfig, train_tokenizer


@dataclass(frozen=True)
class Data:
    """A data set: its files in the data folder, its columns, whether its words stand apart, and the words by which a
    model that is prompted names its labels 0, 1, ..."""

    title: str
    train: str
    words: tuple[str, ...]
    test: str = ""
    names: tuple[str, ...] = ("label", "text")
    text: str = "text"
    english: bool = True


KINDS = ("description", "entity", "abbreviation", "person", "location", "number")
TOPICS = ("财经", "房产", "股票", "教育", "科技", "社会", "时政", "体育", "游戏", "娱乐")
DATA = {
    "sst2": Data("SST-2 (polarity, 2)", "cls_en/sst2_train.tsv", ("negative", "positive"), "cls_en/sst2_dev.tsv"),
    "trec": Data("TREC (questions, 6)", "cls_en/trec_train.tsv", KINDS),
    "titles": Data("THUCNews titles (10)", "cls_zh/thucnews_train.tsv", TOPICS, names=("text", "label"), english=False),
    "cold": Data("COLD (toxic, 2)", "toxicity_zh/cold_dev.csv", ("正常", "冒犯"), names=(), text="TEXT", english=False),
}
# What was chosen on held-out training rows, never on the test rows.
FULL = {"lr": 1.5e-4, "epochs": 3, "layer_decay": 0.8, "dropout": 0.1}
WAYS: dict[str, dict[str, Any]] = {
    "head": {"way": "head", "lr": 3e-3, "epochs": 5},
    "lora": {"way": "lora", "lr": 1e-3, "epochs": 3},
    "full": {"way": "full", **FULL},
    "last": {"way": "last", "layers": 6, **FULL},  # all layers of MiniLM; the token table stays
    "final": {"way": "full", **FULL, "result": "last"},
    "peer": {"lr": FULL["lr"], "epochs": FULL["epochs"]},
    "lstm": {"way": "full", "lr": 2e-3, "epochs": 4, "dropout": 0.3},
    "qwen": {"way": "lora", "lr": 3e-4, "epochs": 1, "batch": 16, "most": 2000},  # rows: 25 minutes are the limit
}
SAID = {
    "majority": "the commonest label",
    "tfidf": "TF-IDF + logistic regression",
    "lstm": "LSTM from nothing",
    "first": "MiniLM, frozen, first token + logistic regression",
    "mean": "MiniLM, frozen, mean of tokens + logistic regression",
    "head": "MiniLM, head",
    "lora": "MiniLM, LoRA",
    "full": "MiniLM, full",
    "last": "MiniLM, full but the token table",
    "final": "MiniLM, full, all rows, last weights",
    "peer": "MiniLM, full, by transformers",
    "zero": "Qwen 0.5B (Q4_K_M), prompted without examples",
    "few": "Qwen 0.5B (Q4_K_M), prompted with 32 examples",
    "qwen": "Qwen 0.5B (Q4_K_M), LoRA, 2,000 rows",
}
PLAIN = ("majority", "tfidf", "lstm")
FROZEN = {"first": "cls", "mean": "mean"}  # how the states of a text are pooled
ENCODERS = ("head", "lora", "full", "last", "final", "peer")
SHOTS = {"zero": 0, "few": 32}  # examples in the prompt
ORDER = (*PLAIN, *FROZEN, *ENCODERS, *SHOTS, "qwen")
HOLDING = ("lstm", "head", "lora", "full", "last", "qwen")  # ways whose weights are chosen by rows held out
TUNED = (*HOLDING, "final", "peer")
HELD_OUT = 0.1


def prepare(one: Data, folder: Path, data: Path) -> tuple[Path, Path]:
    """Training and test rows as two tables with the columns text and label."""
    train, test = folder / "train.csv", folder / "test.csv"
    if not test.exists():
        folder.mkdir(parents=True, exist_ok=True)
        table = read_table([str(data / one.train)], one.names)
        if one.test:
            tables = {"train": table, "test": read_table([str(data / one.test)], one.names)}
        else:
            tables = split(table, {"test": 0.1}, 0, "label").tables
        for name, path in (("train", train), ("test", test)):
            write_rows(tables[name], one, path)
    return train, test


def write_rows(table: Iterable[Record], one: Data, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([record.get(one.text), record.get("label")] for record in table)


def rows_of(path: Path) -> tuple[list[str], list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def majority(one: Data, train: Path, test: Path) -> list[str]:
    _, labels = rows_of(train)
    return [max(sorted(set(labels)), key=labels.count)] * len(rows_of(test)[0])


def tfidf(one: Data, train: Path, test: Path) -> list[str]:
    """Words and pairs of words, or where words do not stand apart one to three characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts, labels = rows_of(train)
    analyzer, most = ("word", 2) if one.english else ("char", 3)
    vectors = TfidfVectorizer(sublinear_tf=True, analyzer=analyzer, ngram_range=(1, most))
    model = LogisticRegression(C=10, max_iter=2000).fit(vectors.fit_transform(texts), labels)
    return model.predict(vectors.transform(rows_of(test)[0])).tolist()


def frozen(minilm: str, pooling: str, train: Path, test: Path) -> list[str]:
    """A logistic regression over the vectors of the encoder as it is; folds of the training rows choose its penalty."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lm = handscroll.load(minilm)
    texts, labels = rows_of(train)
    given, asked = (
        pooled(lm.model, [lm.tokenizer.encode(text) for text in part], pooling).numpy()
        for part in (texts, rows_of(test)[0])
    )
    regression = LogisticRegressionCV(Cs=[0.001, 0.01, 0.1, 1], cv=3, tol=1e-3, max_iter=500)
    model = make_pipeline(StandardScaler(), regression).fit(given, labels)
    return model.predict(asked).tolist()


def lstm_folder(folder: Path, train: Path, seed: int) -> Path:
    """A new LSTM of 256 with a tokenizer that was trained on the training texts."""
    if not (folder / "config.json").exists():
        texts, _ = rows_of(train)
        tokenizer = train_tokenizer(texts, TokenizerConfig(vocab=4096))
        model = new_model("lstm", {"width": 256, "layers": 1}, About(tokenizer, 256))
        initialise(model, "normal", 1, torch.Generator().manual_seed(seed))
        save_model(model, folder)
        tokenizer.save(folder)
    return folder


def _model(options: argparse.Namespace, way: str) -> str:
    """The given model that a way needs, "" for one that needs none."""
    return options.qwen if way in (*SHOTS, "qwen") else "" if way in PLAIN else options.minilm


def _settings(options: argparse.Namespace, way: str) -> dict[str, Any]:
    """What a result depends on besides its data set, way and seed."""
    settings: dict[str, Any] = {"model": _model(options, way)} if way not in PLAIN else {}
    settings |= {"epochs": options.epochs} if way in TUNED else {}
    return settings | ({"held_out": options.held_out} if way in HOLDING else {})


def asked(options: argparse.Namespace) -> Iterator[tuple[str, str, int, Path]]:
    """Data set, way, seed and file of every result that is asked for and has a model."""
    for name in options.only:
        for way in options.ways:
            if way in PLAIN or _model(options, way):
                for seed in options.seeds if way in TUNED else [0]:
                    yield name, way, seed, options.work / name / f"{way}-{seed}.said.json"


def settle(options: argparse.Namespace) -> None:
    """Claim every result, and the run folder of each that is not made yet, before the first one is made.

    Raises:
        SystemExit: one of them was made under other settings.
    """
    for _, way, seed, path in asked(options):
        claim(path, _settings(options, way))
        if way in TUNED and not path.exists():
            claim(path.with_name(f"{way}-{seed}"), _settings(options, way))


def prompted(one: Data, source: str, shots: int, train: Path, test: Path) -> list[str]:
    """What a decoder that is not tuned says, after `shots` training rows in the prompt."""
    labels = tuple(str(number) for number in range(len(one.words)))
    task = Classify(labels=labels, words=one.words, language="en" if one.english else "zh")
    pool, asked = (task.read(read_table([str(path)]), {}).examples for path in (train, test))
    found = task.prompted(handscroll.load(source), asked, Prompting(shots, pool, "random"))
    return [prediction.output for prediction in found]


def tuned(options: argparse.Namespace, way: str, seed: int, folder: Path, train: Path, test: Path) -> list[str]:
    """What a model that is tuned here says of the test rows."""
    source = lstm_folder(folder / f"lstm-{seed}", train, seed) if way == "lstm" else _model(options, way)
    how = {"seed": seed, **WAYS[way]}
    if options.epochs:
        how["epochs"] = options.epochs
    most = how.pop("most", 0)
    values = {"task": {"name": "classify"}, "model": str(source), "tuning": how, "threads": options.threads}
    held_out = options.held_out if way in HOLDING else 0
    values["data"] = {"train": (str(train),), "test": (str(test),), "most": most, "held_out": held_out}
    run = folder / f"{way}-{seed}"
    if not finetune(TuningRecipe.parse(values, "bench"), run, Options(show=partial(print, flush=True))).scores:
        raise SystemExit("stopped; the same command goes on")
    lines = (run / "test.predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def peer(options: argparse.Namespace, way: str, seed: int, folder: Path, train: Path, test: Path) -> list[str]:
    """What the same encoder says when `transformers` tunes it on all training rows; the last weights are kept."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    texts, labels = rows_of(train)
    names = sorted(set(labels))
    tokenizer = AutoTokenizer.from_pretrained(options.minilm)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(options.minilm, num_labels=len(names))

    def encoded(part: Sequence[str], told: Sequence[str]) -> list[dict[str, Any]]:
        found = [dict(tokenizer(text)) for text in part]
        return [one | {"labels": names.index(label)} for one, label in zip(found, told, strict=True)]

    how = WAYS[way] | ({"epochs": options.epochs} if options.epochs else {})
    arguments = TrainingArguments(
        output_dir=str(folder / f"{way}-{seed}"),
        learning_rate=how["lr"],
        num_train_epochs=how["epochs"],
        per_device_train_batch_size=32,
        warmup_steps=0.1,  # below 1: a share of all steps
        weight_decay=0.01,
        seed=seed,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=encoded(texts, labels), processing_class=tokenizer)
    trainer.train()
    asked_texts, truth = rows_of(test)
    outputs = trainer.predict(encoded(asked_texts, truth)).predictions
    return [names[index] for index in outputs.argmax(-1)]


def table(work: Path, resamples: int = 1000) -> str:
    """All results in `work` as one table in Markdown."""
    lines = [
        "| data | system | seed | accuracy | macro F1 | against the best baseline | n |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {}
    for name, one in DATA.items():
        paths = sorted((work / name).glob("*.said.json"))
        if not paths:
            continue
        _, truth = rows_of(work / name / "test.csv")
        said = {path.name.removesuffix(".said.json"): json.loads(path.read_text(encoding="utf-8")) for path in paths}
        right = {key: sum(a == b for a, b in zip(given, truth, strict=True)) for key, given in said.items()}
        plain = [key for key in said if key.rpartition("-")[0] in PLAIN]
        best = max(plain, key=right.__getitem__, default=None)
        for key in sorted(said, key=lambda key: (ORDER.index(key.rpartition("-")[0]), key)):
            scores = measure(["accuracy", "f1-macro"], truth, said[key], resamples=resamples)
            against = ""
            if best is not None and key not in plain:
                one_against = compare(["accuracy"], truth, said[key], said[best], resamples=resamples)["accuracy"]
                against = (
                    f"{one_against.difference.value:+.3f} {one_against.difference.interval}, p = {one_against.p:.3f}"
                )
            way, _, seed = key.rpartition("-")
            cells = [f"{scores[m].value:.3f} {scores[m].interval}" for m in ("accuracy", "f1-macro")]
            note = _note(work / name / f"{key}.said.json")
            note += " (it reads English)" if not one.english and way in (*FROZEN, *ENCODERS) else ""
            mark = " (best baseline)" if key == best else ""
            lines.append(
                f"| {one.title} | {SAID[way]}{note}{mark} | {seed} | {' | '.join(cells)} | {against} | {len(truth):,} |"
            )
            found[f"{name} {key}"] = {metric: vars(score) for metric, score in scores.items()}
    (work / "scores.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    return "\n".join(lines)


def _note(said: Path) -> str:
    """Under which epochs and share held out a result was made, where they are not those of its way."""
    beside = said.with_name(f"{said.name}.settings.json")
    found = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    epochs, share = found.get("epochs"), found.get("held_out", HELD_OUT)
    return (f", {epochs:g} epochs" if epochs else "") + (f", {share:g} held out" if share != HELD_OUT else "")


def _chosen(given: str, known: Sequence[str]) -> list[str]:
    names = given.split(",") if given else list(known)
    if wrong := [name for name in names if name not in known]:
        raise SystemExit(f"{wrong[0]} is unknown; known are {', '.join(known)}")
    return names


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--minilm", default="", help="folder of all-MiniLM-L6-v2, or another encoder")
    parser.add_argument("--qwen", default="", help="a decoder, such as a GGUF file")
    parser.add_argument("--only", default="", help=f"data sets: {', '.join(DATA)}")
    parser.add_argument("--ways", default="", help=f"systems: {', '.join(ORDER)}")
    parser.add_argument("--seeds", help="of the tuned models; by default 0")
    parser.add_argument("--epochs", type=float, help="of the tuned models, in place of those of each way")
    shares = f"of the training rows, by which the weights of tuned models are kept; by default {HELD_OUT}"
    parser.add_argument("--held-out", type=float, help=shares)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/labels"))
    options = parser.parse_args()
    options.only, options.ways = _chosen(options.only, list(DATA)), _chosen(options.ways, ORDER)
    for name, of, does in (("seeds", TUNED, "tunes"), ("epochs", TUNED, "tunes"), ("held_out", HOLDING, "holds out")):
        if getattr(options, name) is not None and not set(options.ways) & set(of):
            option, ways = name.replace("_", "-"), ", ".join(options.ways)
            parser.error(f"--{option} is for the ways {', '.join(of)}, and {ways} {does} nothing")
    options.seeds = [int(seed) for seed in (options.seeds or "0").split(",")]
    options.held_out = HELD_OUT if options.held_out is None else options.held_out
    return options


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    simple: dict[str, Callable[[Data, Path, Path], list[str]]] = {"majority": majority, "tfidf": tfidf}
    settle(options)
    for way in options.ways:
        if way not in PLAIN and not _model(options, way):
            print(f"{way}: left out, since no model is given for it")
    for name, way, seed, path in asked(options):
        train, test = prepare(DATA[name], path.parent, options.data)
        if path.exists():
            continue
        print(f"{name} {way}, seed {seed}", flush=True)
        claim(path, _settings(options, way))  # once more: another process may have noted other settings
        if way in simple:
            said = simple[way](DATA[name], train, test)
        elif way in FROZEN:
            said = frozen(options.minilm, FROZEN[way], train, test)
        elif way in SHOTS:
            said = prompted(DATA[name], options.qwen, SHOTS[way], train, test)
        else:
            said = (peer if way == "peer" else tuned)(options, way, seed, path.parent, train, test)
        path.write_text(json.dumps(said), encoding="utf-8")
    print(table(options.work))


if __name__ == "__main__":
    main()
