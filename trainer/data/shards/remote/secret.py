"""Shards whose addresses hold a secret, a password or the signature of a signed URL: opened as given, and called without it."""

from model.secrets import without_secrets


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
