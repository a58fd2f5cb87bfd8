"""Addresses that hold a secret: a password, or the signature of a signed URL. They are opened as given and shown without it."""

import re
from urllib.parse import unquote

_ADDRESS = re.compile(r"""[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'"<>|]+""")
_LOGIN = re.compile(r"(https?://)[^/?#]*@|(\w[\w+.-]*://)[^/?#@]*:[^/?#]*@", re.IGNORECASE)
_SIGNING = re.compile(r"x-(amz|goog|oss|cos)-|(awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id)$")
_AZURE = {"sig", "sv", "ss", "srt", "sp", "se", "st", "spr", "sr", "sip", "si", "skoid", "sktid", "skt", "ske", "sks", "skv"}
_SECRET = re.compile(r"sig$|.*(signature|token|secret|password|passwd|api[-_]?key|access[-_]?key|credential)")


class SecretAddress(str):
    """A shard's name without its secret, for every line, key and file; `address` is what is opened."""

    __slots__ = ("address",)
    address: str

    def __new__(cls, name: str, address: str = "") -> "SecretAddress":
        found = super().__new__(cls, name)
        found.address = address
        return found

    def __reduce__(self) -> tuple[type["SecretAddress"], tuple[str, str]]:
        return type(self), (str(self), self.address)


def hide_secret(shard: str) -> str:
    """The shard by a name that may be shown: itself, or, if it holds a secret, a SecretAddress.

    The name stays the same when a URL is signed anew, so that a resumed run knows its shards.
    """
    name = without_secrets(shard)
    return shard if name == shard or isinstance(shard, SecretAddress) else SecretAddress(name, shard)


def address_of(shard: str) -> str:
    """What is opened, secret included."""
    return shard.address if isinstance(shard, SecretAddress) else shard


def without_secrets(text: str) -> str:
    """Any text with the URLs in it cleared of passwords, signatures and tokens."""
    return _ADDRESS.sub(lambda found: _cleared(found[0]), text) if "://" in text else text


def _cleared(url: str) -> str:
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
