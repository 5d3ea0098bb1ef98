"""The rules of the house, read off the syntax trees: who may import whom, and which files an article has."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALL_ARTICLES = {"hourglass", "yolov1", "yolov3", "ssd", "cyclegan", "autoencoders", "textclf"}
ARTICLES = sorted(name for name in ALL_ARTICLES if (ROOT / name / "__init__.py").exists())
FILES = ["model.py", "loss.py", "preprocess.py", "train.py", "evaluate.py", "predict.py", "export.py", "README.md"]


def imported_packages(path):
    """First parts of all modules that a file imports, wherever in the file; "." for its own folder."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else node.module.split(".")[0])
    return found


def test_the_walk_sees_imports_inside_functions(tmp_path):
    path = tmp_path / "file.py"
    path.write_text("import os.path\ndef f():\n    from ssd.model import vgg\n    from . import loss\n")
    assert imported_packages(path) == {"os", "ssd", "."}


@pytest.mark.parametrize("path", sorted((ROOT / "common").rglob("*.py")), ids=lambda path: path.name)
def test_common_imports_no_article(path):
    assert not imported_packages(path) & (ALL_ARTICLES | {"tests", "benchmarks"})


@pytest.mark.parametrize("article", ARTICLES)
def test_an_article_imports_no_other(article):
    for path in (ROOT / article).rglob("*.py"):
        assert not imported_packages(path) & (ALL_ARTICLES - {article} | {"tests", "benchmarks"}), path


@pytest.mark.parametrize("article", ARTICLES)
def test_a_model_imports_no_sibling(article):
    assert not imported_packages(ROOT / article / "model.py") & {article, "."}


@pytest.mark.parametrize("article", ARTICLES)
def test_an_article_has_the_files_of_all(article):
    assert [name for name in FILES if not (ROOT / article / name).exists()] == []
