"""BLEU and chrF of translations, by sacrebleu (an optional package), with intervals over sentences."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from handscroll.base.errors import ConfigError
from handscroll.metrics.scores import Scores, Weights
from handscroll.metrics.texts import check_language, pairs

_TOKENIZERS = {"en": "13a", "zh": "zh"}


def bleu(references: Sequence[str | Sequence[str]], predictions: Sequence[str], language: str = "en") -> Scores:
    """Corpus BLEU, 0 .. 100 (Papineni et al. 2002; Post 2018), with sacrebleu's tokenizer of the target language.

    Equal to sacrebleu's `corpus_score`; intervals resample the counts of sentences. An empty prediction has no hits.

    Raises:
        DataError: counts that differ, no examples, what is not text, an empty reference.
        ConfigError: an unknown language, or sacrebleu is not installed.
    """
    check_language(language)
    return _corpus(_sacrebleu().BLEU(tokenize=_TOKENIZERS[language]), references, predictions)


def chrf(references: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> Scores:
    """chrF2, 0 .. 100: F-score of runs of 1 to 6 characters (Popović 2015), for any language; errors as in `bleu`."""
    return _corpus(_sacrebleu().CHRF(), references, predictions)


def signature(metric: str, language: str = "en") -> str:
    """What a paper must say of the score: "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1".

    Raises:
        ConfigError: an unknown language, or sacrebleu is not installed.
    """
    check_language(language)
    made = _sacrebleu().CHRF() if metric == "chrf" else _sacrebleu().BLEU(tokenize=_TOKENIZERS[language])
    made.corpus_score(["a"], [["a"]])  # a signature is known after a score
    return str(made.get_signature())


def _corpus(metric: Any, references: Sequence[Any], predictions: Sequence[Any]) -> Scores:
    examples = pairs(references, predictions)
    most = max(len(wanted) for wanted, _ in examples)
    streams = [[wanted[at] if at < len(wanted) else None for wanted, _ in examples] for at in range(most)]
    # sacrebleu's own tests of significance go through these two, so its counts and its formula are the only ones.
    counts = np.asarray(metric._extract_corpus_statistics([given for _, given in examples], streams), dtype=np.float64)

    def of(weights: Weights) -> np.ndarray:
        sums = np.rint(weights @ counts).astype(np.int64)
        return np.array([metric._compute_score_from_stats(row.tolist()).score for row in sums])

    return Scores(len(examples), of)


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics  # pyright: ignore[reportMissingImports] - optional
    except ModuleNotFoundError:
        raise ConfigError(
            "BLEU and chrF need the package sacrebleu, which is not installed: pip install 'handscroll[metrics]'"
        ) from None
    return metrics
