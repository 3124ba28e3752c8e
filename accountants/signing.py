"""Ed25519 signatures of the head of a ledger or budget: who stands for it, which a hash alone doesn't say.

Needs the `cryptography` package (`pip install 'marauder-dp[sign]'`). A signature is a small JSON file beside what is signed,
with the head, the number of lines and the key it was made with. It is verified against a key that the verifier has from
elsewhere.
"""

import base64
import binascii
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accountants.errors import LedgerError, SignatureError

SCHEMA = 1
_CONTEXT = b"marauder-dp head v1\n"  # so that no signature of ours means anything elsewhere


def make_key(path: str | os.PathLike[str]) -> str:
    """Makes a private key in a new file that its owner alone may read (PEM), and its public one in PATH.pub.

    Returns:
      The public key, 64 hexadecimal digits.

    Raises:
      SignatureError: a file is there already or can't be written, or `cryptography` is missing.
    """
    ed25519, serialization = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    public = _public_hex(key.public_key())
    path = Path(path)
    try:
        for target, content, mode in ((path, pem, 0o600), (Path(f"{path}.pub"), f"{public}\n".encode(), 0o644)):
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(content)
    except OSError as error:
        raise SignatureError(f"can't write the key {error.filename}: {error.strerror}") from error
    return public


def check_private_key(path: str | os.PathLike[str]) -> None:
    """For those who will sign in hours from now.

    Raises:
      SignatureError: as `sign` would.
    """
    _private_key(path)


def sign(file: str | os.PathLike[str], key: str | os.PathLike[str], hashes: Sequence[str]) -> Path:
    """Signs the head of `file` and returns the path of the signature, FILE.sig.

    Args:
      file: ledger or budget.
      key: path of a private key (PEM).
      hashes: of its lines, verified.

    Raises:
      SignatureError: the key can't be read, `cryptography` is missing, or the signature can't be written.
    """
    private = _private_key(key)
    content = {
        "schema": SCHEMA,
        "head": hashes[-1],
        "lines": len(hashes),
        "key": _public_hex(private.public_key()),
        "signature": base64.b64encode(private.sign(_message(hashes[-1], len(hashes)))).decode(),
    }
    target = Path(f"{os.fspath(file)}.sig")
    try:
        target.write_text(json.dumps(content) + "\n")
    except OSError as error:
        raise SignatureError(f"can't write {target}: {error.strerror}") from error
    return target


def check(file: str | os.PathLike[str], key: str, hashes: Sequence[str]) -> None:
    """Checks FILE.sig: made by `key`, for exactly these lines.

    Args:
      file: ledger or budget.
      key: public key, 64 hexadecimal digits, or the path of a file with them.
      hashes: of its lines, verified.

    Raises:
      SignatureError: no key or signature can be read.
      LedgerError: it is not this key's signature of this head.
    """
    ed25519, _ = _cryptography()
    from cryptography.exceptions import InvalidSignature

    public = _public_key(key)
    target = Path(f"{os.fspath(file)}.sig")
    try:
        content = json.loads(target.read_bytes())
        head, lines, signature = content["head"], content["lines"], base64.b64decode(content["signature"], validate=True)
        message = _message(head, lines)
    except OSError as error:
        raise SignatureError(f"can't read the signature {target}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise LedgerError(f"{target} is not a signature of ours", line=1) from None
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        raise LedgerError(f"{target} was not made by the key {public.hex()}", line=1) from None
    if (head, lines) != (hashes[-1], len(hashes)):
        known = lines <= len(hashes) and hashes[lines - 1] == head
        what = f"lines {lines + 1} to {len(hashes)} came after it" if known else "the file holds other lines or fewer"
        raise LedgerError(f"{target} signs the {lines} lines up to {head}: {what}", line=min(lines, len(hashes)))


def _private_key(path: str | os.PathLike[str]) -> Any:
    ed25519, serialization = _cryptography()
    try:
        private = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
    except OSError as error:
        raise SignatureError(f"can't read the key {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise SignatureError(f"{path} holds no private key without a password: {error!s:.100}") from None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise SignatureError(f"{path} is not an Ed25519 key")
    return private


def _message(head: Any, lines: Any) -> bytes:
    if not isinstance(head, str) or not isinstance(lines, int) or lines < 1:
        raise ValueError
    return _CONTEXT + f"{lines} {head}".encode()


def _public_key(key: str) -> bytes:
    text = key
    try:
        if os.path.isfile(key):
            text = Path(key).read_text()
        raw = bytes.fromhex(text.strip())
    except (OSError, ValueError):
        raw = b""
    if len(raw) != 32:
        raise SignatureError(f"a public key is 64 hexadecimal digits, or a file with them; got {key!r:.80}")
    return raw


def _public_hex(public: Any) -> str:
    return str(public.public_bytes_raw().hex())


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise SignatureError("signatures need the cryptography package: pip install cryptography") from None
    return ed25519, serialization
