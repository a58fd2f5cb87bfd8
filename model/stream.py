"""TokenStream: the tokens of both modalities in one flat tensor.

Shape letters used throughout the model: N tokens, D width, B images or texts, L tokens of one, E experts, C slots of one
expert, K choices of one token, M modalities.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

MODALITIES = ("image", "text")
IMAGE, TEXT = range(2)


@dataclass(frozen=True)
class Segment:
    """A run of `count` consecutive sequences of `length` tokens in the stream, all of one modality."""

    modality: int
    count: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens of the whole segment, including padding."""
        return self.count * self.length


@dataclass(frozen=True)
class TokenStream:
    """Tokens of all sequences, one after another.

    x_nd: [N, D]; modality_n: int64 [N]; valid_n: bool [N], False for pads; segments: how N divides into sequences.
    """

    x_nd: Tensor
    modality_n: Tensor
    valid_n: Tensor
    segments: tuple[Segment, ...]

    def with_x(self, x_nd: Tensor) -> "TokenStream":
        """The same stream with other token values `[N, D]`."""
        return replace(self, x_nd=x_nd)

    def sequences(self, values: Tensor) -> list[tuple[Segment, Tensor]]:
        """Cut `[N, ...]` values into `[count, length, ...]`, a piece for each segment."""
        pieces = values.split([segment.tokens for segment in self.segments])
        return [(s, piece.unflatten(0, (s.count, s.length))) for s, piece in zip(self.segments, pieces, strict=True)]


def join(sequences: list[tuple[int, Tensor, Tensor]]) -> TokenStream:
    """One stream of several `(modality, x [B, L, D], valid [B, L])`."""
    segments = tuple(Segment(modality, x.shape[0], x.shape[1]) for modality, x, _ in sequences)
    return TokenStream(
        x_nd=torch.cat([x.flatten(0, 1) for _, x, _ in sequences]),
        modality_n=torch.cat([torch.full((s.tokens,), s.modality, device=sequences[0][1].device) for s in segments]),
        valid_n=torch.cat([valid.flatten() for _, _, valid in sequences]),
        segments=segments,
    )
