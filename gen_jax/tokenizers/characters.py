"""Characters as the tokenizers library (0.23) sees them, whatever Unicode the Python at hand knows.

It takes letters and numbers from Unicode 16, lower case from 17 and the order of combining marks from 9; Python's
`unicodedata` is of Unicode 14 in Python 3.11 and 15 in 3.12. The tables below hold the difference.
"""

import re
import unicodedata

__all__ = ['compose', 'kinds', 'lower']

# First and last characters of what Unicode 15, 15.1 and 16 added to the categories L* and N*.
_LETTERS = (
    (0x1C89, 0x1C8A), (0xA7CB, 0xA7CD), (0xA7DA, 0xA7DC), (0x105C0, 0x105F3), (0x10D4A, 0x10D65), (0x10D6F, 0x10D85),
    (0x10EC2, 0x10EC4), (0x1123F, 0x11240), (0x11380, 0x11389), (0x1138B, 0x1138B), (0x1138E, 0x1138E),
    (0x11390, 0x113B5), (0x113B7, 0x113B7), (0x113D1, 0x113D1), (0x113D3, 0x113D3), (0x11BC0, 0x11BE0),
    (0x11F02, 0x11F02), (0x11F04, 0x11F10), (0x11F12, 0x11F33), (0x1342F, 0x1342F), (0x13441, 0x13446),
    (0x13460, 0x143FA), (0x16100, 0x1611D), (0x16D40, 0x16D6C), (0x18CFF, 0x18CFF), (0x1B132, 0x1B132),
    (0x1B155, 0x1B155), (0x1DF25, 0x1DF2A), (0x1E030, 0x1E06D), (0x1E4D0, 0x1E4EB), (0x1E5D0, 0x1E5ED),
    (0x1E5F0, 0x1E5F0), (0x2B739, 0x2B739), (0x2EBF0, 0x2EE5D), (0x31350, 0x323AF),
)
_NUMBERS = (
    (0x10D40, 0x10D49), (0x116D0, 0x116E3), (0x11BF0, 0x11BF9), (0x11F50, 0x11F59), (0x16130, 0x16139),
    (0x16D70, 0x16D79), (0x1CCF0, 0x1CCF9), (0x1D2C0, 0x1D2D3), (0x1E4F0, 0x1E4F9), (0x1E5F1, 0x1E5FA),
)
# Marks that Unicode 10 to 15 added: not moved past others, and nothing is composed across them.
_LATER_MARKS = re.compile(
    '([\u07fd\u0898-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b\u0d3c\u0eba\u1715\u1abf-\u1ace\u1df6-\u1dfa\ua82c'
    '\U00010d24-\U00010d27\U00010eab\U00010eac\U00010efd-\U00010eff\U00010f46-\U00010f50\U00010f82-\U00010f85'
    '\U00011070\U0001133b\U0001145e\U00011839\U0001183a\U00011930\U0001193d\U0001193e\U00011943\U000119e0'
    '\U00011a34\U00011a47\U00011a99\U00011d42\U00011d44\U00011d45\U00011d97\U00011f41\U00011f42\U00016ff0'
    '\U00016ff1\U0001e08f\U0001e130-\U0001e136\U0001e2ae\U0001e2ec-\U0001e2ef\U0001e4ec-\U0001e4ef])')


class _Kinds(dict):
    """Code point -> its kind, found when first asked for."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        major = unicodedata.category(char)[0]
        if major == 'L' or any(a <= code <= b for a, b in _LETTERS):
            kind = 'L'
        elif major == 'N' or any(a <= code <= b for a, b in _NUMBERS):
            kind = 'N'
        else:  # Python also counts the separators U+001C to U+001F as space, Unicode does not
            kind = ' ' if char.isspace() and not 0x1C <= code <= 0x1F else 'P'
        self[code] = kind
        return kind


class _Lower(dict):
    """Code point -> its lower case by itself (a final sigma has none of its own)."""

    def __missing__(self, code: int) -> str:
        self[code] = lowered = chr(code).lower()
        return lowered


_KINDS = _Kinds()
_LOWER = _Lower({
    0x1C89: '\u1c8a', 0xA7CB: '\u0264', 0xA7CC: '\ua7cd', 0xA7CE: '\ua7cf', 0xA7D2: '\ua7d3', 0xA7D4: '\ua7d5',
    0xA7DA: '\ua7db', 0xA7DC: '\u019b',
    **{code: chr(code + 0x20) for code in range(0x10D50, 0x10D66)},
    **{code: chr(code + 0x1B) for code in range(0x16EA0, 0x16EB9)},
})


def compose(text: str) -> str:
    """Unicode normalisation form C."""
    if text.isascii():
        return text
    return ''.join(unicodedata.normalize('NFC', part) for part in _LATER_MARKS.split(text))


def kinds(text: str) -> str:
    """One mark per character: 'L' letter, 'N' number, ' ' white space, 'P' anything else."""
    return text.translate(_KINDS)


def lower(text: str) -> str:
    """Every character's lower case by itself, so that where a word ends does not matter."""
    return text.translate(_LOWER)
