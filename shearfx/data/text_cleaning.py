"""Cleaning text as pretraining wants it: irregular characters out, line breaks and spaces of one kind, paragraphs."""

import re

__all__ = ["clean_text", "paragraphs"]

_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_IRREGULAR = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f"  # control characters, but for the tab and line breaks
    "\xad\u200b\u2060-\u2064\ufeff"  # soft hyphen, zero-width space, joiners that show nothing, byte-order mark
    "\u061c\u180e\u200e\u200f\u202a-\u202e\u2066-\u206f"  # directions and other switches
    "\ufff9-\ufffd\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # annotations, placeholders, replacement character
    "\U000e0001\U000e0020-\U000e007f"  # tags
    "\ud800-\udfff"  # halves of surrogate pairs, which no tokenizer can encode
    "\ue000-\uf8ff\U000f0000-\U0010ffff"  # private use
    "\ufdd0-\ufdef" + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000)) +
    "]"
)  # fmt: skip
# Zero-width joiner and non-joiner: spelling in Persian and Indic scripts and in emoji, rubbish beside ASCII.
_STRAY_JOINERS = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])")
_TRAILING_SPACE = re.compile("[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile("\n{2,}")


def clean_text(text: str) -> str:
    r"""Remove what is not text, and write line breaks and spaces in one way.

    Removed: control characters but tab and line break; zero-width and direction characters (joiners stay between two
    characters outside ASCII, where they spell); surrogates, private use, noncharacters, tags, object and
    replacement characters.  Every kind of line break, form feed included, becomes ``\n`` and every kind of space of
    one position ``" "``; spaces at the end of a line and empty lines at both ends go; more than one blank line
    becomes one.  Tabs, indentation and letters stay as they are (no Unicode normal form is enforced).  Cleaning
    twice changes nothing more.  Source: LoRAShear, section 5 ("irregular characters" are not listed there).

    >>> clean_text("\ufeffOne\u00a0two\u200b \r\n \r\n\r\nthree\x00\n")
    'One two\n\nthree'
    """
    text = _SPACES.sub(" ", _LINE_BREAKS.sub("\n", text))
    text = _STRAY_JOINERS.sub("", _IRREGULAR.sub("", text))
    return _BLANK_LINES.sub("\n\n", _TRAILING_SPACE.sub("", text)).strip("\n")


def paragraphs(text: str) -> tuple[list[str], str]:
    r"""Split a cleaned text into (its paragraphs, what stands between them).

    Blank lines separate paragraphs; in a text without any, as web pages are stored, every line is one.

    >>> paragraphs("a hard-\nwrapped one\n\nanother")
    (['a hard-\nwrapped one', 'another'], '\n\n')
    >>> paragraphs("one\ntwo")
    (['one', 'two'], '\n')
    """
    separator = "\n\n" if "\n\n" in text else "\n"
    return [part for part in text.split(separator) if part], separator
