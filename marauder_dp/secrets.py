"""The sampling and noise keys: drawn from the operating system, kept where only their owner can read them.

Whoever knows the noise key can subtract the noise, and whoever knows the sampling key loses the amplification by
sampling for us; so neither is ever logged, reported, checkpointed or compiled into a program.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from accountants.ledger import sync_folder
from marauder_dp.dpsgd import Keys
from marauder_dp.errors import IntegrityError, MarauderError
from marauder_dp.files import write_atomically

_FILE = "run.json"
_WORDS = 2  # 32-bit words of a threefry2x32 key


def fresh_keys() -> Keys:
    """Two independent keys from the operating system's entropy."""
    return _from_words({name: [secrets.randbits(32) for _ in range(_WORDS)] for name in Keys._fields})


def reproducible_keys(seed: int) -> Keys:
    """Keys that anyone who knows `seed` can make again. For tests: they void the guarantee."""
    return Keys(*jax.random.split(jax.random.fold_in(jax.random.key(seed), 0x6D6170), len(Keys._fields)))


def store(folder: Path, keys: Keys, begun_with: Mapping[str, str]) -> None:
    """Writes the keys, and digests of what they were drawn for, to `folder`, readable by its owner alone.

    Args:
      folder: made if need be.
      keys: of the run.
      begun_with: name → digest, of the data and the program. The same keys with anything else would be a second
        release with the same noise.

    Raises:
      MarauderError: it could not be written.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
    except OSError as error:
        raise MarauderError(f"can't make {folder}: {error.strerror}") from error
    words = {name: np.asarray(jax.random.key_data(key)).tolist() for name, key in keys._asdict().items()}
    write_atomically(folder / _FILE, json.dumps({"keys": words, "begun_with": dict(begun_with)}).encode(), mode=0o600)


def load(folder: Path) -> tuple[Keys, dict[str, str]] | None:
    """(keys, begun_with) as stored, or None if nothing was.

    Raises:
      IntegrityError: the file is damaged.
    """
    path = folder / _FILE
    try:
        content = json.loads(path.read_bytes())
        return _from_words(content["keys"]), dict(content["begun_with"])
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
