"""What the UI shows of a training."""

from tasks.curve import history_table, sparkline


def test_a_sparkline_falls_with_its_values():
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"


def test_a_long_curve_is_sixty_means_wide():
    line = sparkline([float(step) for step in range(1000)])
    assert len(line) == 60
    assert (line[0], line[-1]) == ("▁", "█")


def test_a_flat_or_empty_curve_is_drawn_too():
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""


def test_a_table_has_first_and_last_step_and_only_what_was_logged():
    table = history_table([{"step": step, "loss": 1 / step, "grad_norm": 0.5} for step in range(1, 101)])
    lines = table.splitlines()
    assert lines[0] == "| step | loss | grad_norm |"
    assert len(lines) == 2 + 12
    assert lines[2] == "| 1 | 1 | 0.5 |"
    assert lines[-1] == "| 100 | 0.01 | 0.5 |"
