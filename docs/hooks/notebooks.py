"""Notebooks as pages: text, code, and the outputs that are stored with them."""

import base64
import json
import pathlib
import re

TERMINAL = re.compile(r"\x1b\[[0-9;]*m")


def page(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """A notebook in Markdown, and its pictures by their names.

    Args:
        path: Of the ``.ipynb``.
    """
    notebook = json.loads(path.read_text())
    parts, pictures = [], {}
    for number, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        parts.append(f"```python\n{code}\n```")
        for place, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{number}-{place}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![Output of the cell above](../docs/notebooks/{name})")
            elif shown := "".join(output.get("text") or data.get("text/plain") or ""):
                parts.append(f"```text\n{TERMINAL.sub('', shown).rstrip()}\n```")
    head, _, rest = "\n\n".join(parts).partition("\n")
    link = f'<a href="../files/examples/{path.name}" download>{path.name}</a>'
    note = f"*This page is a notebook, to be run and changed: {link}.*"
    return f"{head}\n\n{note}\n{rest}\n", pictures
