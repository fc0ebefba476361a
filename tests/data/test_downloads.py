import pathlib
import re
import types

import pytest
import requests

from fedjax_mm.data import downloads, prepared

ROOT = pathlib.Path(__file__).parents[2]
FILES = [file for room in ("fedjax_mm", "experiments", "benchmarks") for file in sorted((ROOT / room).rglob("*.py"))]
URL = "https://example.org/a.csv"


class Manager:
    """Stands in for TFDS's download manager: it has the file already, or writes `content` now."""

    def __init__(self, folder, content=b"first"):
        self.folder, self.content = folder, content

    @property
    def manual_dir(self):
        raise AssertionError("no manual folder")

    def download(self, urls):
        paths = {name: self.folder / url.rpartition("/")[2] for name, url in urls.items()}
        for path in paths.values():
            if not path.exists():
                path.write_bytes(self.content)
        return paths


@pytest.fixture
def answer(monkeypatch):
    """What the server says beforehand."""
    said = types.SimpleNamespace(url=URL, headers={})
    monkeypatch.setattr(requests, "head", lambda url, **settings: said)
    return said


def raw(folder, urls=None, **given):
    return prepared.raw_files(Manager(folder, **given), ["a.csv"], [], urls or {"a.csv": URL}, "https://example.org")


def test_a_download_is_compared_with_the_first_one(tmp_path, answer):
    path = raw(tmp_path)["a.csv"]
    assert path.read_bytes() == b"first" and raw(tmp_path) == {"a.csv": path}
    (note,) = tmp_path.glob("*.sha256")
    assert note.read_text().split()[1] == "a.csv"
    path.write_bytes(b"First")  # damaged where it lies
    refused = r"a\.csv is not what was first downloaded from https://example.org/a.csv, by its a.csv.sha256; delete it"
    with pytest.raises(ValueError, match=refused):
        raw(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=refused):  # downloaded again, and another one
        raw(tmp_path, content=b"second")
    path.unlink()
    assert raw(tmp_path)["a.csv"].read_bytes() == b"first"
    note.write_bytes(b"")
    with pytest.raises(ValueError, match=refused):
        raw(tmp_path)


def test_an_archive_is_compared_too(tmp_path, answer):
    (tmp_path / "a.csv").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="is cut off or damaged"):
        raw(tmp_path, urls=URL)
    (tmp_path / "a.csv").write_bytes(b"other")
    with pytest.raises(ValueError, match="is not what was first downloaded"):
        raw(tmp_path, urls=URL)


def test_an_address_is_https_and_a_file_of_bounded_size(tmp_path, answer, monkeypatch):
    for wrong in ("http://example.org/a.csv", "ftp://127.0.0.1/a.csv", "http://127.0.0.1@example.org/a.csv", "/a.csv"):
        with pytest.raises(ValueError, match=f"the address '{wrong}' is not https"):
            raw(tmp_path, urls={"a.csv": wrong})
    answer.url = "http://elsewhere.org/a.csv"
    with pytest.raises(ValueError, match="the address 'http://elsewhere.org/a.csv' is not https"):
        raw(tmp_path)
    answer.url, answer.headers = URL, {"Content-Length": str(2**31 + 1)}
    with pytest.raises(ValueError, match="has 2147483649 bytes, more than 2147483648; get it by hand"):
        raw(tmp_path)
    assert not [*tmp_path.iterdir()]
    answer.headers = {}
    monkeypatch.setattr(downloads, "LARGEST", 4)
    with pytest.raises(ValueError, match="has 5 bytes, more than 4"):
        raw(tmp_path)


def test_every_address_is_https_and_one_module_downloads():
    texts = {str(file.relative_to(ROOT)): file.read_text() for file in FILES}
    assert [name for name, text in texts.items() if re.search(r"\b(http|ftp)://", text)] == []
    asks = r"dl_manager\.download|urlopen|urlretrieve|import requests|snapshot_download|hf_hub_download|httpx|wget"
    assert [name for name, text in texts.items() if re.search(asks, text)] == ["fedjax_mm/data/downloads.py"]
