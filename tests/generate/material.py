"""Models, prompts and measures that several tests of decoding share."""

import torch

from handscroll.generate.prefill import prefill
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.weights import load_model
from handscroll.nn.marks import Marks
from tests.conformance.families import reference, save
from tests.generate.asking import decode

COUNTS = (5, 30, 1, 17)


class Letters:
    """Every token is its own character."""

    def decode(self, ids):
        return "".join(chr(0x4E00 + token) for token in ids)


def prompts_of(counts=COUNTS, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 97, (count,), generator=stream).tolist() for count in counts]


def rows_of(steps, count):
    rows, ends = [[] for _ in range(count)], [None] * count
    for step in steps:
        for item in step:
            assert ends[item.row] is None, "a token after the end of its row"
            rows[item.row].append(item.token)
            ends[item.row] = item.finish
    assert all(ends)
    return rows, ends


def written(model, prompts, sampling, **options):
    return rows_of(decode(model, prompts, sampling, **options), len(prompts))


def loaded(tmp_path, family="llama", scaling="none", dtype=torch.float32):
    return load_model(save(reference(family, scaling), tmp_path / f"{family}-{scaling}"), dtype=dtype)


def chi_squared(counts, expected):
    """The statistic over cells of at least 5 expected; the rest is one cell. With its bound at one in ten thousand."""
    common = expected >= 5
    cells = [(counts[common], expected[common])]
    if bool((~common).any()):
        cells.append((counts[~common].sum()[None], expected[~common].sum()[None]))
    found, want = (torch.cat(part) for part in zip(*cells, strict=True))
    free = len(want) - 1
    # Wilson and Hilferty's approximation of the quantile; 3.719 is the normal's at 1 - 1e-4.
    bound = free * (1 - 2 / (9 * free) + 3.719 * (2 / (9 * free)) ** 0.5) ** 3
    return float(((found - want) ** 2 / want.clamp_min(1e-9)).sum()), bound


def tiny(seed, vocab=4, scale=1.0):
    """A random Llama of a few tokens."""
    positions = {"base": 100.0, "scaling": {"name": "none"}, "context": 32, "trained": 32}
    config = LlamaConfig(
        vocab=vocab, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp_width=16, positions=positions
    )
    torch.manual_seed(seed)
    model = Llama(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5)
        model.head.mul_(scale)
    return model


TEXT = "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n        yield os.path.join(top, name)\n\n" * 6


def filled(lm, kind, ids, chunk=1024):
    cache = kind(lm.model.config.layers)
    hidden = prefill(lm.model, torch.tensor([ids]), Marks.run(0, len(ids)), cache, len(ids), chunk)
    return cache, lm.model.logits(hidden)[0, -1].detach()


def kl(exact, other):
    """KL divergence in nats of next-token distributions."""
    exact, other = exact.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((exact.exp() * (exact - other)).sum())
