"""Parts of a packed document (DOCX, EPUB), read in memory and never unpacked to the disk, with limits against bombs."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from handscroll.base.errors import DataError

MOST = 256 << 20  # bytes of all parts that are read of one document
RATIO, SMALL = 100, 8 << 20  # a part above SMALL bytes may not be this many times its packed size
_PARTS = 50_000


class Archive:
    """An open zip file, whose parts are read by name."""

    def __init__(self, packed: zipfile.ZipFile, file: Path):
        self.packed, self.file = packed, file
        self.names = frozenset(packed.namelist())
        self._read = 0

    def read(self, name: str) -> bytes:
        """
        Raises:
            DataError: there is no such part, it is damaged or locked, or it unpacks to an unlikely size.
        """
        try:
            about = self.packed.getinfo(name)
        except KeyError:
            raise DataError(f"{self.file}: the part '{name}' is missing; save the document again") from None
        if about.flag_bits & 1:
            raise DataError(f"{self.file} is locked by a password; save it without one")
        self._read += about.file_size
        if self._read > MOST or about.file_size > max(SMALL, RATIO * about.compress_size):
            raise DataError(
                f"{self.file}: '{name}' unpacks from {about.compress_size:,} to {about.file_size:,} bytes, as no "
                f"document does (most: {MOST:,} in all, {RATIO} times the packed size)"
            )
        try:
            return self.packed.read(about)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise DataError(f"{self.file}: the part '{name}' is damaged ({error}); save the document again") from None

    def xml(self, name: str) -> ElementTree.Element:
        """The root of a part in XML.

        Raises:
            DataError: as `read`; it is not XML, or defines entities, which can grow without bound.
        """
        data = self.read(name)
        if _defines_entities(data):
            raise DataError(f"{self.file}: the part '{name}' defines entities, as no document needs; save it again")
        try:
            return ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise DataError(f"{self.file}: the part '{name}' is not XML ({error}); save the document again") from None


class _Told(Exception):
    """Ends the parser once it is known whether entities are defined."""


def _defines_entities(data: bytes) -> bool:
    """Whether XML of any encoding defines entities, which stand before its first element."""
    found: list[bool] = []

    def told(defined: bool) -> None:
        found.append(defined)
        raise _Told

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = lambda *_: told(True)
    parser.StartElementHandler = lambda *_: told(False)
    with suppress(_Told, expat.ExpatError, ValueError, LookupError):  # who reads the whole says what is wrong with it
        parser.Parse(data, True)
    return found[:1] == [True]


@contextmanager
def opened(file: Path) -> Iterator[Archive]:
    """An open document.

    Raises:
        DataError: it is not packed.
    """
    try:
        packed = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error) as error:
        raise DataError(
            f"{file}: this is no Word or EPUB file, which would be packed ({error}); save it again as one (an older "
            ".doc file is of another kind)"
        ) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); check its permissions") from None
    with packed:
        if len(packed.namelist()) > _PARTS:
            raise DataError(f"{file} has {len(packed.namelist()):,} parts, as no document does")
        yield Archive(packed, file)
