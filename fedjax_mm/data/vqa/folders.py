"""Questions in anyone's own folders: <folder>/<domain>/{train,test}/metadata.jsonl, as Hugging Face's imagefolder."""

import os
import pathlib
from collections.abc import Sequence

from fedjax_mm.data.text_files import parse_json
from fedjax_mm.data.vqa.annotations import Question, kind_of

SPLITS = ("train", "test")
METADATA = "metadata.jsonl"
FOREIGN = ("metadata.csv", "metadata.parquet")  # Hugging Face's imagefolder reads these too


def imagefolder(
    folder: str | os.PathLike, domains: Sequence[str] | None = None
) -> dict[str, dict[str, list[Question]]]:
    """Returns domain -> {"train": questions, "test": questions} of <folder>/<domain>/{train,test}/metadata.jsonl.

    domains: None is every subfolder that has one of these files, by name. A line of metadata.jsonl (Hugging Face's
    imagefolder) is a JSON object with `file_name` (from the folder of metadata.jsonl), `question`, and `answer`, a
    text, or `answers`, a list of texts, one from each annotator; `type` may be there.
    Raises FileNotFoundError, or ValueError with the line.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder that holds the domains")
    listed = lambda path: any((path / split / name).is_file() for split in SPLITS for name in (METADATA, *FOREIGN))
    there = sorted(path.name for path in folder.iterdir() if listed(path))
    if domains is None:
        domains = there
    if isinstance(domains, str) or not domains or not all(isinstance(domain, str) for domain in domains):
        raise ValueError(f"domains is {domains!r}; give a tuple of names; {folder} has {there}")
    return {domain: {split: metadata(folder / domain / split / METADATA) for split in SPLITS} for domain in domains}


def metadata(path: str | os.PathLike) -> list[Question]:
    """Returns the questions of one metadata.jsonl, as `imagefolder` reads them."""
    path = pathlib.Path(path)
    if not path.is_file():
        others = [name for name in FOREIGN if path.with_name(name).is_file()]
        cure = f"; write {METADATA}, one JSON object a line, from the {others[0]} beside it" if others else ""
        raise FileNotFoundError(f"there is no file {path}; a domain has {METADATA} in train and in test{cure}")
    questions = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            questions.append(_metadata_line(line, f"line {number} of {path}", path.parent))
    if not questions:
        raise ValueError(f"{path} is empty; it must have one JSON object a line")
    return questions


def _metadata_line(line: bytes, where: str, folder: pathlib.Path) -> Question:
    entry = parse_json(line, where, "copy the file again")
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is no JSON object; it must have file_name, question, and answer or answers")
    answers = entry.get("answers", [entry["answer"]] if "answer" in entry else None)
    for key, value in (("file_name", entry.get("file_name")), ("question", entry.get("question")), ("answer", answers)):
        if value is None:
            raise ValueError(f"{where} has no {key!r}; it has {sorted(entry)}")
    texts = [entry["file_name"], entry["question"], *(answers if isinstance(answers, list) else [answers])]
    if len(texts) < 3 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f'{where} has something empty or no text among {texts}; write a number as text, "2"')
    # normpath: file names point out of the folder, and one picture must have one name.
    image = os.path.normpath(folder / entry["file_name"])
    try:
        return Question(image, entry["question"], tuple(texts[2:]), kind_of(entry.get("type")))
    except TypeError as error:
        raise ValueError(f"{where} has a `type` that is no text ({error}); write it as text or leave it out") from error
