"""The error tree: each class with a code of its own, messages that say what, where and how to go on."""

from __future__ import annotations

import inspect

import pytest

from replication import errors
from replication.errors import BlockferryError, Overloaded, Retryable

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BlockferryError)]


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes) == len([kind for kind in TREE if "code" in vars(kind)])


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_class_is_drawn_in_the_tree(kind: type[BlockferryError]) -> None:
    drawing = inspect.getdoc(errors) or ""
    assert kind.__name__ in drawing


def test_text_says_what_where_and_remedy() -> None:
    error = errors.NotFound("cannot find the epoch", disk="sda", epoch=0, offset_bytes=0, hint="start a resync")
    assert str(error) == "cannot find the epoch (disk sda, epoch 0, offset 0); start a resync"
    assert error.located == "cannot find the epoch (disk sda, epoch 0, offset 0)"


def test_text_without_place_and_hint_is_the_message() -> None:
    assert str(errors.Permanent("cannot go on")) == "cannot go on"


def test_what_may_succeed_later_says_when() -> None:
    error = Overloaded("cannot take more", retry_after_s=2.5, disk="sda")
    assert isinstance(error, Retryable)
    assert error.retry_after_s == 2.5
    assert str(error) == "cannot take more (disk sda)"


def test_conflicts_are_never_retryable() -> None:
    assert not issubclass(errors.KeyConflict, Retryable)
    assert not issubclass(errors.ResyncRequired, errors.Permanent)
