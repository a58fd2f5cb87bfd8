import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.evaluation.helpers import ALONE, Dictionary, Table, on_threads
from trainer.evaluation.encoder import encode_texts


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 23), st.integers(1, 7), st.integers(1, 4))
def test_every_rank_gets_all_rows_in_order(count, batch_size, world):
    texts = [f"text {index}" for index in range(count)]
    rows = torch.arange(count * 2.0).view(count, 2)
    sizes = []

    def work(processes):
        encoder = Table(torch.empty(0, 2), rows, processes)
        result = encode_texts(encoder, Dictionary(texts), texts, 3, batch_size, processes)
        sizes.extend(size for _, size in encoder.calls)
        return result

    for result in on_threads(work, world):
        assert torch.equal(result, rows)
    assert max(sizes) <= batch_size


def test_repeated_texts_keep_their_places():
    texts = ["b", "a", "b", "b"]
    encoder = Table(torch.empty(0, 1), torch.tensor([[1.0], [2.0]]), ALONE)
    assert encode_texts(encoder, Dictionary(texts), texts, 3, 3, ALONE).tolist() == [[1.0], [2.0], [1.0], [1.0]]


def test_no_texts_is_a_bug():
    with pytest.raises(ValueError, match="no texts"):
        encode_texts(Table(torch.empty(0, 1), torch.empty(0, 1), ALONE), Dictionary([]), [], 3, 3, ALONE)
