"""Documents: what a file must be to be one, and where each value of one comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbsim.base.errors import ConfigError
from cbsim.config.document import MAX_FILE_BYTES, Document, describe_value, read_document
from cbsim.config.yaml_text import parse_yaml


def document(text: str, source: str = "f.yaml") -> Document:
    parsed = parse_yaml(text, source)
    return Document(parsed.value, source, parsed.lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a mapping of settings"),
        (b"# nothing\n", "is empty; expected a mapping of settings"),
        (b"- a\n- b\n", "1: got a list; expected a mapping of settings"),
        (b"\nhello\n", "2: got 'hello' (str); expected a mapping of settings"),
        (b"a: 1\nb: caf\xe9\n", "2: byte 0xe9 at offset 11 is not UTF-8"),
        ("a: 1".encode("utf-16"), "is encoded as UTF-16; expected UTF-8"),
        (b"a: " + b"x" * MAX_FILE_BYTES, "larger than 1,048,576 bytes; expected at most that"),
    ],
)
def test_a_file_that_is_no_document(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "e.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert caught.value.problems in ((f"{path}: {message}",), (f"{path}:{message}",))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"e\.yaml: no such file"):
        read_document(tmp_path / "e.yaml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        read_document(tmp_path)


def test_a_byte_order_mark_is_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_document(path).data == {"a": 1, "b": 2}
    assert read_document(path).place(("b",)).where == f"{path}:2"


def test_a_missing_value_is_placed_at_its_parent() -> None:
    doc = document("a: 1\nb:\n  c: 2\n")
    assert doc.place(("b", "c")) == ("f.yaml:3", "b.c")
    assert doc.place(("b", "gone", "deeper")) == ("f.yaml:2", "b.gone.deeper")
    assert doc.place(("gone",)) == ("f.yaml:1", "gone")
    assert Document({"a": 1}).place(("a",)) == ("config", "a")


def test_values_put_from_elsewhere_keep_their_origin() -> None:
    doc, named = document("model: m\nx: 1\n"), document("\n\nlayers: 2\n", "configs/m.yaml")
    doc.put(("model",), named.data, named)
    doc.put(("model", "heads"), 4, "--set")
    assert doc.data == {"model": {"layers": 2, "heads": 4}, "x": 1}
    assert named.data == {"layers": 2}
    assert doc.place(("model", "layers")).problem("no") == "configs/m.yaml:3: layers: no"
    assert doc.place(("model", "heads")).problem("no") == "--set: model.heads: no"
    assert doc.place(("x",)).problem("no") == "f.yaml:2: x: no"


def test_a_later_value_replaces_the_origins_below_it() -> None:
    doc = document("a: {b: 1}\n")
    doc.put(("a", "b"), 2, "--set")
    doc.put(("a",), {"b": 3}, document("b: 3", "g.yaml"))
    assert doc.place(("a", "b")) == ("g.yaml:1", "b")


def test_a_copy_can_be_changed_alone() -> None:
    doc = document("a: {b: [1]}\n")
    copy = doc.copy()
    copy.put(("a", "b", "0"), 9, "--set")
    assert (doc.data, copy.data) == ({"a": {"b": [1]}}, {"a": {"b": [9]}})
    assert doc.place(("a", "b", 0)).where == "f.yaml:1"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("a", "b"), "--set: a.b: 'a' is 1, not a mapping"),
        (("t", "b", "c"), "--set: t.b.c: 't' is 'text' (str), not a mapping"),
        (("l", "x"), "--set: l.x: 'l' is a list, not a mapping"),
        (("l", "5"), "--set: l.5: 'l' is a list, not a mapping"),
        (("n", "tow", "x"), "--set: n.tow.x: 'n' has no 'tow'; did you mean 'two'?"),
    ],
)
def test_what_stands_in_the_way(keys: tuple[str, ...], message: str) -> None:
    doc = document("a: 1\nt: text\nl: [1, 2]\nn: [{name: one}, {name: two}]\n")
    with pytest.raises(ConfigError) as caught:
        doc.put(keys, 3, "--set")
    assert caught.value.problems == (message,)


def test_describe_value() -> None:
    shown = [describe_value(value) for value in (None, True, 3, 0.5, "abc", "x" * 99, [1], {"a": 1})]
    long = "'" + "x" * 57 + "...' (str)"
    assert shown == ["null", "true", "3", "0.5", "'abc' (str)", long, "a list", "a mapping"]
