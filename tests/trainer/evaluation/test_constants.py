from trainer.evaluation.suite import is_constant


def test_what_training_cannot_change_is_no_curve() -> None:
    constants = ["eval/zeroshot/top1_chance", "eval/zeroshot/images", "eval/retrieval/captions", "eval/retrieval/i2t_r1_chance"]
    curves = ["eval/zeroshot/top1", "eval/retrieval/t2i_r5", "routing/success/image", "train/loss", "eval/zeroshot_unseen/colour"]
    assert all(is_constant(metric) for metric in constants)
    assert not any(is_constant(metric) for metric in curves)
