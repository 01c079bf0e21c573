"""The workbook as a static site: each executed notebook a page, the README its front; nothing comes from a network.

python -m mzlib.viz.site --out site
"""

import argparse
import html
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from mzlib import runs

LIVE = "application/vnd.jupyter.widget-view+json"  # needs a kernel; a static figure stands beside
STYLE = Path(__file__).with_suffix(".css")
LABELS = {"index": "The Montezuma workbook", "teaching": "for teachers"}
MAP = re.compile(r"^\| Notebook \|.*?(?=^$)", re.MULTILINE | re.DOTALL)  # README's table of notebooks
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><link rel="stylesheet" href="site.css"></head>
<body><header><nav aria-label="Notebooks">{links}</nav></header>
<main>
{body}
</main>
<footer><nav aria-label="Before and after">{around}</nav></footer></body></html>
"""


class Renderer(IPythonRenderer):
    """Markdown to HTML with equations as MathML, which browsers draw by themselves."""

    def block_math(self, body: str) -> str:
        """An equation of its own."""
        return f'<div class="equation">{convert(body.strip(), display="block")}</div>'

    def inline_math(self, body: str) -> str:
        """An equation in a line."""
        return convert(body.strip())


class Pages(HTMLExporter):
    """Notebooks to the inside of a page."""

    def __init__(self):
        super().__init__(template_name="basic")

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        """A markdown cell or output."""
        return markdown(source)


def folded(body: str, notebook: nbformat.NotebookNode) -> str:
    """A page's inside with the cells of parameters and of mere imports folded."""
    page = BeautifulSoup(body, "html.parser")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, area in zip(cells, page.select(".input_area"), strict=True):
        imports = all(re.match(r"import |from |\s|\)|$", line) for line in cell.source.splitlines())
        if imports or "parameters" in cell.metadata.get("tags", ()):
            area.wrap(page.new_tag("details"))
            summary = page.new_tag("summary")
            summary.string = "imports" if imports else "parameters"
            area.insert_before(summary)
    return str(page)


def markdown(text: str) -> str:
    """HTML of a text, HTML in it as it is."""
    return MarkdownWithMath(renderer=Renderer(escape=False)).render(text)


def link(name: str, text: str, current: str) -> str:
    """A link to a page of this site; marked on the page itself."""
    marked = ' aria-current="page"' if name == current else ""
    return f'<a href="{name}.html"{marked}>{html.escape(text)}</a>'


def page(name: str, title: str, body: str, names: Sequence[str]) -> str:
    """A whole page, with links to all others and to its neighbours."""
    links = " ".join(link(other, LABELS.get(other, other[:2]), name) for other in names)
    at = names.index(name)
    neighbours = [(names[at - 1], "← {}")] * (at > 0) + [(other, "{} →") for other in names[at + 1 : at + 2]]
    around = " ".join(link(other, arrow.format(LABELS.get(other, other)), name) for other, arrow in neighbours)
    return PAGE.format(title=html.escape(title), links=links, body=body, around=around)


def title_of(notebook: nbformat.NotebookNode) -> str:
    """The first heading."""
    return notebook.cells[0].source.splitlines()[0].lstrip("# ")


def card(name: str, notebook: nbformat.NotebookNode, told: str) -> str:
    """A notebook on the front page: its first picture, its title, what README says of it."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    picture = f'<img alt="" src="data:image/png;base64,{pictures[0].strip()}">' if pictures else ""
    title = html.escape(title_of(notebook))
    return f'<li><a href="{name}.html">{picture}<strong>{title}</strong><span>{html.escape(told)}</span></a></li>'


def front(readme: str, notebooks: dict[str, nbformat.NotebookNode]) -> str:
    """README with cards in place of its table of notebooks; ValueError without that table, or a row in it."""
    readme = readme.replace("(teaching.md)", "(teaching.html)")
    table = MAP.search(readme)
    if table is None:
        raise ValueError("README.md: the table that begins with '| Notebook |' is needed for the front page")
    cells = [[cell.strip() for cell in row.strip("| ").split("|")] for row in table[0].strip().splitlines()[2:]]
    told = {row[0]: row[1] for row in cells}
    missing = [name for name in notebooks if name not in told]
    if missing:
        raise ValueError(f"README.md: its table of notebooks has no row for {missing[0]}")
    cards = "".join(card(name, notebook, told[name]) for name, notebook in notebooks.items())
    return markdown(readme[: table.start()] + f'\n<ul class="cards">{cards}</ul>\n\n' + readme[table.end() :])


def build(out: Path) -> list[Path]:
    """Write the site anew into `out`, in one go; its files. ValueError for a folder that is no site."""
    if out.exists() and not (out / "index.html").exists() and any(out.iterdir()):
        raise ValueError(f"--out {out}: holds other things than a site; name a new or empty folder")
    paths = sorted((runs.REPO / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    notebooks = {path.stem: nbformat.read(path, 4) for path in paths}
    names = ["index", *notebooks, "teaching"]
    pages, exporter = {}, Pages()
    texts = {name: (runs.REPO / name).read_text(encoding="utf-8") for name in ("README.md", "teaching.md")}
    pages["teaching"] = page("teaching", "For teachers", markdown(texts["teaching.md"]), names)
    pages["index"] = page("index", LABELS["index"], front(texts["README.md"], notebooks), names)
    for name, notebook in notebooks.items():
        for cell in notebook.cells:
            if "outputs" in cell:
                cell.outputs = [output for output in cell.outputs if LIVE not in output.get("data", {})]
        body, _ = exporter.from_notebook_node(notebook)
        pages[name] = page(name, title_of(notebook), folded(body, notebook), names)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as whole:
        for name, content in pages.items():
            Path(whole, f"{name}.html").write_text(content, encoding="utf-8")
        colours = HtmlFormatter(style="default").get_style_defs(".highlight")
        Path(whole, "site.css").write_text(colours + "\n" + STYLE.read_text(encoding="utf-8"), encoding="utf-8")
        shutil.copy(runs.REPO / "LICENSE", whole)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        out.chmod(0o755)  # the temporary folder is for its owner alone
    return sorted(out.iterdir())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mzlib.viz.site", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("site"), help="a folder (site)")
    given = parser.parse_args()
    try:
        files = build(given.out)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    size = sum(path.stat().st_size for path in files) / 2**20
    print(f"{given.out}: {len(files)} files, {size:.1f} MB; open {given.out / 'index.html'}")


if __name__ == "__main__":
    main()
