import io

import pytest

from cbsim.show.text import Table, format_figure, format_share

TABLE = Table(
    ("", "static", "chunked_prefill"),
    (("TTFT p50 (s)", "12.4", "0.213*"), ("finished", "20", "20")),
    notes=("word " * 30,),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0.0, "0"),
        (0, "0"),
        (12, "12"),
        (1234567, "1,234,567"),
        (0.0512345, "0.0512"),
        (1.0, "1.00"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (-2.345, "-2.35"),
        (0.0009996, "0.00100"),
    ],
)
def test_figures_have_three_digits_and_no_exponent(value, text):
    assert format_figure(value) == text


def test_shares_are_percentages():
    assert [format_share(value) for value in (None, 0.0, 0.9744, 1.0)] == ["-", "0.0%", "97.4%", "100.0%"]


def test_plain_text_is_aligned_and_marks_the_best():
    lines = TABLE.to_text().splitlines()
    assert lines[0] == "              static  chunked_prefill"
    assert lines[1] == "------------  ------  ----------------"
    assert lines[2] == "TTFT p50 (s)    12.4            0.213*"
    assert lines[3] == "finished          20               20"
    assert lines[4] == "* best of the runs compared"
    assert lines[5].startswith("- word")
    assert max(map(len, lines)) <= 100


def test_no_colour_codes_reach_a_file():
    stream = io.StringIO()
    TABLE.print(stream)
    assert stream.getvalue() == TABLE.to_text() + "\n"


def test_a_terminal_gets_the_same_figures():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    TABLE.print(stream)
    shown = stream.getvalue()
    for row in (TABLE.header, *TABLE.rows):
        assert all(cell.rstrip("*") in shown for cell in row)
    assert "*" not in shown


def test_transposed_twice_is_the_same():
    assert TABLE.transposed().transposed() == TABLE
    assert TABLE.transposed().header == ("", "TTFT p50 (s)", "finished")
