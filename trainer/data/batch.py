"""What a loader yields."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Batch:
    """Pairs of one rank.

    images: uint8 [B, 3, H, W]; texts: int64 [B, T], 0 is padding; ids: `shard/key` of each pair.
    read, bad: samples read to make this batch, and the unusable ones among them by shard.
    shards, bad_shards: shards opened for it, and by name how often one ended early.
    left_out: samples that were read and are smaller than their source asks for; sources: the name of each pair's source.
    caption_tokens: tokens of each pair's whole caption, including its end; beyond T they were cut.
    lengths, short: what was learned about the shards' lengths, as in DataProgress.
    """

    images: Tensor
    texts: Tensor
    ids: list[str]
    read: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    shards: int = 0
    bad_shards: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    short: dict[str, int] = field(default_factory=dict)
    caption_tokens: list[int] = field(default_factory=list)
    left_out: int = 0
    sources: list[str] = field(default_factory=list)


@dataclass
class EvaluationBatch:
    """Images of one rank, with their labels and captions. Rows where `valid` is False fill up the batch and are ignored.

    images: uint8 [B, 3, H, W]; valid: bool [B]; labels: int64 [B], the class index of `.cls`, or -1;
    captions: all captions of each image (empty for a filling row); ids: `shard/key`, "" for a filling row;
    classes: the class indices of `.npy`, where each image may have any number of them; None without one.
    """

    images: Tensor
    valid: Tensor
    labels: Tensor
    captions: list[list[str]]
    ids: list[str]
    classes: list[list[int] | None]
