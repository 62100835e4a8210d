"""Proof that somebody holds the private key of a certificate, bound to what he asks for with it. Made by ``renewal`` for a certificate that
has ended, so that TLS cannot prove it any more; checked by the configuration server.

The signature covers the certificate's serial number and the very signing request: repeated by somebody else, it gets a certificate for a
key that he does not have.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_LABEL: Final = b"blockferry certificate recovery v1\0"


def _statement(serial: int, signing_request_pem: str) -> bytes:
    return _LABEL + format(serial, "x").encode() + b"\0" + hashlib.sha256(signing_request_pem.encode()).digest()


def prove(key: ec.EllipticCurvePrivateKey, serial: int, signing_request_pem: str) -> str:
    """A signature in hexadecimal."""
    return key.sign(_statement(serial, signing_request_pem), ec.ECDSA(hashes.SHA256())).hex()


def is_proved(key: ec.EllipticCurvePublicKey, serial: int, signing_request_pem: str, proof: str) -> bool:
    try:
        key.verify(bytes.fromhex(proof), _statement(serial, signing_request_pem), ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True
