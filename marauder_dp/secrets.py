"""The sampling and noise keys: drawn from the operating system, kept where only their owner can read them.

Whoever knows the noise key can subtract the noise, and whoever knows the sampling key loses the amplification by
sampling for us; so neither is ever logged, reported, checkpointed or compiled into a program.
"""

import json
import os
import secrets
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from marauder_dp.dpsgd import Keys
from marauder_dp.errors import IntegrityError

_FILE = "run.json"
_WORDS = 2  # 32-bit words of a threefry2x32 key


def fresh_keys() -> Keys:
    """Two independent keys from the operating system's entropy."""
    return _from_words({name: [secrets.randbits(32) for _ in range(_WORDS)] for name in Keys._fields})


def reproducible_keys(seed: int) -> Keys:
    """Keys that anyone who knows `seed` can make again. For tests: they void the guarantee."""
    return Keys(*jax.random.split(jax.random.fold_in(jax.random.key(seed), 0x6D6170), len(Keys._fields)))


def store(folder: Path, keys: Keys, fingerprint: str) -> None:
    """Writes keys and data fingerprint to `folder`, readable by its owner alone. Never overwrites."""
    folder.mkdir(mode=0o700, exist_ok=True)
    words = {name: np.asarray(jax.random.key_data(key)).tolist() for name, key in keys._asdict().items()}
    content = json.dumps({"keys": words, "fingerprint": fingerprint}).encode()
    partial = folder / f"{_FILE}.partial"
    partial.unlink(missing_ok=True)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.link(partial, folder / _FILE)
    partial.unlink()


def load(folder: Path) -> tuple[Keys, str] | None:
    """(keys, fingerprint) as stored, or None if nothing was.

    Raises:
      IntegrityError: the file is damaged.
    """
    path = folder / _FILE
    try:
        content = json.loads(path.read_bytes())
        return _from_words(content["keys"]), str(content["fingerprint"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged ({type(error).__name__}); this run can't be resumed") from error


def _from_words(words: dict[str, list[int]]) -> Keys:
    keys = {}
    for name in Keys._fields:
        data = np.array(words[name], dtype=np.uint32)
        if data.shape != (_WORDS,):
            raise ValueError(name)
        keys[name] = jax.random.wrap_key_data(jnp.asarray(data), impl="threefry2x32")
    return Keys(**keys)
