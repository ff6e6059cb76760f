"""The documentation builds without a warning, and nothing in it leads nowhere or elsewhere.

Needs the extra `docs`. What its pages say is tested in test_docs.py.
"""

import html.parser
import json
import os
import pathlib
import shutil
import subprocess
import sys
import urllib.parse

import jax
import pytest

import jaxunpool.nnx

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "docs"))
import reference

ROOT = pathlib.Path(__file__).parent.parent
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors, self.pictures = [], [], {""}, []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.anchors |= {named[key] for key in ("id", "name") if named.get(key)}
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])
        if tag in LOADED and named.get(LOADED[tag]) and named.get("rel") not in ("next", "prev"):
            self.loaded.append(named[LOADED[tag]])
        if tag == "img":
            self.pictures.append(named)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return {path.relative_to(folder): Page(path) for path in folder.rglob("*.html")}, folder


@pytest.mark.thorough
def test_every_link_leads_somewhere(site):
    pages, folder = site
    assert len(pages) > 20
    for name, page in pages.items():
        if name.name == "404.html":
            continue  # served from anywhere: its links are absolute
        for link in page.links + page.loaded:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme:
                continue
            path = folder / name.parent / urllib.parse.unquote(parts.path)
            target = path.resolve().relative_to(folder.resolve()) if parts.path else name
            assert (folder / target).is_file(), (name, link)
            if target in pages:
                anchor = urllib.parse.unquote(parts.fragment)
                assert anchor in pages[target].anchors or anchor.startswith("__"), (name, link)


@pytest.mark.thorough
def test_nothing_is_loaded_from_elsewhere(site):
    for name, page in site[0].items():
        assert not [address for address in page.loaded if "//" in address], name


@pytest.mark.thorough
def test_every_picture_says_what_it_shows(site):
    pictures = [(name, p) for name, page in site[0].items() for p in page.pictures]
    assert len(pictures) > 15
    for name, picture in pictures:
        assert picture.get("alt"), (name, picture["src"])


def test_every_page_of_the_folder_is_in_the_navigation(site):
    pages, _ = site
    linked = {link.split("#")[0] for link in pages[pathlib.Path("index.html")].links}
    missing = {str(name) for name in pages} - linked - {"404.html"}
    assert not missing - {"index.html"}


# The search of the site, as a browser runs it: in a worker, which gets the index and then queries.
SEARCH = """
const [worker, index, ...queries] = process.argv.slice(1), fs = require("fs");
let receive, answer;
global.self = global;
global.addEventListener = (type, listener) => { receive = listener; };
global.postMessage = (message) => answer(message.data);
const ask = (type, data) => new Promise((resolve) => {
  answer = resolve;
  receive({data: {type, data}});
});
(0, eval)(fs.readFileSync(worker, "utf8"));
(async () => {
  await ask(0, {options: {}, ...JSON.parse(fs.readFileSync(index))});
  const found = [];
  for (const query of queries) found.push((await ask(2, query)).items);
  console.log(JSON.stringify(found.map((pages) => pages[0]?.[0].location ?? null)));
})();
"""
FIRST = {
    "unpool": "api/unpooling.html",
    "max_unpool": "api/unpooling.html",
    "return_indices": "porting/pytorch.html",
    "upsample": "api/resampling.html",
    "segmentation": "api/models.html",
    "MaxPoolingWithArgmax2D": "porting/keras.html",
}


@pytest.mark.thorough
@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
def test_search_brings_the_page_that_answers_first(site):
    _, folder = site
    (worker,) = (folder / "assets/javascripts/workers").glob("search.*.js")
    command = ["node", "-e", SEARCH, worker, folder / "search/search_index.json", *FIRST]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = [location.partition("#")[0] for location in json.loads(done.stdout)]
    assert dict(zip(FIRST, found)) == FIRST


def test_every_module_has_an_example_that_runs():
    modules = set(jaxunpool.nnx.__all__) - set(reference.WRITTEN_OUT)
    assert set(reference.EXAMPLES) == modules
    for name in sorted(modules):
        code = compile(reference.example(name), name, "exec")
        jax.eval_shape(lambda code=code: exec(code, {}))
