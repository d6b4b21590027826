"""One self-contained HTML page from the records of evaluations; see docs/report.md."""

from handscroll.report.evaluation import evaluation_page
from handscroll.report.page import Code, Facts, Figure, Page, Section, Table, Text, render, write

__all__ = ["Code", "Facts", "Figure", "Page", "Section", "Table", "Text", "evaluation_page", "render", "write"]
