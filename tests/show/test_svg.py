"""Pictures of a run."""

from tformer.show.svg import loss_svg


def test_last_words_are_drawn_in_a_picture_of_their_own():
    metrics = [{"step": i, "loss": 3.0, "lr": 0.1, "val_loss": 3.0} for i in (1, 2, 3)]
    plain = loss_svg(metrics, "run")
    drawn = loss_svg([m | {"next_word_loss": 20.0 - m["step"]} for m in metrics], "run")
    assert "axes_3" not in plain and "axes_3" in drawn, "beside the losses and the learning rate"
    assert "nats per word" in drawn and "nats per word" not in plain
