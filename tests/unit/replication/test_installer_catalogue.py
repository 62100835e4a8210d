"""The catalogue of installers: what it refuses, and which installer a server gets."""

from __future__ import annotations

import json

import pytest

from replication.errors import InvalidInput, NotFound, PeerProtocolError, Unsupported
from replication.installer_catalogue import MAX_INSTALLERS, Installer, InstallerCatalogue, parse_glibc, version_order


def installer(version: str = "1.0.0", architecture: str = "x86_64", oldest_glibc: str = "2.36") -> Installer:
    return Installer(
        file=f"blockferry-agent-{version}-{architecture}.run",
        version=version,
        architecture=architecture,
        oldest_glibc=oldest_glibc,
        size_bytes=1,
        sha256="0" * 64,
    )


def catalogue(*installers: Installer) -> InstallerCatalogue:
    return InstallerCatalogue(installers=installers)


def test_the_catalogue_is_what_it_was_after_a_round_trip() -> None:
    listed = catalogue(installer(), installer("1.1.0"), installer(architecture="aarch64"))
    assert InstallerCatalogue.decode(listed.encode()) == listed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("file", "../../etc/shadow"),
        ("file", ".hidden"),
        ("file", "a/b"),
        ("file", "x\n"),
        ("file", ""),
        ("file", "x" * 129),
        ("version", "1"),
        ("version", "1.0.0; rm -rf /"),
        ("version", "1.0.0\n"),
        ("architecture", "x86-64 "),
        ("oldest_glibc", "2"),
        ("oldest_glibc", "glibc 2.36"),
        ("size_bytes", 0),
        ("size_bytes", 2**40),
        ("size_bytes", "1"),
        ("sha256", "0" * 63),
        ("sha256", "G" * 64),
        ("unknown", "x"),
    ],
)
def test_an_entry_that_is_no_plain_one_is_refused(field: str, value: object) -> None:
    entry = {**installer().model_dump(), field: value}
    with pytest.raises(PeerProtocolError, match=f"installers.0.{field}"):
        InstallerCatalogue.decode(json.dumps({"installers": [entry]}).encode())


def test_nothing_is_listed_twice() -> None:
    one = installer()
    for other in (
        one.model_copy(update={"version": "2.0.0"}),  # the same file
        one.model_copy(update={"file": "other.run", "version": "1.0"}),  # the same version, spelled otherwise
    ):
        document = {"installers": [one.model_dump(), other.model_dump()]}
        with pytest.raises(PeerProtocolError, match="listed twice"):
            InstallerCatalogue.decode(json.dumps(document).encode())


def test_a_catalogue_has_an_end() -> None:
    entries = [installer(f"1.{number}").model_dump() for number in range(MAX_INSTALLERS + 1)]
    InstallerCatalogue.decode(json.dumps({"installers": entries[:-1]}).encode())
    with pytest.raises(PeerProtocolError, match="installers"):
        InstallerCatalogue.decode(json.dumps({"installers": entries}).encode())


def test_versions_are_ordered_as_releases_are() -> None:
    ordered = ["0.9", "1.0.0a2", "1.0.0b1", "1.0.0rc1", "1.0.0rc10", "1.0.0", "1.0.1", "1.9.0", "1.10.0"]
    assert sorted(sorted(ordered), key=version_order) == ordered
    assert version_order("1.0") == version_order("1.0.0")
    for nonsense in ("", "1..0", "one", "1.0-2"):
        with pytest.raises(InvalidInput, match="cannot order the version"):
            version_order(nonsense)


def test_glibc_is_read_as_getconf_says_it() -> None:
    assert parse_glibc("glibc 2.36\n") == (2, 36)
    assert parse_glibc("2.4") < parse_glibc("2.36")
    for other in ("", "musl libc (x86_64)", "undefined", "2"):
        with pytest.raises(Unsupported, match="is no version of glibc"):
            parse_glibc(other)


def test_a_server_gets_the_newest_installer_that_runs_on_it() -> None:
    listed = catalogue(
        installer("1.9.0", oldest_glibc="2.28"),
        installer("1.10.0", oldest_glibc="2.36"),
        installer("2.0.0", "aarch64", oldest_glibc="2.17"),
    )
    assert listed.choose("x86_64", "glibc 2.36").version == "1.10.0"
    assert listed.choose("x86_64\n", "glibc 2.31").version == "1.9.0"
    assert listed.choose("aarch64", "glibc 2.36").version == "2.0.0"
    assert listed.choose("x86_64", "glibc 2.41", version="1.9").version == "1.9.0"


def test_what_cannot_be_installed_is_told_with_the_reason() -> None:
    listed = catalogue(installer("1.0.0", oldest_glibc="2.36"), installer("1.1.0", oldest_glibc="2.31"))
    with pytest.raises(NotFound, match="the appliance has no installer"):
        catalogue().choose("x86_64", "glibc 2.36")
    with pytest.raises(NotFound, match=r"the appliance has 1\.0\.0, 1\.1\.0"):
        listed.choose("x86_64", "glibc 2.36", version="3.0.0")
    with pytest.raises(Unsupported, match="on 'riscv64': the appliance has it for x86_64"):
        listed.choose("riscv64", "glibc 2.36")
    with pytest.raises(Unsupported, match=r"the server has glibc 2.28, and it needs 2.31 or later"):
        listed.choose("x86_64", "glibc 2.28")
    with pytest.raises(Unsupported, match=r"agent 1.0.0: the server has glibc 2.31, and it needs 2.36"):
        listed.choose("x86_64", "glibc 2.31", version="1.0.0")
