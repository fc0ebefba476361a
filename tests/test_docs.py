"""What the pages of docs/ tell a reader to run does run, block after block, as it stands."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {
    path.relative_to(ROOT / "docs").as_posix(): BLOCK.findall(path.read_text()) for path in ROOT.glob("docs/**/*.md")
}
RUN = sorted(page for page, blocks in PAGES.items() if blocks)


def test_pages_with_code_are_found():
    assert {"index.md", "how-to/own-data.md", "how-to/own-method.md"} <= set(RUN)


@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in PAGES[page]:
        exec(compile(block, page, "exec"), namespace)
