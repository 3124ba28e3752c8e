"""Writing a file whole or not at all, so that neither a crash nor a power cut leaves half of it."""

import os
from pathlib import Path

from accountants.ledger import sync_folder
from marauder_dp.errors import MarauderError


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replaces `path` by `content`; on disk when it returns.

    Args:
      path: in an existing folder.
      content: of the new file.
      mode: its permissions, from the moment it exists.

    Raises:
      MarauderError: it could not be written; the old content is still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(fd, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise MarauderError(f"can't write {path}: {error.strerror}") from error
