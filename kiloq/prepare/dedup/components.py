"""Connected components of a graph of documents, in one process.

Every node carries the smallest label that it knows of. In a round each root takes the smallest root that an edge joins
it to, then paths are shortened to their ends; the rounds are at most logarithmic squared in the number of nodes, also
on chains. Source: Liu and Tarjan 2019, "Simple concurrent labeling algorithms for connected components". Edges that
come table by table are folded into a forest of stars as they come, so that memory follows the documents that have
copies (some 100 bytes each, and as much again while folding) and not the edges, of which every band has its own. For
more documents than fit there is kiloq.prepare.dedup.joins, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kiloq.prepare.dedup.normal import Array

FOLDED_EDGES = 4_000_000  # gathered before they are folded, or as many as the forest has if those are more. Ours


def forest(edges: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    """As `components`, of edges that come in many tables."""
    nodes = roots = np.empty(0, np.uint64)
    waiting: list[tuple[Array, Array]] = []
    for pair in edges:
        waiting.append(pair)
        if sum(len(left) for left, _ in waiting) >= max(FOLDED_EDGES, len(nodes)):
            nodes, roots = _folded(nodes, roots, waiting)
            waiting = []
    return _folded(nodes, roots, waiting)


def _folded(nodes: Array, roots: Array, edges: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    lefts, rights = zip((roots, nodes), *edges, strict=True)
    return components(np.concatenate(lefts), np.concatenate(rights))


def components(left: Array, right: Array) -> tuple[Array, Array]:
    """All nodes of the edges, sorted, and the smallest node of each one's component: uint64 [nodes] each."""
    # Asked for the inverse numpy sorts, and a sort takes a fifth of the time of the hash table that it uses else.
    nodes, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    labels = _labels(places[: len(left)], places[len(left) :], len(nodes))
    return nodes, nodes[labels]


def _labels(left: Array, right: Array, count: int) -> Array:
    """The smallest node, int64 [count], of the component of each of the nodes 0 to count - 1."""
    labels = np.arange(count)
    while len(left):
        np.minimum.at(labels, left, right)
        np.minimum.at(labels, right, left)
        shorter = labels[labels]
        while (shorter != labels).any():
            labels, shorter = shorter, shorter[shorter]
        left, right = labels[left], labels[right]
        apart = left != right
        left, right = left[apart], right[apart]
    return labels
