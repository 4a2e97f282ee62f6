"""Text out of FHIR: small resources in the shapes of the standard's examples, and anything else as JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reason2decide.serve import fhir
from reason2decide.serve.attachments import without_tags
from reason2decide.serve.fhir import FhirError, patients_of, text_of, unread_of


def encoded(text: str, charset: str = "utf-8") -> str:
    return base64.b64encode(text.encode(charset)).decode()


def document(data: str, kind: str = "text/plain", **more: Any) -> dict[str, Any]:
    attachment = {"contentType": kind, "data": data}
    return {"resourceType": "DocumentReference", "status": "current", "content": [{"attachment": attachment}], **more}


def observation(value: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "status": "final", "valueString": value, **more}


def communication(*texts: str, **more: Any) -> dict[str, Any]:
    payload = [{"contentString": text} for text in texts]
    return {"resourceType": "Communication", "status": "completed", "payload": payload, **more}


def bundle(*resources: Any, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        "entry": [{"resource": resource, "search": {"mode": "match"}} for resource in resources],
        **more,
    }


CODE = {"coding": [{"system": "http://loinc.org", "code": "8661-1", "display": "Chief complaint"}]}


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (observation("chest pain"), "chest pain"),
        (observation("chest pain", code={**CODE, "text": "Reason"}), "Reason: chest pain"),
        (observation("chest pain", code=CODE), "Chief complaint: chest pain"),
        (observation("a", note=[{"text": "b"}, {"authorString": "x"}, {"text": " c "}]), "a\nb\nc"),
        ({"resourceType": "Observation", "code": CODE, "note": [{"text": "pale"}]}, "pale"),
        (
            {"resourceType": "Encounter", "reasonCode": [{"text": "fever"}, CODE]},
            "fever\nChief complaint",
        ),
        (communication("Called at 9.", "Coughs since Monday."), "Called at 9.\nCoughs since Monday."),
        (
            document(encoded("Patient reports\r\n\r\n\r\n\r\nfever   and chills ")),
            "Patient reports\n\nfever and chills",
        ),
        (document(encoded("Grüße", "iso-8859-1"), "text/plain; charset=ISO-8859-1"), "Grüße"),
        (document(encoded("Grüße"), 'text/plain;charset="UTF-8"'), "Grüße"),
        (document(encoded("a"), "text/plain; charset=punycode"), "a"),  # as UTF-8, which it is
        (document(encoded("%PDF"), "application/pdf"), ""),
        (document("not base64, it is too short!!!a"), ""),
        (document("é"), ""),
        (document(encoded("a")[:2] + "\n" + encoded("a")[2:]), "a"),
        ({"resourceType": "DocumentReference", "content": [{"attachment": {"url": "http://x/1"}}]}, ""),
        ({"resourceType": "Condition", "code": {"text": "sepsis"}}, ""),
        ({"resourceType": "Patient", "name": [{"text": "Miller"}]}, ""),
        ({"resourceType": "observation", "valueString": "a"}, ""),
        ({"valueString": "a"}, ""),
        (None, ""),
        ("a", ""),
    ],
)
def test_what_a_resource_says(resource: object, expected: str) -> None:
    found = text_of(resource)
    assert found.text == expected
    assert found.sources == ({resource["resourceType"]: 1} if expected and isinstance(resource, dict) else {})
    assert not found.missing


RTF = r"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}\f0 Chest pain\par since one hour, 40\'b0}"


@pytest.mark.parametrize(
    ("attachment", "expected"),
    [
        ({"contentType": "text/plain; charset=utf8", "data": encoded("40\u00b0")}, "40\u00b0"),
        ({"contentType": "text/plain; charset=UTF_8", "data": encoded("40\u00b0")}, "40\u00b0"),
        ({"contentType": 'text/plain; charset="latin1"', "data": encoded("40\u00b0", "latin-1")}, "40\u00b0"),
        (
            {"contentType": "text/plain;charset=Windows-1254", "data": encoded("a\u011fr\u0131", "cp1254")},
            "a\u011fr\u0131",
        ),
        ({"contentType": "text/plain; charset=us-ascii", "data": encoded("40\u00b0")}, "40\u00b0"),  # UTF-8 in truth
        ({"contentType": "text/plain; charset=hospital-7", "data": encoded("40\u00b0")}, "40\u00b0"),
        ({"contentType": "text/plain; charset=utf-16", "data": encoded("40\u00b0", "utf-16")}, "40\u00b0"),
        ({"contentType": "text/plain", "data": encoded("\ufeffpale")}, "pale"),
        ({"contentType": "text/plain", "data": encoded("pale").rstrip("=")}, "pale"),
        (
            {"contentType": "text/plain", "data": base64.urlsafe_b64encode("\u00ff\u00fe pale?".encode()).decode()},
            "\u00ff\u00fe pale?",
        ),
        ({"data": encoded("pale")}, "pale"),
        ({"contentType": "application/octet-stream", "data": encoded("<HTML><p>pale</p>")}, "pale"),
        ({"contentType": "text/markdown", "data": encoded("# pale")}, "# pale"),
        ({"contentType": "application/rtf", "data": encoded(RTF)}, "Chest pain\nsince one hour, 40\u00b0"),
        ({"data": encoded(RTF)}, "Chest pain\nsince one hour, 40\u00b0"),
    ],
)
def test_what_hospitals_attach_is_read(attachment: dict[str, Any], expected: str) -> None:
    found = text_of({"resourceType": "DocumentReference", "content": [{"attachment": attachment}]})
    assert (found.text, found.unread) == (expected, {})


@pytest.mark.parametrize(
    ("resource", "reason", "text"),
    [
        ({"contentType": "text/plain", "url": "Binary/1"}, "only an address is given", ""),
        ({"contentType": "text/plain"}, "it is empty", ""),
        ({"contentType": "application/pdf", "data": encoded("%PDF-1.7")}, "it is a PDF", ""),
        ({"data": encoded("%PDF-1.7")}, "it is a PDF", ""),
        ({"contentType": "image/png", "data": encoded("x")}, "its content type is neither text, HTML nor RTF", ""),
        ({"data": encoded("a\0b")}, "its content type is neither text, HTML nor RTF", ""),
        ({"contentType": "text/plain", "data": "????"}, "its data is damaged", ""),
        ({"contentType": "text/plain", "data": "A" * 2_000_000}, "it is too long", ""),
        (
            {"contentType": "text/plain; charset=hospital-7", "data": encoded("40\u00b0", "latin-1")},
            "its character set is unknown",
            "",
        ),
        ({"contentType": "text/plain", "data": encoded(" \n")}, "it has no text", ""),
        (
            {"contentType": "text/xml", "data": encoded("<ClinicalDocument><text>pale</text></ClinicalDocument>")},
            "its content type is neither text, HTML nor RTF",
            "",
        ),
        ({"data": encoded("<?xml version='1.0'?><x>a</x>")}, "its content type is neither text, HTML nor RTF", ""),
        ({"contentType": "text/html", "data": encoded("<img src='scan.png'>")}, "it has no text", ""),
        ({"contentType": "text/rtf", "data": encoded(r"{\rtf1{\pict 0102}}")}, "it has no text", ""),
        (
            {"contentType": "text/plain", "data": encoded("pale", "utf-16-le")},
            "its characters are not in the character set given",
            "",
        ),
        (
            {"contentType": "text/html", "data": encoded("<body>pale<style>p{} he fell")},
            "a part of its HTML that is not shown never ends",
            "pale",
        ),
        (
            {"contentType": "text/html", "data": encoded("<p>40\u00b0 pale", "latin-1")},
            "some of its characters are not in its character set",
            "40\ufffd pale",
        ),
    ],
)
def test_what_is_not_read_is_said(resource: dict[str, Any], reason: str, text: str) -> None:
    found = text_of({"resourceType": "DocumentReference", "content": [{"attachment": resource}]})
    assert found.text == text and unread_of(found) == [f"1 DocumentReference ({reason})"]


@pytest.mark.parametrize(
    ("resource", "reason"),
    [
        ({"resourceType": "Observation", "code": CODE, "valueQuantity": {"value": 82}}, "its value is not text"),
        ({"resourceType": "Observation", "code": CODE, "component": []}, "its components are not read"),
        ({"resourceType": "Observation", "valueString": "pale", "component": []}, "its components are not read"),
        (
            {"resourceType": "Encounter", "reasonCode": [{"coding": [{"code": "1"}]}]},
            "its reason is a code without a text",
        ),
        ({"resourceType": "Communication", "payload": [{"contentReference": {}}]}, "its content is not text"),
        (
            {"resourceType": "Encounter", "reasonReference": [{"reference": "Condition/1"}]},
            "its reason is in another resource",
        ),
        ({"resourceType": "DocumentReference", "content": []}, "it has no attachment"),
        ({"resourceType": "Observation", "code": CODE, "dataAbsentReason": {}}, "it has no value"),
        ({"resourceType": "Observation", "valueString": "a", "interpretation": []}, "its interpretation is not read"),
        ({"resourceType": "Encounter", "diagnosis": [{"condition": {}}]}, "its diagnosis is not read"),
        ({"resourceType": "DiagnosticReport", "conclusion": "pneumonia"}, "this type is not read"),
        ({"resourceType": "Condition", "code": {"text": "asthma"}}, "this type is not read"),
    ],
)
def test_values_that_are_not_text_are_said(resource: dict[str, Any], reason: str) -> None:
    kind = resource["resourceType"]
    assert unread_of(text_of(resource, resource)) == [f"2 {kind} ({reason})"]


def test_patients_are_those_that_references_name() -> None:
    references = ["Patient/1", "https://a.org/fhir/Patient/2/_history/7", "urn:uuid:3", "Group/4", "Patient/5 or 6"]
    bundle = {"resourceType": "Bundle", "entry": [{"resource": about(reference)} for reference in references]}
    assert patients_of(bundle, about(None), {"resourceType": "Patient", "id": "7"}) == {"1", "2"}


def about(reference: str | None) -> dict[str, Any]:
    return {"resourceType": "Observation", "subject": {"reference": reference}, "valueString": "pale"}


def test_complaints_as_codes_and_attached_messages_are_read() -> None:
    complaint = {"resourceType": "Observation", "code": CODE, "valueCodeableConcept": {"text": "chest pain"}}
    assert text_of(complaint).text == "Chief complaint: chest pain"
    coded = {"resourceType": "Observation", "valueCodeableConcept": {"coding": [{"display": "Chest pain"}]}}
    assert text_of(coded).text == "Chest pain"
    sent = {"contentAttachment": {"contentType": "text/html", "data": encoded("<p>pale</p>")}}
    assert text_of({"resourceType": "Communication", "payload": [sent]}).text == "pale"
    assert text_of(communication("pale", note=[{"text": "now unconscious"}])).text == "pale\nnow unconscious"


def test_formats_of_one_document_are_not_repeated() -> None:
    attachments = [("application/pdf", "JVBERg=="), ("text/html", encoded("<p>a</p>")), ("text/plain", encoded("a"))]
    content = [{"attachment": {"contentType": kind, "data": data}} for kind, data in attachments]
    found = text_of({"resourceType": "DocumentReference", "content": content})
    assert (found.text, found.unread) == ("a", {})
    # A format without text, such as a scan, hides none that has some.
    content[1]["attachment"]["data"] = encoded("<img src='scan.png'>")
    found = text_of({"resourceType": "DocumentReference", "content": content})
    assert (found.text, found.unread) == ("a", {})


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("<p>Chest&nbsp;pain &lt; 1&nbsp;h</p>", "Chest pain < 1 h"),
        ("<html><head><title>t</title><style>p{}</style></head><body>a<br/>b</body></html>", "a\nb"),
        ("a<script>alert('x')</script>b<!-- c <p>d --> e", "a\nb\ne"),
        ("no <b>fe</b>ver, <span class='x'>BP</span> 120", "no fever, BP 120"),
        ("<table><tr><td>Temp</td><td>39</td></tr></table>", "Temp\n\n39"),
        ("&lt;b&gt;shown&lt;/b&gt; &amp;amp;", "<b>shown</b> &amp;"),
        ("temp < 38 and > 36, pain <5", "temp < 38 and > 36, pain <5"),
        ("<body>fever<!-- cut off", "fever"),
        ("<p>HR 80</p><p><![CDATA[chest pain]]></p>", "HR 80\n\nchest pain"),
        ("<html><head/><body>fever<script src='a.js' />, pale<title/></body></html>", "fever\n, pale"),
        ("<blockquote>a</blockquote><article>b</article>", "a\n\nb"),
    ],
)
def test_text_of_html(markup: str, expected: str) -> None:
    assert text_of(document(encoded(markup), "text/html; charset=utf-8")).text == expected


def test_resources_and_bundles_keep_their_order_and_part_by_an_empty_line() -> None:
    inner = bundle(communication("c"), {"resourceType": "Patient"}, observation("d"))
    found = text_of(observation("a"), bundle(document(encoded("b")), None, inner), None, observation("e"))
    assert found.text == "a\n\nb\n\nc\n\nd\n\ne"
    assert found.sources == {"Observation": 3, "DocumentReference": 1, "Communication": 1}


def test_the_same_resource_counts_once() -> None:
    found = text_of(observation("a", id="1"), bundle(observation("a", id="1"), observation("a", id="2")))
    assert found.text == "a\n\na"
    assert text_of(observation("a"), observation("a")).text == "a\n\na"  # without ids nothing says they are the same
    assert text_of(observation("a", id="1"), communication("a", id="1")).sources == {
        "Observation": 1,
        "Communication": 1,
    }


@pytest.mark.parametrize(
    "resource",
    [
        {**observation("a"), "status": "entered-in-error"},
        {**observation("a"), "status": "cancelled"},
        {**communication("a"), "status": "not-done"},
        {**document(encoded("a")), "status": "superseded"},
        document(encoded("a"), docStatus="entered-in-error"),
        {"resourceType": "Encounter", "status": "cancelled", "reasonCode": [{"text": "a"}]},
    ],
)
def test_what_was_withdrawn_does_not_count(resource: dict[str, Any]) -> None:
    assert text_of(resource).text == ""


def test_what_the_sender_could_not_give_is_said() -> None:
    def outcome(severity: str) -> dict[str, Any]:
        return {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": "processing"}]}

    assert text_of(observation("a"), outcome("error")).missing
    assert text_of(bundle(observation("a"), outcome("fatal"))).missing
    assert not text_of(observation("a"), outcome("warning")).missing
    assert text_of(bundle(observation("a"), link=[{"relation": "next", "url": "x"}])).missing
    assert not text_of(bundle(observation("a"), link=[{"relation": "self", "url": "x"}])).missing


def test_more_than_the_bounds_is_refused_without_quoting() -> None:
    with pytest.raises(FhirError, match="more than 1000 FHIR resources") as caught:
        text_of(bundle(*[observation("Miller")] * fhir.MOST_RESOURCES))
    assert "Miller" not in str(caught.value)
    most = "m" * fhir.LONGEST_TEXT
    assert text_of(observation(most)).text == most
    with pytest.raises(FhirError, match="more than 200000 characters"):
        text_of(observation(most), observation("m"))
    with pytest.raises(FhirError, match="more than 200000 characters"):
        text_of(document(encoded(most + "m")))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
KEYS = [
    *("resourceType", "status", "docStatus", "id", "code", "coding", "display", "text", "valueString", "note", "link"),
    *("reasonCode", "content", "attachment", "contentType", "data", "payload", "contentString", "entry", "resource"),
    *("issue", "severity", "relation"),
]
KINDS = st.sampled_from([*fhir._READERS, "Bundle", "OperationOutcome"])
FHIR_LIKE = st.recursive(
    SCALARS | KINDS | st.sampled_from(["text/plain", "text/html;charset=utf-16", "PGI+", "error", "next"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
        | st.builds(
            lambda kind, rest: {**rest, "resourceType": kind}, KINDS, st.dictionaries(st.sampled_from(KEYS), inner)
        )
    ),
    max_leaves=30,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(JSON | FHIR_LIKE, max_size=4))
def test_any_json_has_some_text_or_none(values: list[Any]) -> None:
    found = text_of(*values)
    assert found.text == found.text.strip()
    assert bool(found.text) == bool(found.sources)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*"<>/!-=&;#x \"'ab\n", "script", "<!--", "-->", "<b>"])).map("".join))
def test_no_markup_makes_text_appear(markup: str) -> None:
    """What is stripped never leaves more than there was, and a second pass over escaped text changes nothing."""
    stripped = without_tags(markup)
    assert len(stripped) <= len(markup)
    escaped = markup.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert without_tags(escaped) == markup


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (document(encoded("<!--" * 290_000), "text/html"), 0),
        (document(encoded("<script>" * 145_000), "text/html"), 0),
        (document(encoded("<" * 199_000), "text/html"), 199_000),
        (document(encoded("<a " * 66_000), "text/html"), 198_000 - 1),
        (document(encoded("&lt" * 66_000), "text/html"), 66_000),
        (document(encoded(" \n" * 590_000 + "a")), 1),
        (document("A" * 2_000_000), 0),
        (document(encoded("{" * 1_000_000), "text/rtf"), 0),
        (document(encoded(r"{\rtf1 a\'e9 \b x\b0 " + "{\\*\\x " * 100_000), "text/rtf"), 4),
        (observation(" " * 2_000_000), 0),
        (bundle(*[{"resourceType": "Bundle", "entry": [{}] * 100}] * 900), 0),
    ],
    ids=[
        "comments",
        "scripts",
        "less",
        "tags",
        "entities",
        "lines",
        "base64",
        "groups",
        "commands",
        "spaces",
        "bundles",
    ],
)
def test_the_time_grows_with_the_length_only(value: Any, length: int) -> None:
    """Were it to grow with the square, the larger of these would take minutes."""
    assert len(text_of(value).text) == length


def test_nesting_as_deep_as_json_can_be_parsed() -> None:
    deepest: Any = observation("a")
    for _ in range(fhir.MOST_RESOURCES - 2):
        deepest = bundle(deepest)
    assert text_of(deepest).text == "a"
    with pytest.raises(FhirError):
        text_of(bundle(bundle(deepest)))
    wide = json.loads('{"resourceType": "Bundle", "entry": [' + ",".join(["[" * 50 + "]" * 50] * 1000) + "]}")
    assert text_of(wide).text == ""
