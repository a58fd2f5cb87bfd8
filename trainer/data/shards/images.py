"""The image of a sample, whatever lies in it."""

from PIL import Image

from model import preprocess
from trainer.data.shards.samples import Sample, Unusable
from trainer.errors import UserError

EXTENSIONS = ("jpg", "jpeg", "png", "webp")


def image_bytes(sample: Sample) -> bytes:
    """The encoded image of a sample. Raises Unusable when it has none."""
    for extension in EXTENSIONS:
        if sample.files.get(extension):
            return sample.files[extension]
    raise Unusable("no image")


def decode_image(content: bytes, least_side: int = 0) -> Image.Image:
    """model.preprocess.decode_image of a sample's file. Raises Unusable for anything that cannot be decoded whole."""
    try:
        return preprocess.decode_image(content, least_side)
    except UserError as problem:
        raise Unusable(str(problem)) from None
