"""Pictures as files: by graphviz, for networkx and Model Explorer, and what happens where something is missing."""

from __future__ import annotations

import dataclasses
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from shearfx.cli import app
from shearfx.errors import ShearError
from shearfx.pruning_plan import of_cuts
from shearfx.viz import dot, exports, files, page
from shearfx.viz.build import scene_of
from shearfx.viz.scene import Box, Fold, Item, Op, Scene, operators
from tests.tiny_models import traced

NEEDS_DOT = pytest.mark.skipif(shutil.which("dot") is None, reason="no graphviz (on Debian: apt install graphviz)")
NASTY = [
    "</script><script>alert(1)</script>", "<b>&amp;\"'", "back\\slash\\N\\l", "{{data}}", "<", ">", "\x00\x1b", "é→",
    "",
]  # fmt: skip


def renamed(scene: Scene, name: str) -> Scene:
    """The scene with a name of a stranger's choice wherever the names of modules and parameters stand."""

    def of(item: Item) -> Item:
        if isinstance(item, Op):
            return dataclasses.replace(item, title=name, source=name, tensors=tuple(f"{t}{name}" for t in item.tensors))
        if isinstance(item, Fold):
            return dataclasses.replace(item, title=name, copies=tuple(tuple(map(of, copy)) for copy in item.copies))
        return dataclasses.replace(item, title=name, path=name, detail=name, children=tuple(map(of, item.children)))

    root = of(scene.root)
    assert isinstance(root, Box)
    groups = {
        n: dataclasses.replace(g, reason=name, members=tuple((f"{t}{name}", d, m) for t, d, m in g.members))
        for n, g in scene.groups.items()
    }
    tensors = {f"{n}{name}": dataclasses.replace(t, name=f"{n}{name}") for n, t in scene.tensors.items()}
    pins = tuple(dataclasses.replace(p, reason=name, source=name) for p in scene.pins)
    return dataclasses.replace(scene, title=name, root=root, groups=groups, tensors=tensors, pins=pins)


def names_for_tests() -> st.SearchStrategy[str]:
    return st.sampled_from(NASTY) | st.text(st.characters(codec="utf-8"), max_size=30)


def data_of_page(text: str) -> dict[str, Any]:
    """What a browser reads: a script of data ends at the first ``</script``, whatever it holds."""
    _, _, rest = text.partition('<script type="application/json" id="data">')
    found: dict[str, Any] = json.loads(rest[: rest.lower().index("</script")])
    return found


# -- names of strangers ------------------------------------------------------------------------------------


@given(names_for_tests())
@settings(max_examples=20)
def test_any_name_survives_in_a_page(name: str) -> None:
    scene = renamed(scene_of(traced("convolutions")[1]), name)
    text = page.to_html(scene)
    data = data_of_page(text)
    assert data["title"] == name
    assert data["texts"][data["root"]["t"]] == name
    assert text.count("<script") == 2
    assert text.rstrip().endswith("</html>")


@given(names_for_tests())
@settings(max_examples=20)
def test_any_name_survives_in_an_export(name: str) -> None:
    scene = renamed(scene_of(traced("convolutions")[1]), name)
    read = networkx.parse_graphml(exports.graphml(scene)[".graphml"].decode())
    again = networkx.node_link_graph(json.loads(exports.node_link(scene)[".json"]), edges="edges")
    assert set(read) == set(again) == {op.name for op in operators(scene.root)}
    if name.isprintable():
        assert {attributes["title"] for _, attributes in again.nodes(data=True)} == {name}


@NEEDS_DOT
@pytest.mark.parametrize("name", [*NASTY, "a" * 3000, "line\nline", "\\", "<<b>>", "]]>", "&#92;", "%s{0}"])
def test_any_name_survives_in_a_picture(name: str) -> None:
    root = ElementTree.fromstring(dot.to_svg(renamed(scene_of(traced("perceptron")[1]), name)))
    texts = {"".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")}
    if name.isprintable() and 0 < len(name) <= 40:
        assert name.strip() in texts
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))


# -- graphviz ----------------------------------------------------------------------------------------------


@NEEDS_DOT
def test_pictures_come_in_the_format_of_their_suffix(tmp_path: Path) -> None:
    scene = scene_of(traced("llama")[1])
    starts = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF", "dot": b"digraph"}
    for suffix, start in starts.items():
        (path,) = files.write(scene, tmp_path / f"graph.{suffix}")
        assert path.read_bytes().startswith(start)
    text = (tmp_path / "graph.svg").read_text()
    for part in ("q_proj", "apply_rotary_pos_emb", "kv*group*(d+d)", "× 2", "pinned", "prefers-color-scheme"):
        assert part in text, part
    assert len(text) < 200_000


@NEEDS_DOT
def test_a_plan_is_laid_over_the_picture() -> None:
    graph = traced("perceptron")[1]
    plan = of_cuts(graph, {graph.groups[0].name: range(4)})
    plain, cut = dot.to_svg(scene_of(graph)), dot.to_svg(scene_of(graph, plan))
    assert "of its parameters cut" in cut
    assert f"{graph.groups[0].size}→4" in cut
    assert "of its parameters cut" not in plain


def test_without_graphviz_its_source_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dot, "has_program", lambda: False)
    with pytest.raises(ShearError, match=r"(?s)graph\.dot.*apt install graphviz.*html"):
        files.write(scene_of(traced("perceptron")[1]), tmp_path / "graph.svg")
    assert (tmp_path / "graph.dot").read_text().startswith("digraph")
    assert not (tmp_path / "graph.svg").exists()
    with pytest.raises(ShearError, match="apt install graphviz"):  # the same source again is no other file
        files.write(scene_of(traced("perceptron")[1]), tmp_path / "graph.png")


@pytest.mark.parametrize(
    ("asked", "beside"), [("graph.svg", "graph.dot"), ("graph.explorer.json", "graph.groups.json")]
)
def test_no_file_beside_the_one_asked_for_is_replaced(
    asked: str, beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dot, "has_program", lambda: False)
    (tmp_path / beside).write_text("mine")
    with pytest.raises(ShearError, match="the file exists"):
        files.write(scene_of(traced("perceptron")[1]), tmp_path / asked)
    assert [path.name for path in tmp_path.iterdir()] == [beside]
    assert (tmp_path / beside).read_text() == "mine"


# -- exports -----------------------------------------------------------------------------------------------


def test_exports_hold_every_operator_and_edge() -> None:
    scene = scene_of(traced("llama")[1])
    ops = {op.name: op for op in operators(scene.root)}
    graph = networkx.parse_graphml(exports.graphml(scene)[".graphml"].decode())
    assert set(graph.edges) == {(name, op.name) for op in ops.values() for name in op.inputs}
    assert networkx.is_directed_acyclic_graph(graph)
    written = exports.explorer(scene)
    collection = json.loads(written[".explorer.json"])
    (model,) = collection["graphs"]
    nodes = {node["id"]: node for node in model["nodes"]}
    assert set(nodes) == set(ops)
    for name, node in nodes.items():
        assert {e["sourceNodeId"] for e in node["incomingEdges"]} == set(ops[name].inputs)
    assert any(node["namespace"].endswith("self_attn/q_proj") for node in nodes.values())
    results = json.loads(written[".groups.json"])[model["id"]]["results"]
    assert set(results) == {op.name for op in ops.values() if op.groups or op.fixed}


# -- the command -------------------------------------------------------------------------------------------


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "nets_to_show.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def mlp():\n    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(2, 4),)\n"
        "def other():\n    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)), (torch.randn(2, 4),)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "nets_to_show"


def test_show_writes_what_was_asked_for(factory: str, tmp_path: Path) -> None:
    result = call("show", f"{factory}:mlp", "-o", "a.html", "-o", "a.explorer.json", "-o", "a.dot", "--json")
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout)["written"]
    assert written == ["a.html", "a.explorer.json", "a.groups.json", "a.dot"]
    assert all((tmp_path / name).stat().st_size > 500 for name in written)
    again = call("show", f"{factory}:mlp", "-o", "a.html")
    assert again.exit_code == 1
    assert "the file exists" in again.stderr
    assert call("show", f"{factory}:mlp", "-o", "a.html", "--overwrite").exit_code == 0


def test_a_picture_that_cannot_be_drawn_takes_no_other_with_it(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dot, "has_program", lambda: False)
    result = call("show", f"{factory}:mlp", "-o", "a.svg", "-o", "a.html")
    assert result.exit_code == 1
    assert "apt install graphviz" in result.stderr and "wrote a.html" in result.stderr
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.dot", "a.html"]


@pytest.mark.parametrize(
    ("out", "said"),
    [("graph.gif", "end it with one of .svg"), ("graph", "says nothing of how to draw"), (".svg", "says nothing"),
     ("nowhere/graph.svg", "folder that does not exist")],
)  # fmt: skip
def test_show_refuses_before_it_loads_anything(out: str, said: str, factory: str) -> None:
    result = call("show", "no/such/model", "-o", out)
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())


def test_show_refuses_a_plan_of_another_model(factory: str, tmp_path: Path) -> None:
    asked = ("--ratio", "0.3", "--saliency", "magnitude", "-o", "plan.json", "--plan-only")
    made = call("prune", f"{factory}:other", *asked)
    assert made.exit_code == 0, made.output
    result = call("show", f"{factory}:mlp", "--plan", "plan.json", "-o", "graph.html")
    assert result.exit_code == 1
    assert "the plan was made for" in result.stderr
    assert not (tmp_path / "graph.html").exists()
    assert call("show", f"{factory}:other", "--plan", "plan.json", "-o", "graph.html").exit_code == 0


def test_show_has_help_with_examples() -> None:
    text = call("show", "--help").stdout
    for part in ("Examples", "shearfx show", "--plan", "--json", ".html"):
        assert part in text
