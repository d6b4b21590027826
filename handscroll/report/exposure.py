"""The section on what a model gives away of its training data. The secrets themselves stay out of the page."""

from handscroll.report.language import say
from handscroll.report.page import Section, Table
from handscroll.report.records import Exposure
from handscroll.report.secrets import HIDDEN


def exposure_section(record: Exposure) -> Section:
    """The rank of each secret among others of its form."""
    lead = say("A secret that a model never read has {bits} bits on average.", bits=f"{record.unread:.1f}")
    rows = [
        (
            f"{one.before}{HIDDEN}{one.after}",
            say("{rank} of {among}", rank=f"{one.rank:,}", among=f"{one.among:,}"),
            say("{bits} of {most}", bits=f"{one.bits:.1f}", most=f"{one.most:.1f}"),
            f"{one.chance:.1%}",
        )
        for one in record.secrets
    ]
    columns = tuple(map(say, ("text", "rank", "exposure in bits", "as high by chance")))
    caption = say("The secrets stand in the records, not on this page.")
    return Section(say("Exposure of secrets: {model}", model=record.model), lead, [Table(columns, rows, caption)])
