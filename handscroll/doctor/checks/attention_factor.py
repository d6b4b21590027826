"""Is the attention factor (YaRN, LongRoPE) the one of the configuration, applied once?"""

from handscroll.doctor.checks.frequencies import facts_with_rotation, lengths
from handscroll.doctor.finding import Check, Fault, Seen
from handscroll.doctor.runtime import Runtime

NEAR = 1e-4


def run(runtime: Runtime) -> Seen:
    faults, told = [], []
    for turning in facts_with_rotation(runtime).turnings:
        for length in lengths(turning):
            wanted, found = turning.rope.factor(length), runtime.tables(turning, [1, length - 1], length).factor
            told.append(f"{found:.4f}")
            if abs(found / wanted - 1.0) <= NEAR:
                continue
            near = {1.0: "it is left out", wanted**2: "it is applied twice", 1.0 / wanted: "it is turned over"}
            says = next((words for value, words in near.items() if abs(found / value - 1.0) <= NEAR), "it is another")
            faults.append(
                Fault(
                    f"the attention factor is {found:.4f} where the configuration asks for {wanted:.4f}: {says}",
                    "every score of the attention is too flat or too sharp, so the loss rises a little at every length",
                    "look at attention_factor, mscale and factor in rope_scaling, and at the library that reads them; "
                    "some servers multiply a factor of their own into it (attn_factor)",
                )
            )
    return Seen(f"it is {', '.join(dict.fromkeys(told))}", tuple(dict.fromkeys(faults)))


CHECK = Check("Is the attention factor the one of the configuration?", run)
