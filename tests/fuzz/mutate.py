"""Damage to bytes and to text, drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

#: Values that size fields, counts and offsets are set to.
_ODD = (
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**40,
    2**63,
)
_WORDS = (
    "", "0", "-1", "1e999", "nan", "9" * 400, "\0", "\n", "[" * 200, "{", "}", '"', "'", "=", "#", "..", "../../x", "/",
    "true", "[[stage]]", "[[weights]]", "\ufeff", "\x1b[31m", "é\u0301", "\udc80", "1979-05-27", "inf", "0x10", "%s", "@",
)  # fmt: skip

#: Places are shares of the length, so that one draw fits every file; small files' heads get their part.
_place = st.one_of(st.floats(0, 1), st.floats(0, 0.05), st.floats(0, 0.005), st.floats(0.9, 1))
_step = st.tuples(
    st.sampled_from(
        ["flip", "flip", "byte", "number", "number", "cut", "delete", "repeat", "swap", "noise", "zero"]
    ),
    _place,
    _place,
    st.integers(0, 255),
    st.sampled_from(_ODD),
    st.sampled_from([1, 2, 4, 4, 8]),
)
Step = tuple[str, float, float, int, int, int]

steps: st.SearchStrategy[list[Step]] = st.lists(_step, min_size=1, max_size=8)


def damaged(data: bytes, wanted: Sequence[Step]) -> bytes:
    """`data` with the steps done one after another."""
    result = bytearray(data)
    for kind, first, second, byte, number, width in wanted:
        if not result:
            break
        at = min(int(first * len(result)), len(result) - 1)
        length = 1 + int(second * min(len(result) - at, 4096))
        if kind == "flip":
            result[at] ^= 1 << (byte & 7)
        elif kind == "byte":
            result[at] = byte
        elif kind == "number":
            order: Any = "big" if byte & 1 else "little"
            result[at : at + width] = (number & (256**width - 1)).to_bytes(width, order)
        elif kind == "cut":
            del result[at:]
        elif kind == "delete":
            del result[at : at + length]
        elif kind == "repeat":
            result[at:at] = result[at : at + length]
        elif kind == "swap":
            other = min(int(second * len(result)), len(result) - 1)
            size = 1 + byte
            one, two = bytes(result[at : at + size]), bytes(result[other : other + size])
            result[at : at + size], result[other : other + size] = two, one
        elif kind == "noise":
            result[at : at + length] = bytes((byte * (i * i + 7)) & 0xFF for i in range(length))
        elif kind == "zero":
            result[at : at + length] = bytes(min(length, len(result) - at))
    return bytes(result)


_word = st.one_of(st.sampled_from(_WORDS), st.text(max_size=8))
word_steps: st.SearchStrategy[list[tuple[str, float, float, str]]] = st.lists(
    st.tuples(
        st.sampled_from(["put", "replace", "drop", "double"]), st.floats(0, 1), st.floats(0, 0.2), _word
    ),
    min_size=1,
    max_size=6,
)


def garbled(text: str, wanted: Sequence[tuple[str, float, float, str]]) -> str:
    """Text with words put in, replaced, dropped or doubled."""
    for kind, first, second, word in wanted:
        at = int(first * len(text))
        end = at + int(second * (len(text) - at))
        middle = {"put": word + text[at:end], "replace": word, "drop": "", "double": text[at:end] * 2}[kind]
        text = text[:at] + middle + text[end:]
    return text
