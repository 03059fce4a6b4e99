"""The progress line."""

from eval.progress import duration, print_progress

RECORD = dict(step=20, loss=1.5, soft_label_loss=1.25, cosine_loss=0.5, mlm_loss=3.0, tokens_per_second=1234.5)


def test_the_line_has_the_losses_the_speed_and_the_time_left(capsys):
    print_progress(RECORD, 3000, 3725.9)
    line = "step   20/3000  loss 1.5000  soft 1.2500  cos 0.5000  mlm 3.0000  1,234 tokens/s  01:02:05 left\n"
    assert capsys.readouterr().out == line


def test_without_a_teacher_its_terms_are_left_out(capsys):
    print_progress({**RECORD, "soft_label_loss": None, "cosine_loss": None}, 20, 0)
    assert capsys.readouterr().out == "step 20/20  loss 1.5000  mlm 3.0000  1,234 tokens/s  00:00:00 left\n"


def test_days():
    assert duration(18 * 86400 + 61) == "18 d 00:01:01"
