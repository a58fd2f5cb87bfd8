"""Passwords, signatures and tokens in addresses: nothing that is written or shown may hold them."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

_ADDRESS = re.compile(r"""[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'"<>|]+""")
_LOGIN = re.compile(r"(https?://)[^/?#]*@|(\w[\w+.-]*://)[^/?#@]*:[^/?#]*@", re.IGNORECASE)
_SIGNING = re.compile(r"x-(amz|goog|oss|cos)-|(awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id)$")
_AZURE = {"sig", "sv", "ss", "srt", "sp", "se", "st", "spr", "sr", "sip", "si", "skoid", "sktid", "skt", "ske", "sks", "skv"}
_SECRET = re.compile(r"sig$|.*(signature|token|secret|password|passwd|api[-_]?key|access[-_]?key|credential)")


def without_secrets(text: str) -> str:
    """A text whose URLs are cleared of passwords, signatures and tokens. The same text if there are none."""
    return _ADDRESS.sub(lambda found: _plain(found[0]), text) if "://" in text else text


def _plain(url: str) -> str:
    url = _LOGIN.sub(lambda found: found[1] or found[2], url, count=1)
    start, mark, query = url.partition("?")
    if not mark:
        return url
    parameters = query.split("&")
    names = [unquote(parameter.partition("=")[0]).lower() for parameter in parameters]
    if not any(_SECRET.match(name) for name in names):
        return url
    azure = "sig" in names
    kept = [
        parameter
        for name, parameter in zip(names, parameters, strict=True)
        if not (_SECRET.match(name) or _SIGNING.match(name) or (azure and name in _AZURE))
    ]
    return f"{start}?{'&'.join(kept)}" if kept else start


def cleared(value: Any) -> Any:
    """A copy of nested mappings and lists in which every text is `without_secrets`."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {key: cleared(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleared(entry) for entry in value]
    return value
