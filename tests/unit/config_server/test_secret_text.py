"""Passphrases are hashed at their full cost outside of the tests' own servers (``config_site`` makes it cheap)."""

from __future__ import annotations

import hashlib
import subprocess
import sys

TEXT, SALT = "abcd 2345-WXYZ", b"sixteen bytes of"


def test_digest_of_a_daemon_is_scrypt_at_its_full_cost() -> None:
    program = f"from config_server.secret_text import passphrase_digest as f; print(f({TEXT!r}, {SALT!r}).hex())"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    expected = hashlib.scrypt(b"ABCD2345-WXYZ", salt=SALT, n=16384, r=8, p=1, maxmem=2**26, dklen=32)
    assert said.stdout.strip() == expected.hex()
