"""What is told about the moving average of the weights when it starts."""

import logging

import pytest

from trainer.engine.ema import _tell_start


def test_an_average_that_will_hold_much_of_the_first_weights_is_told(caplog: pytest.LogCaptureFixture):
    _tell_start(0.9999, 0, 1200)
    assert "is too slow for 1200 steps: 89% of the average will be the weights of step 0; 0.99617 would leave 1%" in caplog.text
    caplog.clear()
    _tell_start(0.99, 0, 1200)
    assert caplog.text == ""


def test_an_average_that_starts_late_is_told(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        _tell_start(0.99, 500, 1200)
    assert "the checkpoint has no average, so it starts from the weights of step 500" in caplog.text
