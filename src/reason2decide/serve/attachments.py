"""The text of a FHIR attachment, whatever hospitals put into it, or why it has none."""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import html
import re
from collections.abc import Mapping
from typing import Any

from reason2decide.errors import Reason2DecideError, require
from reason2decide.syntax import storable

LONGEST_DATA = 1_600_000  # ours: characters of base64
# Encodings that hospitals use, by Python's names; other codecs are slow or not for text.
CHARSETS = frozenset(
    {"utf-8", "utf-8-sig", "ascii", "iso8859-1", "iso8859-2", "iso8859-9", "iso8859-15", "cp1250", "cp1252", "cp1254"}
    | {"utf-16", "utf-16-le", "utf-16-be"}
)
_HTML, _RTF = ("text/html", "application/xhtml+xml"), ("application/rtf", "text/rtf", "application/x-rtf")
_UNSPECIFIC = ("", "application/octet-stream", "text")  # what the bytes are is then read from them

# Each alternative ends as early as possible or takes the rest, so the time is linear in the length. XHTML may close an
# element that is not shown in its own tag (`<head/>`), which then hides nothing.
_TAG = re.compile(
    r"<!--.*?(?:-->|(?P<open_comment>\Z))"
    r"|<!\[CDATA\[(?P<data>.*?)(?:\]\]>|\Z)"
    r"|<(?P<hidden>script|style|head|title)\b[^<>]*(?<!/)>.*?(?:</(?P=hidden)\s*>|(?P<open_element>\Z))"
    r"|</?(?P<inline>a|abbr|b|em|font|i|mark|small|span|strong|sub|sup|u)\b[^<>]*>"
    r"|</?[a-z][^<>]*>|<[!?][^<>]*>",
    re.DOTALL | re.IGNORECASE,
)


class Unread(Reason2DecideError):
    """An attachment of which nothing, or not everything, can be read; the message says why and quotes nothing."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.text = text


def attachment_text(attachment: Mapping[str, Any]) -> str:
    """The text of an attachment: plain text, HTML without its tags, or RTF without its commands; never empty.

    Without a content type, or with one that says nothing, the bytes tell what they are.

    Raises:
        Unread: it has an address only, another content type, an unknown character set, damaged data, or no text, such
            as a scanned page; `text` is what could be read nevertheless.
    """
    text = _text(attachment)
    if "\0" in text:
        raise Unread("its characters are not in the character set given")
    if not text.strip():
        raise Unread("it has no text")
    return text


def _text(attachment: Mapping[str, Any]) -> str:
    data = attachment.get("data")
    if not isinstance(data, str) or not data.strip():
        raise Unread("only an address is given" if attachment.get("url") else "it is empty")
    if len(data) > LONGEST_DATA:
        raise Unread("it is too long")
    content, (kind, charset) = _decoded_base64(data), _content_type(attachment.get("contentType"))
    if kind in _UNSPECIFIC:
        kind = _sniffed(content)
    if kind in _RTF:
        return _without_commands(content)
    if not (kind in _HTML or (kind.startswith("text/") and kind != "text/xml")):
        raise Unread("it is a PDF" if kind == "application/pdf" else "its content type is neither text, HTML nor RTF")
    if kind not in _HTML:
        return _decoded(content, charset)
    try:
        markup = _decoded(content, charset)
    except Unread as unread:
        raise Unread(str(unread), without_tags(unread.text)) from None
    if any(found["open_comment"] is not None or found["open_element"] is not None for found in _TAG.finditer(markup)):
        raise Unread("a part of its HTML that is not shown never ends", without_tags(markup))
    return without_tags(markup)


def _content_type(value: object) -> tuple[str, str]:
    """A content type in lower case, and its charset; empty without one."""
    kind, *parameters = (part.strip().lower() for part in (value if isinstance(value, str) else "").split(";"))
    charset = next((part.partition("=")[2] for part in parameters if part.startswith("charset")), "")
    return kind, charset.strip("\"' ")


def _decoded_base64(data: str) -> bytes:
    compact = "".join(data.split()).rstrip("=").translate(str.maketrans("-_", "+/"))  # also the form for URLs
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Unread("its data is damaged") from None


def _sniffed(content: bytes) -> str:
    begin = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, kind in ((b"{\\rtf", "text/rtf"), (b"%pdf", "application/pdf"), (b"<!doctype html", "text/html")):
        if begin.startswith(mark):
            return kind
    if begin.startswith(b"<html") or (begin.startswith(b"<?xml") and b"<html" in begin):
        return "text/html"
    if begin.startswith(b"<?xml"):
        return "text/xml"
    return "text/plain" if b"\0" not in content else "application/octet-stream"


def _decoded(content: bytes, charset: str) -> str:
    """The text of bytes in their character set, or in UTF-8 where that is what they are in truth."""
    try:
        codec = codecs.lookup(charset or "utf-8").name if re.fullmatch(r"[\w.:-]{0,40}", charset, re.ASCII) else ""
    except LookupError:
        codec = ""
    for name in (codec, "utf-8"):
        if name in CHARSETS:
            with contextlib.suppress(UnicodeDecodeError):
                return content.decode(name).removeprefix("\ufeff")
    if codec not in CHARSETS:
        raise Unread("its character set is unknown")
    raise Unread("some of its characters are not in its character set", content.decode(codec, "replace"))


def _without_commands(content: bytes) -> str:
    rtf_to_text = require("striprtf.striprtf", "serve").rtf_to_text
    try:
        text: str = rtf_to_text(content.decode("latin-1"), errors="replace")
    except Exception:  # damaged RTF can make the library raise anything
        raise Unread("its RTF is damaged") from None
    return storable(text)


def without_tags(markup: str) -> str:
    """The text of HTML: inline tags are removed, all others become line breaks; character data stays."""
    return html.unescape(_TAG.sub(lambda found: found["data"] or ("" if found["inline"] else "\n"), markup))
