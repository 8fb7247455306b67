import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voc_sets import annotation, box

from mlcore.data.voc import MAX_XML_DEPTH, XmlError, parse_voc

LAUGHS = '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">{}]>'.format(
    "".join(f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("bcdefgh", "cdefghi", strict=True))
)
LAUGHS_IN_UTF_16 = f"{LAUGHS}<annotation>&i;</annotation>".replace('"?>', '" encoding="UTF-16"?>').encode("utf-16")


def test_an_annotation_is_read_in_full():
    xml = annotation(box(corners=(5, 6.5, 20, 30), difficult=1), box("dog", flags=False), filename="a.jpg")
    read = parse_voc(xml.encode())
    assert (read.size, read.depth, read.filename) == ((64, 48), 3, "a.jpg")
    assert read.objects == [
        ("cat", (5, 6.5, 20, 30), "Left", 1, 1),
        ("dog", (5, 6, 20, 30), "Unspecified", 0, 0),
    ]
    assert dict(read.notes) == {"flags-missing": "1 of 2 objects"}


@pytest.mark.parametrize(
    ("xml", "notes"),
    [
        (annotation(box(), declaration=False, filename="a.jpg"), {"xml-no-declaration"}),
        ("\ufeff" + annotation(box(), filename="a.jpg"), {"xml-byte-order-mark"}),
        (annotation(box(), filename="a.jpg").replace("\n", "\r\n"), {"xml-crlf"}),
        ("\n " + annotation(box(), filename="a.jpg"), set()),
        (annotation(box(), filename="a.jpg", size_last=True), {"xml-size-last"}),
        (annotation(box(), more="<frame>12</frame>"), {"filename-missing"}),
        (annotation(box(), filename="a.jpg", more="<path>/home/pi/a.jpg</path>"), {"path-foreign"}),
        (annotation(box(), filename="a.jpg", more=r"<path>C:\Users\x\a.jpg</path>"), {"path-foreign"}),
        (annotation(filename="a.jpg"), set()),
    ],
    ids=["no declaration", "bom", "crlf", "leading space", "size last", "frame", "path", "windows path", "no object"],
)
def test_odd_forms_are_read_and_named(xml, notes):
    assert {reason for reason, _ in parse_voc(xml.encode()).notes} == notes


def test_other_encodings_are_read():
    xml = annotation(box("Kätzchen"), filename="ä.jpg").replace('"1.0"', '"1.0" encoding="UTF-16"')
    read = parse_voc(xml.encode("utf-16"))
    assert (read.filename, read.objects[0].name) == ("ä.jpg", "Kätzchen")


@pytest.mark.parametrize("corner", ["", "x", "1,5", "nan"])
def test_a_corner_that_is_no_number_is_nan(corner):
    read = parse_voc(annotation(box(corners=(corner, 1, 2, 3))).encode())
    assert math.isnan(read.objects[0].corners[0])


@pytest.mark.parametrize(
    "size", ["<size/>", "<size><width>0</width><height>0</height></size>", "<size><width>a</width></size>"]
)
def test_a_size_that_says_nothing_is_none(size):
    assert parse_voc(annotation(size=None, more=size).encode()).size is None


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (f"{LAUGHS}<annotation>&i;</annotation>", "xml-forbidden"),
        (LAUGHS_IN_UTF_16, "xml-malformed"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>'.encode("utf-16"), "xml-forbidden"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "xml-forbidden"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><annotation/>', "xml-forbidden"),
        ("<annotation>" + "<a>" * 5000 + "</a>" * 5000 + "</annotation>", "xml-malformed"),
        ("<annotation>" + "<a>" * 60 + "</a>" * 60 + "</annotation>", "xml-malformed"),
        ("<annotation><object>" + "<part>" * 60 + "</part>" * 60 + "</object></annotation>", "xml-malformed"),
        ("<annotation><filename>" + "x" * (17 << 20) + "</filename></annotation>", "xml-malformed"),
        ("<annotation><object></annotation>", "xml-malformed"),
        ("<annotation>&undefined;</annotation>", "xml-malformed"),
        ("", "xml-malformed"),
        (b"\x00\x01\x02", "xml-malformed"),
        (annotation(box("caf\xe9")).encode("latin-1"), "xml-malformed"),
        ("<html/>", "xml-not-voc"),
    ],
    ids=["laughs", "laughs in utf-16", "type in utf-16", "external entity", "external dtd",
         "very deep", "deep", "deep in object", "large",
         "not closed", "undefined entity", "empty", "binary", "wrong encoding", "html"],
)  # fmt: skip
def test_hostile_and_broken_xml_is_refused_at_once(xml, reason):
    started = time.process_time()
    with pytest.raises(XmlError) as error:
        parse_voc(xml if isinstance(xml, bytes) else xml.encode())
    assert error.value.reason == reason
    assert time.process_time() - started < 1


def test_nesting_up_to_the_bound_is_read():
    depth = MAX_XML_DEPTH - 1
    assert parse_voc(f"<annotation>{'<a>' * depth}{'</a>' * depth}</annotation>".encode())


@settings(max_examples=200, deadline=None)
@given(st.binary() | st.text().map(str.encode) | st.text(alphabet="<>/&;![]aobject \"'=").map(str.encode))
def test_any_bytes_are_read_or_refused(data):
    try:
        parse_voc(data)
    except XmlError as error:
        assert str(error)
