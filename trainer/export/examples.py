"""The images and texts on which the use of experts is counted."""

import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.paths import user_path
from model.preprocess import normalise
from model.stream import IMAGE, MODALITIES
from model.text import clean_text
from model.tokenizer import Tokenizer
from trainer.config.schema import Config
from trainer.data.evaluation import evaluation_batches
from trainer.data.limits import LeftOut
from trainer.data.shards.captions import CaptionRule, NoCaption, read_captions
from trainer.data.shards.opening import Remote
from trainer.data.shards.patterns import list_shards
from trainer.data.shards.samples import read_samples
from trainer.data.text_files import decode_text, split_lines
from trainer.distributed.processes import ALONE
from trainer.errors import UserError, reason
from trainer.evaluation.suite import retrieval_key, retrieval_shards
from trainer.export.request import VAL, ExpertChoice
from trainer.training.inputs import locate_data


@dataclass(frozen=True)
class Examples:
    """A set as the model takes it. config: the run's; dtype: of the pixels."""

    wanted: ExpertChoice
    config: Config
    tokenizer: Tokenizer
    dtype: torch.dtype

    def batches(self, modality: str | None) -> Iterator[dict[str, Tensor]]:
        """Arguments of the model: batches of images or texts of one modality, or of both, one after the other.

        Raises UserError for a set that cannot be read, or that has none of them.
        """
        for name in MODALITIES:
            if modality in (None, name):
                batches = self._images() if name == MODALITIES[IMAGE] else self._texts()
                empty = True
                for batch in batches:
                    empty = False
                    yield batch
                if empty:
                    raise UserError(f"{self.wanted.typed}: the set contains no {name}; name another set")

    @property
    def _batch_size(self) -> int:
        return self.config.eval.batch_size

    def _images(self) -> Iterator[dict[str, Tensor]]:
        if self._is_text_file:
            raise UserError(f"{self.wanted.typed}: a text file has no images; name shards, or add modality=text")
        shards, left_out = self._shards(), LeftOut()
        data = self.config.data
        batches = evaluation_batches(
            data,
            shards=shards,
            image_size=self.config.model.image_size,
            batch_size=self._batch_size,
            rank=0,
            world=1,
            left_out=left_out,
        )
        for batch in batches:
            if batch.valid.any():
                yield {"images": normalise(batch.images[batch.valid], data.mean, data.std, self.dtype)}
        left_out.check(len(shards), data)

    def _texts(self) -> Iterator[dict[str, Tensor]]:
        texts = self._lines() if self._is_text_file else self._captions()
        while batch := list(itertools.islice(texts, self._batch_size)):
            yield {"texts": self.tokenizer(batch, self.config.model.text_length)}

    @property
    def _is_text_file(self) -> bool:
        return self.wanted.examples.lower().endswith(".txt")

    def _lines(self) -> Iterator[str]:
        path = user_path(self.wanted.examples, "experts")
        try:
            lines = split_lines(decode_text(path.read_bytes()))
        except OSError as problem:
            raise UserError(f"{self.wanted.typed}: {path} cannot be read ({reason(problem)})") from problem
        except UserError as problem:
            raise UserError(f"{self.wanted.typed}: {path} {problem}") from None
        yield from filter(None, map(clean_text, lines))

    def _captions(self) -> Iterator[str]:
        shards, left_out = self._shards(), LeftOut()
        rule, remote = CaptionRule.of(self.config.data), Remote.of(self.config.data)
        for shard in shards:
            with closing(read_samples(shard, remote)) as samples:
                for sample in samples:
                    if sample.broken:
                        left_out.bad_shards.setdefault(sample.shard, sample.broken)
                        continue
                    left_out.read += 1
                    try:
                        yield from read_captions(sample, rule)
                    except NoCaption as problem:
                        left_out.note_bad(sample.shard, sample.id, problem)
        left_out.check(len(shards), self.config.data)

    def _shards(self) -> list[str]:
        pattern: Any = self.wanted.examples
        if pattern != VAL:
            return list_shards(pattern, "experts")
        pattern = retrieval_shards(locate_data(self.config, ALONE))
        if pattern is None:
            raise UserError(f"{self.wanted.typed}: the run has no retrieval set (data.val); name shards or a .txt file")
        return list_shards(pattern, retrieval_key(self.config))
