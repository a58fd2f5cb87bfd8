from collections import Counter

import pytest

from trainer.evaluation import shots
from trainer.evaluation.shots import SEEDS, SHOTS, SPARES, Draw

SHARDS = [f"/data/set/train-{number}.tar" for number in range(3)]
SAMPLES = [(f"{SHARDS[index % 3]}/{index:06d}", index % 7) for index in range(7 * 120)]


def of_class(label):
    return [sample for sample, other in SAMPLES if other == label]


def test_any_division_of_the_samples_gives_the_same_candidates(monkeypatch):
    monkeypatch.setattr(shots, "AT_ONCE", 95)  # some are forgotten on the way
    draw = Draw(SHARDS)
    whole = draw.candidates(SAMPLES)
    for parts in (2, 5):
        of_each = [draw.candidates(SAMPLES[part::parts][::-1]) for part in range(parts)]
        joined = [(sample, label) for found in of_each for label, samples in found.items() for sample in samples]
        assert draw.candidates(joined) == whole
    for label, candidates in whole.items():
        assert len(candidates) <= SEEDS * (max(SHOTS) + SPARES) < len(of_class(label))
        for seed in range(SEEDS):
            for count in (*SHOTS, max(SHOTS) + SPARES):
                assert draw.choose(candidates, count, seed) == draw.choose(of_class(label), count, seed)


def test_fewer_shots_are_the_first_of_more_and_seeds_differ():
    draw = Draw(SHARDS)
    by_seed = [draw.choose(of_class(0), 25, seed) for seed in range(SEEDS)]
    for chosen, seed in zip(by_seed, range(SEEDS), strict=True):
        assert draw.choose(of_class(0), 5, seed) == chosen[:5]
        assert len(set(chosen)) == 25
    assert len({tuple(sorted(chosen)) for chosen in by_seed}) == SEEDS


@pytest.mark.parametrize("place", ["/moved/there", "relative", "http://host/set", "pipe:cat /x"])
def test_the_same_samples_are_drawn_wherever_the_shards_are(place):
    def moved(name):
        return name.replace("/data/set", place)

    elsewhere = Draw([moved(shard) for shard in SHARDS])
    for seed in range(SEEDS):
        here = Draw(SHARDS).choose(of_class(3), 10, seed)
        assert elsewhere.choose(map(moved, of_class(3)), 10, seed) == [moved(sample) for sample in here]


def test_every_sample_is_equally_likely():
    samples = of_class(1)
    drawn = Counter(sample for seed in range(600) for sample in Draw(SHARDS).choose(samples, 12, seed))
    assert len(drawn) == len(samples)
    assert max(drawn.values()) < 2 * 600 * 12 / len(samples)
