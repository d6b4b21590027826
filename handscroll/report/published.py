"""Published scores that a page sets beside its own, where both measure the same: each with its source.

RULER's average over its 13 tasks is comparable as far as the tasks here follow the published definitions
(docs/ruler.md says where they do not). Perplexities of other texts, or scores of other tasks, are not set beside ours.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """The average score (0 to 100) of a model by length in tokens, and the length that its makers claim."""

    model: str
    claimed: int
    scores: Mapping[int, float]


K = 1024
# Hsieh et al. 2024, "RULER: What's the real context size of your long-context language models?", the table of the
# authors' repository (NVIDIA/RULER, 2024): averages over 13 tasks.
RULER_SOURCE = "Hsieh et al. 2024 (arXiv:2404.06654), table of NVIDIA/RULER"
RULER_THRESHOLD = 85.6  # Llama 2 7B at 4,096 tokens, there
RULER = (
    Published(
        "Llama 3.1 8B", 128 * K, {4 * K: 95.5, 8 * K: 93.8, 16 * K: 91.6, 32 * K: 87.4, 64 * K: 84.7, 128 * K: 77.0}
    ),
    Published("GLM4 9B", 1024 * K, {4 * K: 94.7, 8 * K: 92.8, 16 * K: 92.1, 32 * K: 89.9, 64 * K: 86.7, 128 * K: 83.1}),
)
RULER_TASKS = 13  # an average over other tasks is another score
