"""Text that tests of lengthening share."""

from pathlib import Path

TEXT = str(Path(__import__("argparse").__file__))
