"""What MkDocs calls while it builds the site: pages from the repository, inclusions, links."""

import functools
import os
import pathlib
import posixpath
import re
import sys

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(pathlib.Path(__file__).parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import directives
import notebooks

ROOT = directives.ROOT
# Pages that stand elsewhere in the repository.
PAGES = {"benchmarks/README.md": "results.md", "CHANGELOG.md": "changelog.md"}
FOLDERS = {
    "benchmarks": "results.md",
    "benchmarks/results": "results.md",
    "examples": "notebooks/index.md",
    "docs": "index.md",
}
LINK = re.compile(r"(?<!`)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")
HIDDEN = re.compile(r"<!-- hidden\n.*?-->\n", re.DOTALL)
CODE = re.compile(r"(^```.*?^```|^\$\$.*?\$\$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_home = {page: path for path, page in PAGES.items()}  # where a page's links start from
_files: Files


def on_files(files: Files, config) -> Files:
    """Adds the pages that stand elsewhere, and the notebooks."""
    global _files
    _files = files
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        text, pictures = notebooks.page(path)
        page = f"notebooks/{path.stem}.md"
        _home[page] = f"examples/{path.name}"
        files.append(File.generated(config, page, content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
        _add(config, f"files/examples/{path.name}", path.read_bytes())
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Carries out directives, and turns links into the repository into links into the site."""
    here = page.file.src_uri
    to_root = "../" * here.count("/")
    pictures: directives.Pictures = {}
    markdown = HIDDEN.sub("", markdown)
    if not here.startswith("changelog"):
        markdown = directives.expand(markdown, pictures, to_root)
    for path, content in pictures.items():
        _add(config, path, content)
    folder = posixpath.dirname(_home.get(here, f"docs/{here}"))
    parts = CODE.split(markdown)
    relink = functools.partial(_relinked, config=config, folder=folder, to_root=to_root)
    parts[::2] = [LINK.sub(relink, part) for part in parts[::2]]
    return "".join(parts)


def _relinked(match: re.Match[str], config, folder: str, to_root: str) -> str:
    target = posixpath.normpath(posixpath.join(folder, match[1]))
    anchor = match[2] or ""
    if target in PAGES or target in FOLDERS:
        path = PAGES.get(target) or FOLDERS[target]
    elif target.startswith("docs/"):
        path = target.removeprefix("docs/")
    elif target.startswith("examples/") and target.endswith(".ipynb"):
        path = f"notebooks/{pathlib.PurePath(target).stem}.md"
    else:
        path = f"files/{target}"
        file = ROOT / target
        if not file.is_file():
            raise FileNotFoundError(f"a page in {folder}/ links to {match[1]}, which is no file.")
        _add(config, path, file.read_bytes())
    return f"]({to_root}{path}{anchor})"


def _add(config, path: str, content: bytes) -> None:
    if _files.get_file_from_path(path) is None:
        _files.append(File.generated(config, path, content=content))


SHIM = "https://unpkg.com/iframe-worker/shim"  # what the theme's search takes where files are read


def on_post_page(output: str, page, config) -> str:
    """Takes from the site itself what the theme would load from elsewhere."""
    return output.replace(
        SHIM, "../" * page.file.src_uri.count("/") + "assets/iframe-worker/shim.js"
    )


def on_post_template(output: str, template_name: str, config) -> str:
    """The same of the page for what is not found."""
    return output.replace(SHIM, "/assets/iframe-worker/shim.js")
