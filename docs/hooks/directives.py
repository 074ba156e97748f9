"""What pages include from elsewhere: a comment ``<!-- NAME: WORDS -->`` becomes Markdown.

==============================  ==========================================================
``source: OBJECT [FROM [TO]]``  a function's or class's code without its docstring; or its
                                lines from the one that holds FROM to before the one with TO
``defaults: CONFIG``            the fields of a configuration
``presets: ALGORITHM``          the defaults of its tuned environments
``results: ALGORITHM``          its rows of the learning table of benchmarks/README.md
``curves: ALGORITHM``           its learning curves, drawn from benchmarks/results/learning
``help: WORDS``                 what ``purerl WORDS`` prints
``public names``                all of them, with the first lines of their docstrings
==============================  ==========================================================

An object, text or result that is not there ends the build.
"""

import ast
import contextlib
import functools
import importlib
import io
import json
import os
import pathlib
import re
import shlex
import textwrap
from collections.abc import Callable

import purerl

ROOT = pathlib.Path(__file__).parents[2]
LEARNING = ROOT / "benchmarks" / "results" / "learning"
DIRECTIVE = re.compile(
    r"<!-- (source|defaults|presets|results|curves|help|public names):? ?(.*?) ?-->"
)

HOMES = importlib.import_module("purerl")._HOME  # modules of the public names
ATTRIBUTES = {  # what has no docstring of its own
    "ALGORITHMS": "The algorithms by their names: configuration, builder, regime.",
    "ActionSpace": "What actions are: `Discrete`, `MultiDiscrete` or `Box`.",
    "STOP": "What a function of the rows of a run returns to end it.",
    "Number": "A float; or a tracer, where it is swept.",
    "Schedule": "A number, or a function of the run's progress in [0, 1].",
}

Pictures = dict[str, bytes]  # by their paths in the site


def expand(markdown: str, pictures: Pictures, path_to_root: str = "") -> str:
    """A page with its directives carried out.

    Args:
        markdown: The page's source.
        pictures: Takes what is drawn.
        path_to_root: What leads from the page to the site's root, "../".
    """

    def replaced(match: re.Match[str]) -> str:
        name, words = match[1], shlex.split(match[2])
        if name == "curves":
            path = f"assets/curves/{words[0]}.png"
            pictures[path] = curves(words[0])
            return f"![Learning curves of {words[0]}]({path_to_root}{path})"
        return MAKERS[name](*words)

    return DIRECTIVE.sub(replaced, markdown)


def source(dotted: str, begin: str | None = None, end: str | None = None) -> str:
    """Lines of a module, as they are there now.

    Args:
        dotted: ``package.module.object``, or ``package.module.Class.method``.
        begin: Text in the first line wanted; None: all of the object but its docstring.
        end: Text in the first line that is not wanted any more; None: to the object's end.
    """
    path, node = _find(dotted)
    lines = path.read_text().splitlines()
    first, last = node.lineno - 1, node.end_lineno or node.lineno
    if begin is None:
        skipped = _docstring_lines(node)
        chosen = [line for i, line in enumerate(lines[first:last], first) if i not in skipped]
    else:
        chosen = lines[first:last]
        chosen = chosen[_line_with(begin, chosen, dotted) :]
        if end is not None:
            chosen = chosen[: 1 + _line_with(end, chosen[1:], dotted)]
    code = textwrap.dedent("\n".join(chosen)).strip("\n")
    return f'```python title="{path.relative_to(ROOT)}"\n{code}\n```'


def _find(dotted: str) -> tuple[pathlib.Path, ast.FunctionDef | ast.ClassDef]:
    parts = dotted.split(".")
    for count in range(len(parts) - 1, 0, -1):
        path = ROOT.joinpath(*parts[:count]).with_suffix(".py")
        if path.exists():
            node = ast.parse(path.read_text())
            for name in parts[count:]:
                found = [
                    x
                    for x in node.body
                    if isinstance(x, ast.FunctionDef | ast.ClassDef) and x.name == name
                ]
                if not found:
                    raise LookupError(f"{dotted}: there is no {name} in {path}.")
                node = found[-1]
            return path, node
    raise LookupError(f"{dotted}: there is no such module.")


def _docstring_lines(node: ast.FunctionDef | ast.ClassDef) -> range:
    head = node.body[0]
    if ast.get_docstring(node) is None:
        return range(0)
    return range(head.lineno - 1, head.end_lineno or head.lineno)


def _line_with(text: str, lines: list[str], where: str) -> int:
    found = [i for i, line in enumerate(lines) if text in line]
    if not found:
        raise LookupError(f"{where} has no line with {text!r} any more.")
    return found[0]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table.

    Args:
        head: Of its columns.
        rows: Cells.
    """
    body = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(x.replace("|", "\\|") for x in row) + " |" for row in body)


def defaults(name: str) -> str:
    """The fields of a configuration, from their declarations.

    Args:
        name: Its class, a public name.
    """
    rows = []
    config = getattr(purerl, name)
    for field, spec in config.specs.items():
        value = getattr(config(), field)
        shown = f"`{name_of(value)}`"
        rows.append([f"`{field}`", shown, spec.meaning, spec.wanted, "yes" if spec.swept else ""])
    return table(["field", "default", "meaning", "type and range", "swept"], rows)


def name_of(value: object) -> str:
    """A default as it is written; of a configuration its class.

    Args:
        value: The default.
    """
    return f"{type(value).__name__}()" if hasattr(value, "specs") else repr(value)


def presets(algorithm: str) -> str:
    """What an algorithm's tuned environments begin with.

    Args:
        algorithm: Its name.
    """
    from purerl.host.presets import presets as all_of_them

    rows = []
    for env, numbers in all_of_them().get(algorithm, {}).items():
        which = {"*": "every environment", "MuJoCo": "MuJoCo's tasks"}.get(env, env)
        shown = (f"`{name}={_number(x)}`" for name, x in numbers.items())
        rows.append([which, ", ".join(shown)])
    return table(["environment", "differs from the general defaults"], rows)


def _number(value: object) -> str:
    return repr(value).replace("NetworkConfig", "") if hasattr(value, "specs") else repr(value)


def results(algorithm: str) -> str:
    """An algorithm's rows of the learning tables, under the heads of their tables.

    Args:
        algorithm: Its name.
    """
    text = (ROOT / "benchmarks" / "README.md").read_text().partition("\n## Learning\n")[2]
    by_head: dict[str, list[str]] = {}
    head = last = ""
    for line in text.partition("\n## ")[0].splitlines():
        if re.fullmatch(r"[|\s-]+", line) and last:
            head = f"{last}\n{line}"
        elif re.match(rf"\| {algorithm}(\[[^]]*\])? \|", line):
            by_head.setdefault(head, []).append(line)
        last = line
    if not by_head:
        raise LookupError(f"benchmarks/README.md has no result of {algorithm}.")
    return "\n\n".join("\n".join([head, *rows]) for head, rows in by_head.items())


def curves(algorithm: str) -> bytes:
    """A picture of an algorithm's learning curves, one plot an environment.

    Args:
        algorithm: Its name.
    """
    from matplotlib.figure import Figure

    from purerl.host.report.plotting import draw_curves

    by_env: dict[str, dict[str, tuple[list[float], list[list[float]]]]] = {}
    for path in sorted(LEARNING.glob(f"{algorithm}[-[]*.json")):
        found = json.loads(path.read_text())
        label, env = re.fullmatch(r"([^-]*(?:\[.*?\])?)-(.*)", path.stem).groups()  # type: ignore[union-attr]
        by_env.setdefault(env, {})[label] = (found["steps"], found["returns"])
    if not by_env:
        raise LookupError(f"{LEARNING} has no result of {algorithm}.")
    columns = min(2, len(by_env))
    lines = -(-len(by_env) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * lines), layout="constrained")
    for i, (env, of_env) in enumerate(by_env.items()):
        axes = figure.add_subplot(lines, columns, i + 1)
        draw_curves(axes, of_env)
        axes.set_title(env, fontsize=10)
        axes.legend(fontsize=7)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("return, IQM and 95 % interval", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png", metadata={"Software": None})
    return file.getvalue()


@functools.cache
def command(*words: str) -> str:
    """What a command prints.

    Args:
        *words: After ``purerl``.
    """
    from purerl.cli import main

    os.environ |= {"COLUMNS": "96", "NO_COLOR": "1"}
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main(words)
    printed = "\n".join(line.rstrip() for line in output.getvalue().splitlines()).strip("\n")
    if not printed:
        raise LookupError(f"purerl {shlex.join(words)} prints nothing.")
    return f"```console\n$ purerl {shlex.join(words)}\n{printed}\n```"


def public_names() -> str:
    """All public names, by module."""
    homes: dict[str, list[str]] = {}
    for name, module in HOMES.items():
        homes.setdefault(module, []).append(name)
    rows = []
    for module, names in homes.items():
        for name in names:
            about = getattr(purerl, name).__doc__ or ""
            about = ATTRIBUTES.get(name, about)
            first = about.strip().split("\n\n")[0].replace("\n", " ")
            rows.append([f"[`{name}`][{module}.{name}]", rst(" ".join(first.split())).strip()])
    return table(["name", "what"], rows)


def rst(text: str) -> str:
    """A docstring's inline markup as Markdown: its links as code, its mathematics as TeX.

    Args:
        text: Of a docstring.
    """
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    return text.replace("``", "`")


MAKERS: dict[str, Callable[..., str]] = {
    "source": source,
    "defaults": defaults,
    "presets": presets,
    "results": results,
    "help": command,
    "public names": public_names,
}
