"""Cleaning of captions before a text encoder reads them, as the published text-conditional models were trained with it.

The steps, their order and their quirks are those of the published code (FoundationVision/LlamaGen, language/t5.py);
golden cases hold what they give. ftfy and BeautifulSoup are the extra `generators`.
"""

from __future__ import annotations

import html
import re
import urllib.parse
import warnings
from collections.abc import Callable

CLEANINGS = 2
"""How often a caption is cleaned: what one pass leaves may be something that the next one removes."""

_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_HOST = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63"
    "\uff0d"
)
_JOINER = re.compile("[-_]")
_MOST_JOINERS = 3
"""Hyphens and underscores together; with more, a caption is taken for one long name."""

_Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_ADDRESSES = _rules(
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),  # the scheme alone, or a host with its path
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),
)
_SIGNS = _rules(
    (r"@\w+\b", ""),
    ("[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),  # CJK; kana stays
    (f"[{_DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # a backslash and the letter
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_WORDS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    ("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),  # sizes, by x, Cyrillic ha or the sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
_ENDS = _rules(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


class CaptionError(ValueError):
    """A caption can't be cleaned; the message is the reason."""


def why_not_clean(caption: str) -> str | None:
    """Why a caption can't be cleaned; None where it can. Raises ModuleNotFoundError as `clean_once`."""
    try:
        clean_caption(caption)
    except CaptionError as error:
        return str(error)
    return None


def clean_caption(caption: str) -> str:
    """A caption as the text encoder gets it: `clean_once`, CLEANINGS times. Raises what it raises."""
    for _ in range(CLEANINGS):
        caption = clean_once(caption)
    return caption


def clean_once(caption: str) -> str:
    """One pass: lower case, without addresses, markup, names of files, article numbers and odd punctuation.

    Raises ModuleNotFoundError, with the command that installs it, where ftfy or BeautifulSoup is missing, CaptionError
    for markup that BeautifulSoup gives up on.
    """
    fix_text, without_markup = _libraries()
    caption = urllib.parse.unquote_plus(caption).strip().lower().replace("<person>", "person")
    caption = _apply(_SIGNS, without_markup(_apply(_ADDRESSES, caption)))
    if len(_JOINER.findall(caption)) > _MOST_JOINERS:
        caption = _JOINER.sub(" ", caption)
    caption = html.unescape(html.unescape(fix_text(caption))).strip()
    return _apply(_ENDS, _apply(_WORDS, caption)).strip()


def _apply(rules: _Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _libraries() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """ftfy's repair of broken encodings, and BeautifulSoup's text of markup."""
    try:
        from bs4 import BeautifulSoup
        from bs4.exceptions import ParserRejectedMarkup
        from ftfy import fix_text
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"captions are cleaned by ftfy and BeautifulSoup; {error.name} is not installed: "
            "pip install 'lactok[generators]'",
            name=error.name,
        ) from error

    def without_markup(text: str) -> str:
        with warnings.catch_warnings():  # a caption that looks like an address or a file is still a caption
            warnings.simplefilter("ignore")
            try:
                return BeautifulSoup(text, features="html.parser").text
            except ParserRejectedMarkup as error:
                raise CaptionError("it can't be cleaned: its markup is broken in a way that no parser takes") from error

    return fix_text, without_markup
