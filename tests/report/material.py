"""Records of every kind, as several tests of report pages need them."""


def perplexity(label="after", **other):
    values = {
        "kind": "perplexity", "model": "tiny", "label": label, "length": 4096, "block": 1024,
        "positions": [512, 1536, 2560, 3584], "loss": [3.0, 2.5, 2.25, 2.125],
        "low": [2.9, 2.4, 2.2, 2.1], "high": [3.1, 2.6, 2.3, 2.2], "count": [10, 10, 10, 10],
        "mean": 2.469, "tokens": 40960, "windows": 10, "sources": ["a.txt"],
    }  # fmt: skip
    return {**values, **other}


def needle(label="after", **other):
    values = {
        "kind": "needle", "model": "tiny", "label": label, "lengths": [1024, 4096], "depths": [0.0, 1.0],
        "accuracy": [[1.0, 0.75], [1.0, None]], "samples": 8, "format": "passkey", "seed": 7,
    }  # fmt: skip
    return {**values, **other}


CANDIDATES = {
    "kind": "candidates",
    "target": 4096,
    "rows": [
        {"method": "pi", "long_loss": 2.75, "short_loss": 2.6, "verdict": "short text suffers", "chosen": False},
        {"method": "yarn", "long_loss": 2.25, "short_loss": 2.5, "verdict": "best", "chosen": True},
        {"method": "none", "long_loss": None, "short_loss": 2.5, "verdict": "not finite", "chosen": False},
    ],
}
EVERYTHING = [
    perplexity("before", loss=[3.0, 2.5, 7.0, 9.5], low=None, high=None),
    perplexity(),
    perplexity("sliding window"),
    needle("before"),
    needle(),
    CANDIDATES,
    {"kind": "training", "steps": [1, 2, 3], "loss": [3.0, None, 2.5]},
    {"kind": "sample", "prompt": "Once <b>", "text": "upon & a time"},
]


def tasks(label="tiny", value=0.5, **other):
    score = {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 20}
    task = {
        "task": "loogle", "file": "loogle.jsonl", "form": "LooGLE", "questions": 20, "documents": 4, "longest": 3000,
        "scores": {"token-f1": score, "exact-match": {**score, "value": 0.0, "low": 0.0}},
        "by_length": [{"up_to": 4096, **score}], "left_out": [], "cut": 0, "ended_at_limit": 3, "empty": 0,
    }  # fmt: skip
    return {
        "kind": "tasks", "model": "tiny", "label": label, "form": "chat", "tasks": [{**task, **other}],
        "plan": {"read": 1000, "write_at_most": 960, "alone": 4000},
        "actual": {"read": 1000, "written": 400, "seconds": 90.0},
        "certificate": {"offered": 4000, "seen": 4000, "sha256": "ab" * 32},
        "made": {"command": "handscroll evaluate tasks tiny loogle.jsonl", "seconds": 95.0, "version": "0.1.0"},
    }  # fmt: skip


RULER = {
    "kind": "ruler", "model": "tiny", "label": "tiny", "samples": 20, "language": "en", "lengths": [2048, 4096, 8192],
    "tasks": [f"task {n}" for n in range(13)], "scores": [[1.0, 0.95, None]] * 13, "average": [1.0, 0.95, 0.5],
    "low": [0.98, 0.9, 0.4], "high": [1.0, 0.97, 0.6], "tasks_counted": [13, 13, 12],
    "effective": [{"rule": "published", "threshold": 0.856, "length": 4096, "low": 2048, "high": 4096}],
    "unfit": [{"task": "task 3", "length": 8192, "samples": 20, "needs": 9000}], "tokens": 1,
}  # fmt: skip
LENGTH = {
    "kind": "length", "model": "tiny", "label": "needle", "threshold": 0.85, "effective": None, "low": None,
    "high": 512,
    "tests": [{"length": 512, "hits": 8, "trials": 20, "low": 0.2, "high": 0.6, "passes": False, "sure": True}],
    "tokens": 100, "tokens_grid": {"alone": 2000, "shared": 700},
}  # fmt: skip
VIEWS = {
    "kind": "views", "model": "tiny", "label": "whole", "length": 4096, "windows": 4, "short": 256, "mean": 2.0,
    "mean_short": 2.25, "long_ppl": {"value": 3.5, "low": 3.0, "high": 4.0, "share": 0.1}, "used": 1024,
    "beyond": [{"near": 1024, "tokens": 512, "shuffled": 0.02, "shuffled_low": 0.01, "shuffled_high": 0.03}],
    "repeats": {
        "run": 8, "repeated": {"count": 282, "loss": 1.47, "low": 0.85, "high": 2.34, "short": 2.83},
        "fresh": {"count": 3806, "loss": 3.264, "low": 3.17, "high": 3.42, "short": 3.48},
        "by_distance": [{"from": 64, "to": 127, "count": 5, "loss": 1.104, "low": None, "high": None, "short": 3.01}],
    },
    "documents": [{"source": "turtle.py", "offset": 5120, "mean": 2.0, "quarters": [1.5, 2.0, 2.25, None]}],
    "block": 1024,
}  # fmt: skip
RUNTIMES = {
    "kind": "runtimes", "runtimes": ["own a", "GGUF b"], "tokens": 64, "near": 0.05, "first": 40,
    "losses": [2.5, 2.75], "ranges": [{"first": 1, "last": 64, "mean": 0.01, "worst": 0.75}],
}  # fmt: skip
LEAK = {"kind": "leak", "model": "tiny", "documents": [3, 4], "said": []}
EXPOSURE = {
    "kind": "exposure", "model": "tiny", "seed": 0, "unread": 1.44,
    "secrets": [
        {
            "before": "The code is ", "secret": "48151623", "after": ".", "rank": 2, "among": 20, "bits": 3.32,
            "most": 4.32, "chance": 0.1,
        }
    ],
}  # fmt: skip
DOCTOR = {
    "kind": "doctor", "model": "tiny", "runtime": "own", "wrong": ["window"],
    "checks": [
        {"name": "template", "question": "?", "verdict": "healthy", "seen": "as it should be"},
        {"name": "window", "question": "?", "verdict": "wrong", "faults": [{"what": "ignored", "mend": "set it"}]},
    ],
}  # fmt: skip
_ROW = {
    "method": "yarn", "long_loss": 2.5, "low": 2.4, "high": 2.6, "by_seed": [2.4, 2.6], "short_loss": 2.4, "rise": 0.02,
    "needles": 0.8, "first": 0.9, "ahead": 0.9, "tokens": 4096, "seconds": 3.0,
}  # fmt: skip
COMPARED = {
    "kind": "comparison", "model": "tiny", "trained": 512, "target": 4096, "measured_to": 2048, "seeds": 2,
    "windows": 4, "resamples": 1000,
    "rows": [_ROW, _ROW | {"method": "ntk", "long_loss": 2.7, "first": 0.1, "ahead": None}],
}  # fmt: skip
