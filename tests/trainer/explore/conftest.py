"""A small model with a gallery, shared by the tests of the explorer, none of which changes it."""

import pytest

from model.tokenizer import Tokenizer
from tests.trainer.data.shards_on_disk import small_tokenizer
from tests.trainer.explore.made import made_gallery, made_trained
from trainer.checkpoint.trained import Trained
from trainer.explore.answers import Explorer
from trainer.explore.gallery import Gallery
from trainer.explore.index import make_index


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def trained(tokenizer: Tokenizer) -> Trained:
    return made_trained(tokenizer)


@pytest.fixture(scope="session")
def gallery() -> Gallery:
    return made_gallery()


@pytest.fixture(scope="session")
def explorer(trained: Trained, gallery: Gallery) -> Explorer:
    return Explorer(trained, gallery, make_index(trained, gallery))
