"""Known embeddings behind tiny shards, and ranks as threads."""

import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import webdataset
from PIL import Image
from torch import Tensor

from trainer.config.schema import DataConfig
from trainer.distributed.processes import Processes
from trainer.evaluation.setting import Setting

ALONE = Processes(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
SIZE = 8


def png(index: int) -> bytes:
    """A picture of one colour, which is the image's number."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (index // 256, index % 256, 0)).save(buffer, "png")
    return buffer.getvalue()


def write_shards(pattern: Path, samples: Sequence[dict[str, Any]], shards: int = 1) -> None:
    """Write sample i as image i, with the given fields, into as many tar files; the pattern holds %d for the shard's number."""
    pattern.parent.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with webdataset.TarWriter(str(pattern) % shard) as sink:
            for index in range(shard, len(samples), shards):
                sink.write({"__key__": f"{index:06d}", "png": png(index), **samples[index]})


class Dictionary:
    """A tokenizer that knows whole texts: token n + 1 for the n-th."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.number = {text: index + 1 for index, text in enumerate(dict.fromkeys(texts))}

    def __call__(self, texts: list[str], length: int) -> Tensor:
        tokens = torch.zeros(len(texts), length, dtype=torch.int64)
        tokens[:, 0] = torch.tensor([self.number[text] for text in texts])
        return tokens


@dataclass
class Table:
    """An encoder that looks embeddings up. Like experts on several ranks, it stops when ranks call it out of step."""

    image_rows: Tensor  # [images, D]
    text_rows: Tensor  # [texts, D], in the order of the dictionary
    processes: Processes
    calls: list[tuple[str, int]] = field(default_factory=list)

    def images(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self._in_step("images", images)
        number = images[:, 0, 0, 0].long() * 256 + images[:, 1, 0, 0].long()
        return self.image_rows[number.clamp(max=len(self.image_rows) - 1)]

    def features(self, images: Tensor) -> Tensor:
        """Twice the embeddings, so that neither is taken for the other."""
        return 2 * self.images(images)

    def texts(self, tokens: Tensor) -> Tensor:
        assert tokens.dtype == torch.int64
        self._in_step("texts", tokens)
        return self.text_rows[tokens[:, 0] - 1]

    def _in_step(self, what: str, rows: Tensor) -> None:
        call = (what, len(rows))
        assert set(self.processes.gather_objects(call)) == {call}
        self.calls.append(call)


def setting(
    image_rows: Tensor, text_rows: Tensor, texts: Sequence[str], processes: Processes = ALONE, batch_size: int = 4
) -> Setting:
    return Setting(
        encoder=Table(image_rows, text_rows, processes),
        tokenizer=Dictionary(texts),
        data=DataConfig(workers=0, caption_lines=True),
        image_size=SIZE,
        text_length=3,
        batch_size=batch_size,
        processes=processes,
    )


@dataclass(frozen=True)
class Thread(Processes):
    """A rank that is a thread of this process; `board` and `meeting` are shared by all ranks."""

    board: list[Any]
    meeting: threading.Barrier

    def gather_objects(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.meeting.wait(timeout=30)
        values = list(self.board)
        self.meeting.wait(timeout=30)
        return values

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self.gather_objects(values)).sum(dim=0)

    def gather_rows(self, rows: Tensor) -> Tensor:
        parts = self.gather_objects(rows)
        assert {part.shape for part in parts} == {rows.shape}
        return torch.cat(parts)

    def from_first(self, value: Any) -> Any:
        return self.gather_objects(value)[0]

    def barrier(self) -> None:
        self.gather_objects(None)


def on_threads(work: Callable[[Processes], Any], world: int) -> list[Any]:
    """What `work` gives (or raises) on each of `world` ranks."""
    board, meeting = [None] * world, threading.Barrier(world)

    def run(rank: int) -> Any:
        try:
            return work(Thread(rank, world, rank, torch.device("cpu"), board, meeting))
        except Exception as error:
            if isinstance(error, AssertionError):
                meeting.abort()
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))
