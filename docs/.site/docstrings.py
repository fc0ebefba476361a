"""Shows a docstring as its author means it: examples as code, and what is said of each argument as a list.

Markdown would read `>>>` as a quotation in a quotation, and arguments that stand line by line as one paragraph.
"""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^|\n)\n*((?:>>> .*(?:\n(?!\n).*)*\n*)+)")
ABOUT = re.compile(r"^((\w+)(?:, \w+)*): ", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that the site shows."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for each module, class and function."""
        if not obj.docstring:
            return
        text = EXAMPLE.sub(lambda found: f"\n\n```pycon\n{found[1].rstrip()}\n```\n", obj.docstring.value)
        if isinstance(obj, griffe.Function):
            names = {parameter.name for parameter in obj.parameters}
            item = lambda found: f"\n- `{found[1]}`: " if found[2] in names else found[0]
            text = ABOUT.sub(item, text)
        obj.docstring.value = text
