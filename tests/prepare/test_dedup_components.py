"""Connected components, in memory and in files: equal to union-find on random graphs, chains and stars."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import naive_dedup

from kiloq.core.errors import MissingError
from kiloq.prepare.dedup import components as module
from kiloq.prepare.dedup.components import components, forest
from kiloq.prepare.dedup.joins import LABELS, label_files

Edges = Sequence[tuple[int, int]]


def random_graph(nodes: int, edges: int, seed: int) -> Edges:
    """Pairs of different nodes, the smaller first; some nodes have no edge."""
    rng = random.Random(seed)
    return [(min(pair), max(pair)) for pair in (rng.sample(range(nodes), 2) for _ in range(edges))]


def shuffled_chain(nodes: int, seed: int) -> Edges:
    order = random.Random(seed).sample(range(nodes), nodes)
    return [(min(pair), max(pair)) for pair in pairwise(order)]


GRAPHS: dict[str, Edges] = {
    "none": [],
    "one edge": [(3, 2**64 - 1)],
    "random": random_graph(400, 260, seed=1),
    "dense": random_graph(60, 500, seed=2),
    "chain": [(node, node + 1) for node in range(300)],
    "chain in disorder": shuffled_chain(300, seed=3),
    "star from the smallest": [(0, node) for node in range(1, 300)],
    "star from the largest": [(node, 300) for node in range(300)],
    "two stars and a bridge": [(0, n) for n in range(2, 50, 2)] + [(1, n) for n in range(3, 50, 2)] + [(48, 49)],
}


def arrays(edges: Edges) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(edges, np.uint64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def as_dict(nodes: np.ndarray, roots: np.ndarray) -> dict[int, int]:
    assert np.array_equal(nodes, np.unique(nodes))
    return dict(zip(nodes.tolist(), roots.tolist(), strict=True))


@pytest.mark.parametrize("name", GRAPHS)
def test_components_in_memory(name: str) -> None:
    assert as_dict(*components(*arrays(GRAPHS[name]))) == naive_dedup.components(GRAPHS[name])


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20), st.randoms())
def test_components_in_any_order_and_table_by_table(edges: list[tuple[int, int]], rng: random.Random) -> None:
    naive = naive_dedup.components(edges)
    assert as_dict(*components(*arrays(edges))) == naive
    rng.shuffle(edges)
    cut = rng.randint(0, len(edges))
    assert as_dict(*forest([arrays(edges[:cut]), arrays(edges[cut:])])) == naive


def test_a_forest_is_folded_as_edges_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDED_EDGES", 10)
    edges = GRAPHS["random"]
    tables = [arrays(edges[at : at + 7]) for at in range(0, len(edges), 7)]
    assert as_dict(*forest(tables)) == naive_dedup.components(edges)
    assert as_dict(*forest([])) == {}


def test_a_chain_of_a_million() -> None:
    order = np.random.default_rng(4).permutation(1_000_000).astype(np.uint64)
    nodes, roots = components(order[:-1], order[1:])
    assert len(nodes) == 1_000_000
    assert not roots.any()


def write(folder: Path, edges: Edges) -> list[Path]:
    """Three files of edges, one of them empty."""
    left, right = arrays(edges)
    cuts = (slice(0, len(left) // 3), slice(0, 0), slice(len(left) // 3, None))
    paths = [folder / f"edges-{number}.parquet" for number in range(3)]
    for path, cut in zip(paths, cuts, strict=True):
        pq.write_table(pa.table({"left": left[cut], "right": right[cut]}), path)
    return paths


@pytest.mark.parametrize("most", [1_000_000, 150], ids=["one partition", "several"])
@pytest.mark.parametrize(
    "name", ["none", "random", "chain in disorder", "star from the largest", "two stars and a bridge"]
)
def test_components_in_files(name: str, most: int, tmp_path: Path) -> None:
    pytest.importorskip("daft")
    edges = GRAPHS[name]
    written = label_files(write(tmp_path, edges), tmp_path / "labels", tmp_path / "work", most)
    tables = [pq.read_table(path) for path in written]
    assert all(table.schema == LABELS for table in tables)
    assert all(table == table.sort_by("doc") for table in tables)
    roots = [set(table.column("root").to_pylist()) for table in tables]
    assert sum(map(len, roots)) == len(set().union(*roots)), "a component lies in two files"
    rows = [row for table in tables for row in zip(*table.to_pydict().values(), strict=True)]
    assert dict(rows) == naive_dedup.components(edges)
    assert len(dict(rows)) == len(rows)
    assert not (tmp_path / "work").exists()


def test_label_files_have_the_same_bytes_again(tmp_path: Path) -> None:
    pytest.importorskip("daft")
    paths = write(tmp_path, GRAPHS["random"])
    once, again = (label_files(paths, tmp_path / name, tmp_path / "work", 300) for name in ("once", "again"))
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert len(once) > 1


def test_a_folder_may_be_named_like_a_pattern(tmp_path: Path) -> None:
    pytest.importorskip("daft")
    folder = tmp_path / "a*?[b]{c,d} 北方"
    folder.mkdir()
    (labels,) = label_files(write(folder, [(1, 2)]), folder / "labels", folder / "work")
    assert pq.read_table(labels).to_pydict() == {"doc": [1, 2], "root": [1, 1]}


def test_daft_is_told_to_report_nothing(tmp_path: Path) -> None:
    pytest.importorskip("daft")
    label_files(write(tmp_path, []), tmp_path / "labels", tmp_path / "work")
    assert os.environ["DAFT_ANALYTICS_ENABLED"] == "0"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "daft", None)
    with pytest.raises(MissingError, match=r"pip install 'kiloq\[data\]'"):
        label_files([], tmp_path / "labels", tmp_path / "work")
