"""An exported model with the interface of open_clip's, for code that was written for those.

https://github.com/mlfoundations/open_clip: what `create_model_from_pretrained` and `get_tokenizer` return there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit

from model.pictures import Picture
from model.pretrained import Pretrained, load_pretrained
from model.stream import IMAGE, MODALITIES, TEXT
from model.tokenizer import Tokenizer

Transform = Callable[[Picture], Tensor]


class OpenClipModel(nn.Module):
    """Embeds batches that the transform and the tokenizer of `load` have made. An embedding does not depend on its batch."""

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__()
        self.limoe = pretrained.module
        self._check_holds = pretrained.check_holds
        self.context_length: int = pretrained.module.config.text_length
        self.vocab_size: int = pretrained.module.config.vocabulary

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of what multiplies the cosines, a scalar."""
        return self.limoe.scale().log()

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to the scaled cosines, a scalar; None if the model was not trained with the sigmoid loss."""
        return None if self.limoe.bias is None else self.limoe.bias()

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """`[B, 3, H, W]` to embeddings, float32 `[B, D]`; normalize: to unit vectors.

        Raises UserError if the export holds only text.
        """
        self._check_holds("image")
        pixels = image.to(next(self.limoe.heads.parameters()).dtype)
        return self._projected(IMAGE, self.limoe(images=pixels).features[IMAGE], normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids int64 `[B, L]` to embeddings, float32 `[B, D]`; normalize: to unit vectors.

        Raises UserError if the export holds only images.
        """
        self._check_holds("text")
        return self._projected(TEXT, self.limoe(texts=text).features[TEXT], normalize)

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Of each image for the texts, `[B, T]`, and of each text for the images, `[T, B]`."""
        image_bd, text_td, scale, *bias = self(image, text)
        logits_bt = sum(bias, scale * image_bd @ text_td.T)
        return logits_bt, logits_bt.T

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Unit vectors of both, None for what is not given, and the scale of the logits; then their bias if they have one."""
        images = None if image is None else self.encode_image(image, normalize=True)
        texts = None if text is None else self.encode_text(text, normalize=True)
        found = images, texts, self.logit_scale.exp()
        return found if self.logit_bias is None else (*found, self.logit_bias)

    def _projected(self, modality: int, features_bd: Tensor, normalize: bool) -> Tensor:
        projected_bd = self.limoe.heads[MODALITIES[modality]](features_bd).float()
        return unit(projected_bd, dim=-1) if normalize else projected_bd


class OpenClipTokenizer:
    """The export's tokenizer."""

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        self._tokenizer = tokenizer
        self.context_length = context_length

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Token ids int64 `[n, context_length]`, 0 is padding; a single text is a list of one."""
        return self._tokenizer([texts] if isinstance(texts, str) else texts, context_length or self.context_length)


def load(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[OpenClipModel, Transform, OpenClipTokenizer]:
    """An export as model, transform and tokenizer; the arguments and errors are those of `model.load`.

    The transform takes whatever `model.load(…).embed_images` does and gives `[3, H, W]` on the CPU.
    """
    pretrained = load_pretrained(folder, device, dtype)
    model = OpenClipModel(pretrained).eval()
    return model, pretrained.preprocess, OpenClipTokenizer(pretrained.tokenizer, model.context_length)
