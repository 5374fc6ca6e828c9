from cbsim.show.text import merged_notes

PADDED = "{}% of the tokens computed were padding of static batches"
OUTSIDE = "profile h200/llama-3-8b: 8 of {} steps lay outside the calibrated range (up to 16,384 tokens)"


def test_notes_that_differ_in_numbers_are_told_once_with_ranges():
    runs = [
        ("static", [PADDED.format(78), OUTSIDE.format("5,167")]),
        ("static", [PADDED.format(4), OUTSIDE.format("16,159")]),
        ("vllm", [OUTSIDE.format("6,000")]),
    ]
    assert merged_notes(runs) == [
        "static: 4 to 78% of the tokens computed were padding of static batches",
        OUTSIDE.format("5,167 to 16,159"),
    ]


def test_what_all_runs_note_names_none_and_many_are_counted():
    runs = [
        (name, ["same", *(["few"] if name == "a" else []), *(["most"] if name != "a" else [])])
        for name in "abcde"
    ]
    assert merged_notes(runs) == ["same", "a: few", "4 of 5: most"]
    assert merged_notes([("a", []), ("b", [])]) == []


def test_names_with_digits_are_no_numbers():
    notes = ["costs of h200/llama-3-8b", "costs of h100/llama-3-70b"]
    assert merged_notes([("a", notes[:1]), ("a", notes[1:])]) == notes
