"""Captions that are too long for the model: counted, with one warning if there are many."""

import logging

JUDGED_AFTER = 100  # captions before their share means something
MANY = 0.1  # the share of truncated captions that is worth a warning
KEPT_WHOLE = 0.95  # the share that the proposed model.text_length would leave whole

logger = logging.getLogger(__name__)


class TruncatedCaptions:
    """Counts them; after a resume, `count` continues from the old value."""

    def __init__(self, text_length: int, count: int, warns: bool) -> None:
        """`warns`: whether this process is the one that warns."""
        self.count = count
        self._text_length = text_length
        self._judged: list[int] | None = [] if warns else None  # tokens of the first captions, until they are enough

    def add(self, caption_tokens: list[int]) -> None:
        """Count the captions with more tokens than the model reads; the first ones decide whether to warn."""
        self.count += sum(tokens > self._text_length for tokens in caption_tokens)
        if self._judged is None:
            return
        self._judged += caption_tokens
        if len(self._judged) >= JUDGED_AFTER:
            self._judge(sorted(self._judged))
            self._judged = None

    def _judge(self, tokens: list[int]) -> None:
        share = sum(count > self._text_length for count in tokens) / len(tokens)
        if share > MANY:
            logger.warning(
                "%.0f%% of the captions are longer than model.text_length=%d and lose their ends (data/truncated_captions): "
                "model.text_length=%d, in a new run, would keep %.0f%% of them complete",
                100 * share,
                self._text_length,
                tokens[int(KEPT_WHOLE * (len(tokens) - 1))],
                100 * KEPT_WHOLE,
            )
