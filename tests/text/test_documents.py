"""PDF, Word and EPUB files: the text in order, tables and headings readable, pages known, bombs refused."""

import importlib
import zipfile
import zlib

import docx
import pytest

from handscroll.base.errors import DataError
from handscroll.text import archive, ocr, pdf_worker
from handscroll.text.document import Document, Place
from handscroll.text.readers import Reader, read
from tests.naming import naming
from tests.text.documents import (
    PICTURE,
    RELATIONS,
    WORD,
    paragraph,
    write_docx,
    write_epub,
    write_form,
    write_letters,
    write_pdf,
)

TABLE = [
    (72, 620, "Name"),
    (200, 620, "Price"),
    (300, 620, "Colour"),
    (72, 605, "Apple"),
    (200, 605, "3"),
    (300, 605, "red"),
]


def only(path, **settings):
    (document,) = Reader(**settings).read(path)
    return document


def test_a_pdf_gives_lines_tables_and_pages(tmp_path):
    first = [(72, 700, "A heading"), (72, 670, "It is a hyphen-"), (72, 655, "ated word (in brackets)."), *TABLE]
    write_pdf(tmp_path / "a.pdf", [first, [(72, 700, "Second page, café")], [], [(72, 700, "Fourth")]])
    found = only(tmp_path / "a.pdf")
    lines = "A heading\n\nIt is a hyphenated word (in brackets).\n\nName\tPrice\tColour\nApple\t3\tred"
    assert found.text == f"{lines}\n\nSecond page, café\n\nFourth"
    assert [place.name for place in found.places] == ["page 1", "page 2", "page 4"]
    assert found.place(found.text.index("café")) == "page 2" and found.place(len(found.text)) == "page 4"
    assert found.marked().startswith("[page 1]\nA heading") and "\n\n[page 2]\nSecond page" in found.marked()


def test_pages_of_pictures_are_named_left_out_or_read(tmp_path, monkeypatch, caplog):
    stamp = [PICTURE, (72, 30, "page 3")]  # a scan that bears a page number
    write_pdf(tmp_path / "s.pdf", [[(72, 700, "Text")], [PICTURE], stamp, [], [PICTURE]])
    monkeypatch.setattr(ocr, "installed", lambda: False)
    with pytest.raises(DataError, match=naming("s.pdf", "2-3, 5", "(of 5)", "handscroll[ocr]", "--skip-pictures")):
        list(read(tmp_path / "s.pdf"))
    left = only(tmp_path / "s.pdf", skip_pictures=True)
    assert (left.text, left.metadata) == ("Text\n\npage 3", {"skipped pages": (2, 3, 5)})
    assert "2-3, 5" in caplog.text
    monkeypatch.setattr(ocr, "installed", lambda: True)
    monkeypatch.setattr(ocr, "texts", lambda pictures: (f"{w} x {h}, {len(data)} bytes" for w, h, data in pictures))
    scanned = only(tmp_path / "s.pdf")
    width = round(pdf_worker.SIDE * 612 / 792)
    assert scanned.metadata == {"ocr": (2, 3, 5)} and scanned.places[-1].name == "page 5"
    assert scanned.text.count(f" x {pdf_worker.SIDE}, {3 * (width + 1) * pdf_worker.SIDE} bytes") == 3, scanned.text


def test_characters_beyond_the_first_plane_of_unicode_are_kept(tmp_path):
    write_letters(tmp_path / "a.pdf", "0041 D842DFB7 D83DDE00 D83D 4E00 D835DC00 DE00")  # two of them are lone halves
    assert only(tmp_path / "a.pdf").text == "A𠮷😀一𝐀"


FIELD = "/Subtype /Widget /FT /Tx /F 4"
BOX = "/Subtype /Widget /FT /Btn /F 4 /MK << /CA (4) >>"


def test_what_was_filled_into_a_form_stands_beside_its_prompt(tmp_path):
    lines = [
        (72, 700, "Name:"),
        (72, 670, "City:"),
        (300, 670, "Country:"),
        (72, 640, "I agree"),
        (190, 640, "I do not"),
    ]
    lines += [(72, 600, "Item"), (200, 600, "Price"), (72, 500, "Signed")]
    fields = [
        (f"{FIELD} /T (name) /V (not drawn)", "120 695 300 715", "Dr. Hu"),  # what is drawn counts
        (f"{FIELD} /T (city) /V (Paris)", "120 665 290 685", ""),
        (f"{FIELD} /T (country) /V (France)", "360 665 500 685", ""),
        (f"{BOX} /T (yes) /V /On /AS /On", "55 638 67 650", ""),
        (f"{BOX} /T (no) /V /Off /AS /Off", "172 638 184 650", ""),
        *[(f"{FIELD} /T (item{at}) /V (item {at})", f"72 {580 - 20 * at} 190 {600 - 20 * at}", "") for at in (1, 2)],
        *[(f"{FIELD} /T (price{at}) /V ({at})", f"200 {580 - 20 * at} 290 {600 - 20 * at}", "") for at in (1, 2)],
        ("/Subtype /Widget /FT /Tx /F 2 /T (hidden) /V (hidden)", "400 700 500 720", ""),
        ("/Subtype /FreeText /F 4 /Contents (Only for\\nthe\\noffice)", "400 460 500 510", "Only for\nthe\noffice"),
        ("/Subtype /FreeText /F 4 /Contents (undrawn note)", "120 498 300 512", ""),
        ("/Subtype /Stamp /F 4", "72 440 200 460", "PAID"),
        ("/Subtype /Text /F 4 /Contents (a note in a window of its own)", "500 700 520 720", ""),
        ("/Subtype /Link /F 4", "72 695 120 715", ""),
    ]
    write_form(tmp_path / "a.pdf", lines, fields)
    found = [line for line in only(tmp_path / "a.pdf").text.split("\n") if line]
    assert found == [
        "Name: Dr. Hu", "City: Paris\tCountry: France", "☑ I agree\t☐ I do not", "Item\tPrice", "item 1\t1",
        "item 2\t2", "Signed undrawn note Only for", "the", "office", "PAID",
    ]  # fmt: skip


def test_a_note_of_several_lines_stands_at_the_height_of_its_first(tmp_path):
    lines = [(72, 700, "A short line"), (72, 685, "and one that is longer")]
    write_form(tmp_path / "a.pdf", lines, [("/Subtype /FreeText /F 4", "300 650 400 714", "A note\nof two lines")])
    assert only(tmp_path / "a.pdf").text == "A short line A note\nof two lines\nand one that is longer"


def test_a_page_with_nothing_but_a_note_has_its_text(tmp_path):
    write_form(tmp_path / "a.pdf", [], [("/Subtype /FreeText /F 4", "72 700 300 720", "Alone")])
    assert only(tmp_path / "a.pdf").text == "Alone"


@pytest.mark.parametrize("image", [b"Im1", b"Fm1"])
def test_a_scan_in_strips_with_a_page_number_is_a_scan(tmp_path, monkeypatch, image):
    strips = b"".join(b"q 612 0 0 198 0 %d cm /%s Do Q\n" % (198 * at, image) for at in range(4))
    small = b"q 100 0 0 100 0 0 cm /%s Do Q\n" % image
    write_pdf(tmp_path / "s.pdf", [[(72, 700, "Text")], [strips, (72, 30, "Page 2")], [small, (72, 30, "Page 3")]])
    monkeypatch.setattr(ocr, "installed", lambda: False)
    refused(tmp_path / "s.pdf", "pages 2 (of 3)", "pictures")


@pytest.mark.long  # loading the models takes seconds
def test_pictures_are_read_line_by_line(tmp_path):
    if not ocr.installed():
        pytest.skip("the optional packages rapidocr and onnxruntime are not installed")
    font = importlib.import_module("matplotlib").get_data_path() + "/fonts/ttf/DejaVuSans.ttf"
    image = importlib.import_module("PIL.Image").new("L", (918, 1188), 255)
    letters = importlib.import_module("PIL.ImageFont").truetype(font, 36)
    draw = importlib.import_module("PIL.ImageDraw").Draw(image)
    for place, text in (((60, 60), "The captain was called Ferguson."), ((60, 160), "Name"), ((560, 160), "Age")):
        draw.text(place, text, fill=0, font=letters)
    write_pdf(tmp_path / "o.pdf", [[PICTURE]], image.tobytes(), image.size)
    assert only(tmp_path / "o.pdf").text == "The captain was called Ferguson.\nName\tAge"


def test_word_files_keep_headings_lists_and_tables_as_python_docx_writes_them(tmp_path):
    made = docx.Document()
    made.add_heading("A contract", 0)
    made.add_heading("Parties", 2)
    made.add_paragraph("Between A\tand B.")
    for style in ("List Number", "List Number", "List Bullet"):
        made.add_paragraph("item", style=style)
    table = made.add_table(2, 3)
    for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = "" if number == 4 else f"c{number}\nmore" if number == 1 else f"c{number}"
    made.add_paragraph("End.")
    made.save(str(tmp_path / "a.docx"))
    found = only(tmp_path / "a.docx")
    items = "1. item\n2. item\n- item"
    assert found.text == (
        f"# A contract\n\n## Parties\n\nBetween A\tand B.\n\n{items}\n\nc0\tc1 more\tc2\nc3\t\tc5\n\nEnd."
    )
    assert found.place(found.text.index("End")) == "under 'Parties'"


def test_word_files_keep_what_python_docx_leaves_out(tmp_path):
    """Insertions, content controls, notes, text boxes; deleted text is not on the page."""
    box = '<w:r><mc:AlternateContent xmlns:mc="m"><mc:Choice><w:txbxContent>%s</w:txbxContent></mc:Choice><mc:Fallback>'
    box += "<w:txbxContent>%s</w:txbxContent></mc:Fallback></mc:AlternateContent></w:r>"
    body = (
        "<w:p><w:r><w:t>Kept </w:t></w:r><w:ins><w:r><w:t>inserted</w:t></w:r></w:ins><w:del><w:r><w:delText>gone"
        '</w:delText></w:r></w:del><w:r><w:t>, noted</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
        f"<w:sdt><w:sdtPr><w:alias/></w:sdtPr><w:sdtContent>{paragraph('In a control')}</w:sdtContent></w:sdt>"
        f"<w:p>{box % (paragraph('Boxed'), paragraph('Boxed'))}<w:r><w:t>Around</w:t></w:r></w:p>"
        '<w:p><w:r><w:instrText>PAGE</w:instrText><w:noBreakHyphen/><w:sym w:char="F0B7"/></w:r></w:p>'
    )
    notes = f'<w:footnote w:type="separator" w:id="0"/><w:footnote w:id="2">{paragraph("The note")}</w:footnote>'
    write_docx(tmp_path / "a.docx", body, footnotes=notes)
    assert only(tmp_path / "a.docx").text == (
        "Kept inserted, noted[1]\n\nIn a control\n\nAround\n\nBoxed\n\n\u2011•\n\n[1] The note"
    )


def level(number, form, text, more=""):
    inside = f'<w:start w:val="1"/><w:numFmt w:val="{form}"/><w:lvlText w:val="{text}"/>{more}'
    return f'<w:lvl w:ilvl="{number}">{inside}</w:lvl>'


def kind_of_list(levels, number=7):
    return f'<w:abstractNum w:abstractNumId="{number}">{levels}</w:abstractNum>'


def a_list(number, kind=7, more=""):
    return f'<w:num w:numId="{number}"><w:abstractNumId w:val="{kind}"/>{more}</w:num>'


def in_list(text, number, deep=0):
    return paragraph(text, properties=f'<w:numPr><w:ilvl w:val="{deep}"/><w:numId w:val="{number}"/></w:numPr>')


def test_clauses_of_word_files_are_numbered_as_on_the_page(tmp_path):
    levels = level(0, "upperRoman", "%1.") + level(1, "decimal", "%1.%2") + level(2, "lowerLetter", "(%3)")
    body = "".join(in_list(f"at {deep}", 3, deep) for deep in (0, 1, 1, 2, 2, 0, 1))
    write_docx(tmp_path / "a.docx", body, numbering=kind_of_list(levels) + a_list(3))
    assert only(tmp_path / "a.docx").text.split("\n") == [
        "I. at 0", "I.1 at 1", "I.2 at 1", "(a) at 2", "(b) at 2", "II. at 0", "II.1 at 1",
    ]  # fmt: skip


def test_a_list_of_a_word_file_may_begin_anew_or_change_its_levels(tmp_path):
    again = '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="1"/></w:lvlOverride>'
    other = f'<w:lvlOverride w:ilvl="0">{level(0, "upperLetter", "(%1)")}</w:lvlOverride>'
    plain = level(0, "upperRoman", "Article %1") + level(1, "decimal", "%1.%2", "<w:isLgl/>")
    numbering = kind_of_list(level(0, "decimal", "%1.")) + kind_of_list(plain, 8) + a_list(5, 8)
    numbering += a_list(3) + a_list(4, more=again) + a_list(6, more=other)
    body = "".join(in_list("x", number) for number in (3, 3, 4, 4, 6, 3))
    write_docx(tmp_path / "a.docx", body + in_list("y", 5) + in_list("y", 5, 1), numbering=numbering)
    assert only(tmp_path / "a.docx").text.split("\n") == [
        "1. x", "2. x", "1. x", "2. x", "(C) x", "4. x", "Article I y", "1.1 y"
    ]  # fmt: skip


def test_a_list_of_a_word_file_may_be_that_of_a_style(tmp_path):
    styles = '<w:style w:styleId="S"><w:pPr><w:numPr><w:numId w:val="3"/></w:numPr></w:pPr></w:style>'
    numbering = kind_of_list(level(0, "decimal", "%1.")) + kind_of_list('<w:numStyleLink w:val="S"/>', 8)
    write_docx(tmp_path / "a.docx", in_list("x", 4), styles=styles, numbering=numbering + a_list(3) + a_list(4, 8))
    assert only(tmp_path / "a.docx").text == "1. x"


def test_a_style_of_a_word_file_takes_numbers_and_depth_from_the_style_it_is_based_on(tmp_path):
    styles = (
        '<w:style w:styleId="B"><w:basedOn w:val="A"/></w:style><w:style w:styleId="C"><w:basedOn w:val="C"/></w:style>'
    )
    numbers = '<w:outlineLvl w:val="1"/><w:numPr><w:numId w:val="3"/></w:numPr>'
    styles += f'<w:style w:styleId="A"><w:pPr>{numbers}</w:pPr></w:style>'
    numbering = kind_of_list(level(0, "decimal", "%1.")) + a_list(3)
    body = "".join(paragraph("x", style) for style in "ABC")
    write_docx(tmp_path / "a.docx", body, styles=styles, numbering=numbering)
    assert only(tmp_path / "a.docx").text == "## 1. x\n\n## 2. x\n\nx"


def test_clauses_of_word_files_have_chinese_numbers(tmp_path):
    numbering = kind_of_list(level(0, "chineseCountingThousand", "第%1条"))
    write_docx(tmp_path / "a.docx", in_list("甲方", 3) * 12, numbering=numbering + a_list(3))
    lines = only(tmp_path / "a.docx").text.split("\n")
    assert (lines[0], lines[9], lines[11]) == ("第一条 甲方", "第十条 甲方", "第十二条 甲方")


def test_numbered_cells_and_notes_of_word_files_keep_their_numbers(tmp_path):
    rows = "".join(f"<w:tr><w:tc>{in_list('', 3)}</w:tc><w:tc>{paragraph(text)}</w:tc></w:tr>" for text in "ab")
    two = f"<w:tr><w:tc>{in_list('c', 3)}{in_list('d', 3)}</w:tc></w:tr>"
    body = f"<w:tbl>{rows}{two}</w:tbl>{in_list('after', 3)}"
    write_docx(tmp_path / "a.docx", body, numbering=kind_of_list(level(0, "decimal", "%1.")) + a_list(3))
    assert only(tmp_path / "a.docx").text == "1.\ta\n2.\tb\n3. c 4. d\n\n5. after"


def test_a_note_that_is_nested_too_deeply_is_refused(tmp_path):
    body = '<w:p><w:r><w:t>Text</w:t><w:footnoteReference w:id="2"/></w:r></w:p>'
    deep = "<w:ins>" * 20_000 + "</w:ins>" * 20_000
    write_docx(tmp_path / "a.docx", body, footnotes=f'<w:footnote w:id="2"><w:p>{deep}</w:p></w:footnote>')
    refused(tmp_path / "a.docx", "nested")


def test_pages_of_word_files_are_those_that_word_recorded(tmp_path):
    broken = "<w:p><w:r><w:lastRenderedPageBreak/><w:t>On two</w:t></w:r></w:p>"
    write_docx(tmp_path / "a.docx", paragraph("On one") + broken + paragraph("Still two"))
    found = only(tmp_path / "a.docx")
    places = [found.place(found.text.index(text)) for text in ("On one", "On two", "Still")]
    assert places == ["page 1", "page 2", "page 2"]


def test_a_book_is_read_in_its_order_with_headings_tables_and_printed_pages(tmp_path):
    table = "<table><tr><td><p>a</p></td><td/><td>c</td></tr><tr><td></td><td>e</td><td><p>f</p></td></tr></table>"
    one = f'<h1>One</h1><p>Text of <span epub:type="pagebreak" title="12"/>one.</p>{table}'
    write_epub(tmp_path / "a.epub", ['<img src="cover.png"/>', one, "<h2>Two</h2><p>More &amp; more</p>"])
    found = only(tmp_path / "a.epub")
    assert found.text == "# One\n\nText of one.\n\na\t\tc\n\te\tf\n\n## Two\n\nMore & more"
    assert found.places == (Place(found.text.index("one."), "page 12"),) and found.metadata == {"title": "A book"}
    write_epub(tmp_path / "b.epub", ["<h1>One</h1><p>a</p>", "<h1>Two</h1><p>b</p>"])
    assert [place.name for place in only(tmp_path / "b.epub").places] == ["chapter 'One'", "chapter 'Two'"]


def test_chapters_of_a_book_that_are_not_read_are_named(tmp_path, caplog):
    items = (
        '<item id="x" href="x.xml" media-type="text/xml"/><item id="p" href="p.png" media-type="image/png"/>'
        '<item id="f" href="f.pdf" media-type="application/pdf" fallback="g"/>'
        '<item id="g" href="g.htm" media-type="Text/HTML; charset=utf-8"/>'
        '<item id="s" href="s.svg" media-type="image/svg+xml"/><item id="l" href="l" media-type="l" fallback="l"/>'
    )
    order = "".join(f'<itemref idref="{name}"/>' for name in ("x", "gone", "p", "f", "s", "l"))
    extra = {
        "OEBPS/x.xml": '<?xml version="1.0" encoding="utf-16"?><html><body><p>three</p></body></html>'.encode("utf-16")
    }
    extra |= {"OEBPS/g.htm": "<p>four", "OEBPS/s.svg": "<svg><text>five</text></svg>"}
    write_epub(
        tmp_path / "a.epub", ['<img src="cover.png"/>', "<p>one</p>", "<p> </p>", "<p><img/></p>"], extra, items, order
    )
    found = only(tmp_path / "a.epub")
    assert found.text == "one\n\nthree\n\nfour\n\nfive"
    left = (
        "gone (not in its list of parts)",
        "OEBPS/p.png (image/png)",
        "OEBPS/l (l)",
        "OEBPS/text/c 3.xhtml (only pictures)",
    )
    assert found.metadata == {"title": "A book", "skipped chapters": left}
    assert any("a.epub" in line and all(name in line for name in left) for line in caplog.messages)
    caplog.clear()
    write_epub(tmp_path / "b.epub", ['<img src="cover.png"/>', "<p>one</p>"])
    assert only(tmp_path / "b.epub").metadata == {"title": "A book"} and not caplog.messages


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_part_that_only_speaks_of_entities_is_read(tmp_path, encoding):
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as out:
        text = paragraph("in XML &lt;!ENTITY is no <![CDATA[<!ENTITY >]]> here")
        out.writestr("_rels/.rels", RELATIONS)
        out.writestr("word/document.xml", f"<w:document {WORD}><w:body>{text}</w:body></w:document>".encode(encoding))
        out.writestr("word/styles.xml", f"<!DOCTYPE w><w:styles {WORD}/>")
    assert only(tmp_path / "a.docx").text == "in XML <!ENTITY is no <!ENTITY > here"


def test_a_document_without_places_has_none():
    assert Document("text", "a").place(2) == "" and Document("text", "a").marked() == "text"


def refused(path, *words):
    with pytest.raises(DataError, match=naming(path.name, *words)):
        list(read(path))


@pytest.mark.promise("R18")
def test_bombs_and_damage_are_refused(tmp_path, monkeypatch):
    bomb = zlib.compress(b"BT /F1 12 Tf (" + b" " * 10_000_000 + b") Tj ET")  # a page that unpacks a thousandfold
    write_pdf(tmp_path / "a.pdf", [[(72, 700, "Text")]], bomb, (10_000_000, 10_000_000))
    assert only(tmp_path / "a.pdf").text == "Text"  # what is not shown is not unpacked
    (tmp_path / "b.pdf").write_bytes((tmp_path / "a.pdf").read_bytes()[:300])
    refused(tmp_path / "b.pdf", "not a PDF")
    (tmp_path / "c.pdf").write_bytes(b"")
    refused(tmp_path / "c.pdf", "empty")
    write_docx(tmp_path / "a.docx", paragraph("a" * (9 << 20)))
    refused(tmp_path / "a.docx", "word/document.xml", "unpacks")
    monkeypatch.setattr(archive, "MOST", 1000)
    write_docx(tmp_path / "b.docx", paragraph("a" * 2000))
    refused(tmp_path / "b.docx", "1,000")
    write_docx(tmp_path / "c.docx", "")
    refused(tmp_path / "c.docx", "no text")
    write_docx(tmp_path / "d.docx", "<w:p>" * 20_000 + "</w:p>" * 20_000)
    monkeypatch.setattr(archive, "MOST", 1 << 20)
    refused(tmp_path / "d.docx", "nested")
    (tmp_path / "e.docx").write_bytes(b"PK\x03\x04 no archive")
    refused(tmp_path / "e.docx", "no Word or EPUB file")
    with zipfile.ZipFile(tmp_path / "f.docx", "w") as out:
        out.writestr("_rels/.rels", RELATIONS)
        lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 9))
        out.writestr("word/document.xml", f'<!DOCTYPE x [<!ENTITY l0 "lol">{lol}]><x>&l8;</x>')
    refused(tmp_path / "f.docx", "entities")
    for encoding in ("utf-16", "utf-16-be", "utf-8-sig"):
        with zipfile.ZipFile(tmp_path / "g.docx", "w") as out:
            mark, name = "\ufeff" if encoding == "utf-16-be" else "", encoding.replace("-sig", "").replace("-be", "")
            body = (
                f"<!DOCTYPE w [<!ENTITY e 'text'>]><w:document {WORD}><w:body>{paragraph('&e;')}</w:body></w:document>"
            )
            out.writestr("_rels/.rels", RELATIONS)
            out.writestr("word/document.xml", f'{mark}<?xml version="1.0" encoding="{name}"?>{body}'.encode(encoding))
        refused(tmp_path / "g.docx", "entities")
    write_epub(tmp_path / "a.epub", ["<img/>"])
    refused(tmp_path / "a.epub", "pictures")
    lock = '<encryption xmlns:e="e"><e:CipherReference URI="OEBPS/text/c%200.xhtml"/></encryption>'
    write_epub(tmp_path / "b.epub", ["<p>a</p>"], {"META-INF/encryption.xml": lock})
    refused(tmp_path / "b.epub", "protected")
    (tmp_path / "a.docx.gz").write_bytes(b"")
    refused(tmp_path / "a.docx.gz", "gunzip")


@pytest.mark.promise("R18")
def test_a_page_that_takes_too_long_ends_its_own_process(tmp_path, monkeypatch):
    write_pdf(tmp_path / "a.pdf", [[(72, 700, "Text")]])
    slow = tmp_path / "slow.py"
    slow.write_text("import os, signal; os.kill(os.getpid(), signal.SIGALRM)")
    monkeypatch.setattr(pdf_worker, "__name__", "slow")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    refused(tmp_path / "a.pdf", "60 s")
