"""Reads the package's docstrings for the API reference: their markup and sections as Markdown."""

import functools
import importlib
import inspect
import pathlib
import re
import sys
from typing import Any

import griffe

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import directives

ROLE = re.compile(r":(?:func|class|data|mod|meth|attr):`(?:~?)([^`]+)`")
MATH = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. (math|code-block)::[ \w]*\n((?:\s*\n|\1 +.*\n?)+)", re.MULTILINE)
RULE = re.compile(r"^ *=+( +=+)+ *$")
SECTIONS = {
    "Example:": "Examples:",
    "Differs from:": "Note: Differs from",
    "References:": "Quote: References",
}


class Docstrings(griffe.Extension):
    """Configurations get the text that they make at run time; all others are translated."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """The fields of a configuration are in its docstring, once it is imported."""
        module = cls.module.path
        if not module.startswith("purerl") or not cls.name.endswith("Config"):
            return
        found = getattr(importlib.import_module(module), cls.name, None)
        if found is not None and hasattr(found, "specs"):
            assert cls.docstring is not None
            cls.docstring.value = markdown(inspect.cleandoc(found.__doc__ or ""), cls)
            for name in found.specs:
                if name in cls.members:
                    cls.del_member(name)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Public names that are neither functions nor classes."""
        if text := directives.ATTRIBUTES.get(attr.name):
            attr.docstring = griffe.Docstring(text, parent=attr)

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Sections and roles."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, obj)


def markdown(text: str, obj: griffe.Object) -> str:
    """A docstring in Markdown.

    Args:
        text: Of the docstring.
        obj: What it describes, in whose scope names are resolved.
    """
    text = BLOCK.sub(_block, text + "\n")
    text = MATH.sub(lambda m: f"${' '.join(m[1].split())}$", text)
    text = ROLE.sub(lambda m: _link(m[1], obj), text)
    text = re.sub(r"``([^`]+)``", lambda m: f"`{' '.join(m[1].split())}`", text)
    lines = [
        SECTIONS.get(line.strip(), line) if _is_head(line) else line for line in text.split("\n")
    ]
    return "\n".join(_tables(lines))


def _is_head(line: str) -> bool:
    return line.strip() in SECTIONS


def _block(match: re.Match[str]) -> str:
    indent, kind, body = match[1], match[2], match[3]
    lines = [line.strip() if kind == "math" else line for line in body.strip("\n").split("\n")]
    if kind == "code-block":
        least = min(len(x) - len(x.lstrip()) for x in lines if x.strip())
        lines = [indent + x[least:] for x in lines]
        return "\n".join([f"{indent}```python", *lines, f"{indent}```", "", ""])
    lines = [line for line in lines if line]
    aligned = any("&" in line for line in lines)
    if aligned:
        lines = [r"\begin{aligned}", *lines, r"\end{aligned}"]
    return "\n".join(f"{indent}{line}" for line in ["", "$$", *lines, "$$", "", ""])


def _link(name: str, obj: griffe.Object) -> str:
    """A link if what is named is in the reference, else code."""
    short = name.removeprefix("purerl.") if name.count(".") == 1 else name.rpartition(".")[2]
    try:
        path = name if name.startswith("purerl.") else obj.resolve(name)
    except griffe.NameResolutionError:
        return f"`{name}`"
    head, _, rest = path.removeprefix("purerl.").partition(".")
    if head in directives.HOMES:  # a public name, or an attribute of one
        path, short = f"{directives.HOMES[head]}.{head}", f"{head}.{rest}".rstrip(".")
    module = max((m for m in _reference() if f"{path}.".startswith(f"{m}.")), key=len, default="")
    inside = path.removeprefix(module).strip(".")
    shown = inside == "" or ("." not in inside and _is_shown(path))
    return f"[`{short}`][{path}]" if module and shown else f"`{short}`"


def _is_shown(path: str) -> bool:
    """Attributes are, where there is a text for them; all else has docstrings."""
    name = path.rpartition(".")[2]
    return name in directives.ATTRIBUTES or not (name.isupper() or name in ("Number", "Schedule"))


@functools.cache
def _reference() -> list[str]:
    """The modules of the API reference."""
    pages = (directives.ROOT / "docs" / "api").glob("*.md")
    return re.findall(r"^::: (\S+)", "\n".join(page.read_text() for page in pages), re.MULTILINE)


def _tables(lines: list[str]) -> list[str]:
    """Simple tables of reStructuredText: between rules of ``=``, with or without a head."""
    made: list[str] = []
    rules = [i for i, line in enumerate(lines) if RULE.match(line)]
    if len(rules) < 2:
        return lines
    first, last = rules[0], rules[-1]
    starts = [m.start() for m in re.finditer(r"=+", lines[first])]
    ends = [*starts[1:], None]

    def cells(line: str) -> str:
        parts = [line[a:b].strip().replace("|", r"\|") for a, b in zip(starts, ends, strict=True)]
        return "| " + " | ".join(parts) + " |"

    head = lines[first + 1 : rules[1]] if len(rules) > 2 else [" " * 80]
    body = lines[rules[1] + 1 : last] if len(rules) > 2 else lines[first + 1 : last]
    made = [cells(head[0]), "|" + " --- |" * len(starts), *map(cells, body)]
    return [*lines[:first], "", *made, "", *lines[last + 1 :]]
