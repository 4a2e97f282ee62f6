"""Texts of the review pages by language: a file each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from reason2decide.review.settings import LANGUAGES
from reason2decide.syntax import parse_toml


class Texts:
    """The texts of one language.

    >>> Texts("en")("case", key="17")
    'Case 17'
    """

    def __init__(self, language: str) -> None:
        self.language, self._texts = language, _file(language)

    def __call__(self, key: str, /, **values: object) -> str:
        """The text of a key, its names filled in."""
        return self._texts[key].format(**values) if values else self._texts[key]

    def number(self, value: float, digits: int) -> str:
        """A number with the language's decimal mark.

        >>> Texts("fr").number(0.5, 2)
        '0,50'
        """
        return f"{value:.{digits}f}".replace(".", self("decimal_mark"))


@cache
def _file(language: str) -> Mapping[str, str]:
    return parse_toml((Path(__file__).parent / f"{language}.toml").read_bytes())


def chosen_language(cookie: str | None, accepted: str) -> str:
    """The language of a cookie, else the first of `Accept-Language` that there is, else English.

    >>> chosen_language(None, "de-CH, fr;q=0.9, en;q=0.8"), chosen_language("en", "fr"), chosen_language("xx", "")
    ('fr', 'en', 'en')
    """
    wanted = [cookie or "", *(part.split(";")[0].strip().split("-")[0].lower() for part in accepted.split(","))]
    return next((language for language in wanted if language in LANGUAGES), LANGUAGES[0])
