"""report.html of a search for a mix: what is proposed, whether it held when it was tried, and how well laws foresaw."""

from __future__ import annotations

from kiloq.core.chart import bars, points
from kiloq.core.page import cell, page
from kiloq.prepare.mix_search.search import Found, Search

SHARES = ("the corpus as it is", "proposed")


def report_page(plan: Search, found: Found) -> str:
    """The whole page."""
    rows = {name: (plan.natural[name], found.shares[name]) for name in plan.natural}
    parts = [
        f"<p>{verdict(found)}</p>",
        "<h2>Shares of the tokens</h2>",
        bars(rows, SHARES, lambda share: f"{share:.1%}", "shares of the sources"),
        "<h2>Loss on held-out text, nats a token</h2>",
        _losses(found),
        "<h2>Mixtures that the laws had not seen</h2>",
        f"<p>{foreseen(plan, found)}</p>",
        points(found.points, "predicted loss", "measured loss"),
    ]
    return page("Search for a mix", "\n".join(parts))


def verdict(found: Found) -> str:
    """One sentence: whether the proposal is better, and by how much."""
    way = "lower" if found.gain > 0 else "higher"
    gain = f"{abs(found.gain):.4f} nats a token {way} than that of the corpus as it is"
    measured = f"{gain}, with a standard error of {found.noise:.4f}"
    if found.better:
        return f"The proposal is better: its loss is {measured}."
    return f"The proposal is not better beyond chance: its loss is {measured}. Keep the mix, or train longer proxies."


def foreseen(plan: Search, found: Found) -> str:
    """One sentence: how far the laws can be trusted."""
    return (
        f"Of {plan.held_out} mixtures that were kept from the fit the laws gave the order with a rank correlation of "
        f"{found.correlation:.2f} and the loss with an error of {found.error:.4f} nats a token."
    )


def _losses(found: Found) -> str:
    heads = ("target", *SHARES, "change", "error of a mixture left out")
    rows = [
        cell(name) + "".join(cell(f"{value:.4f}", number=True) for value in (before, after, after - before, found.laws[name].left_out))
        for name, (before, after) in found.losses.items()
    ]  # fmt: skip
    head = "".join(cell(name, number=at > 0, head=True) for at, name in enumerate(heads))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in (head, *rows)) + "</table>"
