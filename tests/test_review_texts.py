"""The texts of the review pages: every language has them all, and each is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from reviewing import Person, Site, filled, people

from reason2decide import review
from reason2decide.review.settings import LANGUAGES
from reason2decide.review.texts import Texts
from reason2decide.syntax import parse_toml


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return filled(tmp_path)


@pytest.fixture
def nina(site: Site) -> Iterator[Person]:
    with people(site, "nina") as (nina,):
        yield nina


def test_every_language_has_every_text_with_the_same_names() -> None:
    folder = Path(review.__file__).parent / "texts"
    english, *others = (parse_toml((folder / f"{language}.toml").read_bytes()) for language in LANGUAGES)
    names = {key: sorted(re.findall(r"\{(\w+)\}", text)) for key, text in english.items()}
    for other in others:
        assert {key: sorted(re.findall(r"\{(\w+)\}", text)) for key, text in other.items()} == names


def test_every_text_is_used_and_every_used_text_exists() -> None:
    folder = Path(review.__file__).parent
    sources = [*folder.glob("*.py"), *folder.glob("texts/*.py"), *folder.glob("templates/*.html")]
    written = "\n".join(file.read_text("utf-8") for file in sources)
    known = set(Texts("en")._texts)
    asked = set(re.findall(r"""\bt\(\s*["'](\w+)["']\s*[,)]""", written))
    assert asked <= known
    prefixes = set(re.findall(r"""\bt\(f?["'](\w+_)["']? ?[~{]""", written))
    unused = {
        key for key in known - asked if not any(key.startswith(p) for p in prefixes) and f'"{key}"' not in written
    }
    assert unused <= {"cited", "denied"}, unused


def test_the_page_speaks_french_if_asked(site: Site, nina: Person) -> None:
    page = nina.get("", headers={"accept-language": "fr-CA,fr;q=0.9"})
    assert 'lang="fr"' in page.text and "Cas suivant" in page.text
    assert "Next case" in nina.get().text
    nina.get("/language/fr")
    assert "Cas suivant" in nina.get().text
    assert re.search(r'"number">\d+,\d %<', nina.get("/case/1").text)
