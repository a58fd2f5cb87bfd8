import numpy as np
import pytest
import torch

from trainer.evaluation.probe import fit_probe


def plain_ridge(train, labels, classes, test):
    """The normal equations of ridge regression, solved directly: scores of the test rows."""
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-5

    def inputs(rows):
        return np.hstack([(rows - mean) / std, np.full((len(rows), 1), 100.0)])

    x = inputs(train)
    y = np.where(labels[:, None] == np.arange(classes)[None, :], 1.0, -1.0)
    return inputs(test) @ np.linalg.solve(x.T @ x + 1024.0 * np.eye(x.shape[1]), x.T @ y)


@pytest.mark.parametrize(("samples", "features"), [(60, 12), (12, 11), (12, 12), (8, 40)])
def test_agrees_with_the_normal_equations(samples, features):
    generator = np.random.default_rng(samples)
    labels = np.arange(samples) % 4
    train = generator.normal(3, 5, (samples, features)) + 2 * labels[:, None]
    test = generator.normal(3, 5, (30, features))
    probe = fit_probe(torch.tensor(train), torch.tensor(labels), 4)
    expected = plain_ridge(train, labels, 4, test)
    assert np.abs(probe.scores(torch.tensor(test)).double().numpy() - expected).max() < 1e-6
    assert len(np.unique(expected.argmax(axis=1))) > 1, "the test needs more than one answer"


def test_a_feature_that_never_changes_is_harmless():
    train = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    train[:, 1] = 7
    labels = torch.arange(8) % 2
    scores = fit_probe(train, labels, 2).scores(train)
    np.testing.assert_allclose(scores, plain_ridge(train.double().numpy(), labels.numpy(), 2, train.double().numpy()), atol=1e-6)


def test_features_that_are_not_finite_give_no_numbers():
    train = torch.ones(8, 3)
    train[2, 1] = torch.inf
    assert fit_probe(train, torch.arange(8) % 2, 2).scores(torch.ones(4, 3)).isnan().all()
