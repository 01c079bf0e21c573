"""The static site: every link resolves, nothing comes from a network, equations are drawn without a script."""

import re

import pytest
from bs4 import BeautifulSoup

from bench.browser import CHROMIUM, Browser
from mzlib.runs import data_dir
from mzlib.viz import site

REPO = data_dir().parent
NOTEBOOKS = sorted(path.stem for path in (REPO / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LARGEST = 40 * 2**20  # bytes


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "site"
    site.build(out)
    return out


def test_every_link_resolves_and_nothing_is_fetched(built):
    pages = {path.name: BeautifulSoup(path.read_text(), "html.parser") for path in built.glob("*.html")}
    assert sorted(pages) == [f"{name}.html" for name in (*NOTEBOOKS, "index", "teaching")]
    broken = []
    for name, page in pages.items():
        for tag in page.find_all(href=True):
            target, _, place = tag["href"].partition("#")
            if target.startswith(("https://", "data:")):
                continue
            there = pages.get(target or name)
            if not (built / (target or name)).exists() or place and there and not there.find(id=place):
                broken.append((name, tag["href"]))
        fetched = [tag["src"] for tag in page.find_all(src=True) if not tag["src"].startswith("data:")]
        assert fetched == [], f"{name} needs {fetched}"
        assert all(tag["href"] in ("site.css", "data:,") for tag in page.find_all("link"))
        assert all(image.has_attr("alt") for image in page.find_all("img")), f"{name}: a picture without words"
    assert broken == []
    assert sum(path.stat().st_size for path in built.iterdir()) < LARGEST


def test_equations_are_mathml_and_none_is_left_as_tex(built):
    counted = 0
    for path in built.glob("[0-9]*.html"):
        page = BeautifulSoup(path.read_text(), "html.parser")
        counted += len(page.find_all("math"))
        for tag in page.find_all(["script", "style", "code", "pre", "math", "svg"]):
            tag.decompose()
        left = re.findall(r"\$[^$\n]{1,80}\$|\\(?:mathrm|frac|beta|hat)\b", page.get_text())
        assert left == [], f"{path.name}: {left}"
    assert counted > 50


def test_pages_follow_each_other(built):
    page = BeautifulSoup((built / f"{NOTEBOOKS[1]}.html").read_text(), "html.parser")
    assert [a["href"] for a in page.footer.find_all("a")] == [f"{NOTEBOOKS[0]}.html", f"{NOTEBOOKS[2]}.html"]
    assert page.header.find(attrs={"aria-current": "page"})["href"] == f"{NOTEBOOKS[1]}.html"
    front = BeautifulSoup((built / "index.html").read_text(), "html.parser")
    assert [a["href"] for a in front.select(".cards a")] == [f"{name}.html" for name in NOTEBOOKS]


def test_parameters_and_imports_are_folded_and_nothing_else(built):
    for name in NOTEBOOKS:
        page = BeautifulSoup((built / f"{name}.html").read_text(), "html.parser")
        names = [summary.text for summary in page.find_all("summary")]
        assert names[:2] == ["parameters", "imports"], name
        assert {name for name in names[2:] if not re.fullmatch(r"\w+: \d+ results", name)} == {"Solution"}


def test_viewers_are_kept_and_live_widgets_are_not(built):
    page = (built / "03_metacontroller.html").read_text()
    assert 'data-kind="beta"' in page
    assert site.LIVE not in page
    assert "SteeringPanel(" not in BeautifulSoup(page, "html.parser").select_one(".output_area").get_text()


def test_a_readme_without_the_map_is_named():
    with pytest.raises(ValueError, match="the table that begins with"):
        site.front("# Nothing", {})
    with pytest.raises(ValueError, match="no row for 99_x"):
        site.front("| Notebook | What |\n|---|---|\n| 00_a | b |\n\n", {"99_x": None})


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other things than a site"):
        site.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome here to look at the pages with")
@pytest.mark.parametrize("width", [400, 1200])
def test_pages_fit_a_phone_and_raise_no_errors(built, width):
    errors = "window.errors=[];onerror=m=>{errors.push(m)};onunhandledrejection=e=>{errors.push(e.reason+'')}"
    with Browser() as browser:
        browser.call("Page.enable")
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=errors)
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        for path in sorted(built.glob("*.html")):
            browser.open(path.as_uri())
            browser.wait("document.readyState === 'complete'")
            assert browser.run("return document.documentElement.scrollWidth") <= width, f"{path.name} is too wide"
            shown = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
            assert browser.run(f"return {shown}"), f"{path.name}: a picture that does not show"
            assert browser.run("return window.errors") == [], path.name
