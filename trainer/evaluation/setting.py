"""What every evaluator is given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from trainer.config.schema import Config, DataConfig
from trainer.data.batch import EvaluationBatch
from trainer.data.evaluation import Crop, evaluation_batches, read_labels
from trainer.data.limits import LeftOut
from trainer.distributed.processes import Processes
from trainer.evaluation.encoder import Encoder, Tokenize, encode_texts
from trainer.reporting.example_tables import ExampleTable


@dataclass(frozen=True)
class Setting:
    """The model to evaluate and its inputs, and what is to be seen of it.

    image_size: side in pixels; text_length: tokens; batch_size: this rank's; crop: what makes an image square, None:
    trainer.data.evaluation's own; examples: most images in a table of examples (0: no tables); tables: those of the sets that
    were evaluated, the same on every rank.
    """

    encoder: Encoder
    tokenizer: Tokenize
    data: DataConfig
    image_size: int
    text_length: int
    batch_size: int
    processes: Processes
    crop: Crop | None = None
    examples: int = 0
    tables: list[ExampleTable] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        config: Config,
        encoder: Encoder,
        tokenizer: Tokenize,
        processes: Processes,
        crop: Crop | None = None,
        with_examples: bool = False,
    ) -> "Setting":
        """That of a run's configuration, whose eval.batch_size all ranks share."""
        return cls(
            encoder=encoder,
            tokenizer=tokenizer,
            data=config.data,
            image_size=config.model.image_size,
            text_length=config.model.text_length,
            batch_size=config.eval.batch_size // processes.world,
            processes=processes,
            crop=crop,
            examples=config.log.prediction_rows if with_examples else 0,
        )

    def batches(self, shards: Sequence[str], left_out: LeftOut, only: frozenset[str] | None = None) -> Iterator[EvaluationBatch]:
        """This rank's slice of the shards: as many batches on each rank, all of `batch_size` rows. A collective.

        `only`: the ids of the samples to read; None: all. At the end `left_out` has what all ranks could not use, besides
        what it had. Raises UserError on every rank when that is too much.
        """
        mine = LeftOut()
        yield from evaluation_batches(
            self.data,
            shards=list(shards),
            image_size=self.image_size,
            batch_size=self.batch_size,
            rank=self.processes.rank,
            world=self.processes.world,
            any_rank=self.processes.any,
            left_out=mine,
            only=only,
            crop=self.crop,
        )
        self._settle(mine, left_out, len(shards))

    def labels(self, shards: Sequence[str], left_out: LeftOut) -> Iterator[tuple[str, int]]:
        """The id and class index (-1: none) of each sample of this rank's slice, without its image. Otherwise like `batches`."""
        mine = LeftOut()
        rank, world = self.processes.rank, self.processes.world
        yield from read_labels(self.data, shards=list(shards), rank=rank, world=world, left_out=mine)
        self._settle(mine, left_out, len(shards))

    def _settle(self, mine: LeftOut, left_out: LeftOut, shards: int) -> None:
        """Add what all ranks could not use. A collective."""
        together = LeftOut()
        for of_rank in self.processes.gather_objects(mine):
            together.add(of_rank)
        together.check(shards, self.data)
        left_out.add(together)

    def image_features(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` from anywhere to float32 `[b, width]` on the run's device. A collective."""
        return self.encoder.features(images.to(self.processes.device)).float()

    def embed_images(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` from anywhere to float32 `[b, D]` on the run's device. A collective."""
        return self.encoder.images(images.to(self.processes.device)).float()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """All ranks' common texts to float32 `[len(texts), D]` on every rank's device. A collective."""
        return encode_texts(self.encoder, self.tokenizer, texts, self.text_length, self.batch_size, self.processes)
