"""The table of checks, in the order in which they are made and shown. A new check is one file and one line here."""

CHECKS: dict[str, str] = {
    name: f"handscroll.doctor.checks.{name.replace('-', '_')}:CHECK"
    for name in (
        "frequencies",
        "attention-factor",
        "precision",
        "offsets",
        "repeats",
        "past-end",
        "window",
        "cache",
        "batch",
        "padding",
        "packing",
        "head",
        "reference",
        "tokenizer",
        "special",
        "bos",
        "template",
        "generation",
        "echo",
        "truncation",
    )
}
