"""The token book: prompts share what their segments share, and every request has its own random numbers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from cbsim.lab.kernels.sampling import SamplingParams
from cbsim.lab.live.tokens import TokenBook
from cbsim.workload.request import Request


def make_book(seed: int = 0) -> TokenBook:
    return TokenBook(512, seed, SamplingParams())


def add(book: TokenBook, name: str, prompt: Any = None, num_prompt_tokens: int = 20) -> Request:
    length = num_prompt_tokens if prompt is None else sum(n for _, n in prompt)
    request = Request(name, 0.0, length, 8, prompt=prompt)
    book.add_prompt(request)
    return request


def test_prompts_share_their_leading_segments() -> None:
    book = make_book()
    one = add(book, "one", (("system", 10), ("a", 10)))
    other = add(book, "other", (("system", 10), ("b", 10)))
    shorter = add(book, "shorter", (("system", 6), ("a", 10)))
    tokens = [book.slice(r, 0, 16).tolist() for r in (one, other, shorter)]
    assert tokens[0][:10] == tokens[1][:10]
    assert tokens[0][10:] != tokens[1][10:]
    assert tokens[0][:6] == tokens[2][:6]
    assert tokens[0][10:16] == tokens[2][6:12]


def test_requests_without_segments_share_nothing_and_come_again_with_the_seed() -> None:
    book = make_book()
    one, other = add(book, "one"), add(book, "other")
    assert book.slice(one, 0, 20).tolist() != book.slice(other, 0, 20).tolist()
    again = make_book()
    assert again.slice(add(again, "one"), 0, 20).tolist() == book.slice(one, 0, 20).tolist()
    seeded = make_book(seed=1)
    assert seeded.slice(add(seeded, "one"), 0, 20).tolist() != book.slice(one, 0, 20).tolist()


def test_an_answer_becomes_part_of_the_next_prompt() -> None:
    book = make_book()
    first = add(book, "first", (("system", 4),))
    for token in (7, 8, 9):
        book.append(first, token)
    turn = add(book, "turn", (("system", 4), ("o:first", 3), ("more", 2)))
    assert book.slice(turn, 0, 7).tolist() == [*book.slice(first, 0, 4), 7, 8, 9]


def test_tokens_that_nobody_knows_yet() -> None:
    book = make_book()
    request = add(book, "one")
    with pytest.raises(RuntimeError, match="one: token 20 is not known yet"):
        book.slice(request, 19, 2)
    book.append(request, 3)
    assert book.slice(request, 20, 1).tolist() == [3]
    assert book.answer("one") == [3]


def test_random_numbers_are_a_requests_own() -> None:
    book, other = make_book(), make_book()
    add(other, "before")
    one, same = add(book, "one"), add(other, "one")
    assert book.uniform(one) == other.uniform(same)
    drawn = []
    for token in range(8):
        drawn.append(book.uniform(one))
        book.append(one, token)
    assert len(set(drawn)) == 8
    assert all(0 <= number < 1 for number in drawn)
