"""From the bytes of a request's body to its JSON value, within bounds and in one pass.

What a small body can become is bounded before anything is made of it: its size when decompressed, the memory that its
compression asks for, its depth, and its number of values, each of which would become an object of its own, or an error
message.
"""

from __future__ import annotations

import codecs
import json
import math
import sys
from typing import Any

from reason2decide.serve.settings import ServeSettings
from reason2decide.serve.wire import Refused
from reason2decide.syntax import storable

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

WINDOW_LOG = 23  # 8 MiB, the window that RFC 8878 recommends to support: a larger one is memory for an attacker
_INVALID = ("the body is not valid JSON in UTF-8", ("body",), "json_invalid")


def json_of(body: bytes, content_type: str, content_encoding: str, settings: ServeSettings) -> Any:
    """The value of a body.

    Args:
        content_type, content_encoding: the headers of those names; only JSON is read, as it is or compressed with zstd.

    Raises:
        Refused: it is something else, or over a bound.
    """
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise Refused("expected a body of type application/json", (), "media_type", 415)
    encoding = content_encoding.strip().lower()
    if encoding not in ("", "identity", "zstd"):
        raise Refused("expected an uncompressed body, or one compressed with zstd", (), "content_encoding", 415)
    plain = _decompressed(body, settings.max_body_bytes) if encoding == "zstd" else body
    try:
        value = json.loads(plain.removeprefix(codecs.BOM_UTF8).decode(), parse_constant=_reject)
    except (ValueError, RecursionError):
        raise Refused(*_INVALID) from None
    _require_small(value, settings.max_nesting, settings.max_values)
    return _storable(value)


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _decompressed(body: bytes, most: int) -> bytes:
    decompressor = ZstdDecompressor(options={DecompressionParameter.window_log_max: WINDOW_LOG})
    try:
        plain = decompressor.decompress(body, max_length=most + 1)
    except ZstdError:
        message = "the body is not compressed with zstd as its header says, or with a window over 8 MiB"
        raise Refused(message, kind="content_encoding") from None
    if len(plain) > most:
        raise Refused(f"the body is larger than {most} bytes when decompressed", (), "too_large", 413)
    if not decompressor.eof:
        raise Refused("the compressed body is incomplete", kind="content_encoding")
    return plain


def _storable(value: Any) -> Any:
    """The value with every string and key as `storable` makes it."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): _storable(item) for key, item in value.items()}
    return value


def _require_small(value: Any, most_nested: int, most_values: int) -> None:
    """Refuse what is nested too deep, has too many values, or a number that no float holds; stop at the first."""
    waiting, count = [(value, 1)], 0
    while waiting:
        inner, depth = waiting.pop()
        if isinstance(inner, float) and not math.isfinite(inner):
            raise Refused(*_INVALID)
        if not isinstance(inner, (dict, list)):
            continue
        if depth > most_nested:
            raise Refused(f"the body is nested more than {most_nested} levels deep", ("body",), "too_deep")
        count += len(inner)
        if count > most_values:
            raise Refused(f"the body has more than {most_values} values; send less", ("body",), "too_large", 413)
        waiting += [(item, depth + 1) for item in (inner.values() if isinstance(inner, dict) else inner)]
