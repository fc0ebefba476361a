"""Downloads: over https alone, of bounded size, and compared with what was downloaded first."""

import hashlib
import os
import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any

OWN = ("127.0.0.1", "::1", "localhost")  # this machine
LARGEST = 2**31  # bytes of one file; the largest that is known has 300 million


def fetch(dl_manager: Any, urls: Mapping[str, str] | str, source: str) -> dict[str, pathlib.Path]:
    """Returns name -> path of what TFDS's download manager has or gets; a single address has the name "".

    TFDS compares files with the official checksums where a dataset has them in checksums.tsv; `verify` does so for all.
    Raises ConnectionError without a network, and ValueError for an address without https, a file that is too large and
    one that is not as it was.
    """
    import requests  # TFDS brings it
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    addresses = {"": urls} if isinstance(urls, str) else dict(urls)
    for url in addresses.values():
        _check_address(url)
    try:
        # Without a network TFDS would try each address ten times, for minutes: ask once beforehand.
        answer = requests.head(next(iter(addresses.values())), timeout=20, allow_redirects=True)
        _check_address(answer.url)
        _check_size(answer.url, int(answer.headers.get("Content-Length") or 0))
        fetched = dl_manager.download(addresses)
    except NonMatchingChecksumError as error:
        raise ValueError(
            f"what was downloaded is not what {source} had ({error}); try again, or get the files by hand"
        ) from error
    except (OSError, DownloadError) as error:
        raise ConnectionError(
            f"download failed ({error}); put the raw files of {source} in a folder and give it as data_dir"
        ) from error
    paths = {name: pathlib.Path(path) for name, path in fetched.items()}
    for name, path in paths.items():
        _check_size(addresses[name], path.stat().st_size)
        verify(path, addresses[name])
    return paths


def verify(path: pathlib.Path, url: str) -> None:
    """Compares a downloaded file with the SHA-256 that lies beside it, which is written at its first download.

    Raises ValueError where they differ: the file was damaged since, or is another one than it was.
    """
    note = path.with_name(f"{path.name}.sha256")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not note.exists():
        temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
        temporary.write_text(f"{digest}  {path.name}\n")  # as sha256sum has it
        temporary.replace(note)
    elif note.read_bytes().split()[:1] != [digest.encode()]:
        raise ValueError(
            f"{path} is not what was first downloaded from {url}, by its {note.name}; delete it to download it again, "
            f"and {note.name} too if its authors have changed it"
        )


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    own = parts.scheme == "http" and parts.hostname in OWN  # nobody is in between
    if parts.scheme != "https" and not own:
        raise ValueError(f"the address {url!r} is not https, so that anyone could change the file; get it by hand")


def _check_size(url: str, size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"the file of {url} has {size} bytes, more than {LARGEST}; get it by hand")
