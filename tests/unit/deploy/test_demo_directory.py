"""A demo deletes nobody's files but a demo's, and two demos do not take each other's directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.demo.demo_directory import MADE_BY_A_DEMO, DirectoryRefusedError, claim, empty
from deploy.demo.site import DAEMONS


def test_a_directory_with_files_of_others_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(DirectoryRefusedError, match="holds precious, which no demo has made"):
        claim(tmp_path)
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_second_demo_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there" / "yet"
    first = claim(directory)
    with pytest.raises(DirectoryRefusedError, match="another demo runs in"):
        claim(directory)
    os.close(first)
    os.close(claim(directory))


def test_what_a_demo_made_is_removed_and_the_claim_still_holds(tmp_path: Path) -> None:
    assert set(DAEMONS) <= MADE_BY_A_DEMO
    for name in MADE_BY_A_DEMO:
        (tmp_path / name).write_text("") if "." in name else (tmp_path / name / "deep").mkdir(parents=True)
    first = claim(tmp_path)
    empty(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DirectoryRefusedError):
        claim(tmp_path)
    os.close(first)


def test_a_file_in_place_of_the_directory_is_an_error_of_the_operating_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        claim(tmp_path / "file")
