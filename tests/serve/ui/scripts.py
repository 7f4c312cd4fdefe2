"""What the stub server answers: scripts chosen by a word in the last message, and payloads that must stay text."""

from __future__ import annotations

import math
import re
from typing import Any

# Each tries to run a script (which would set window.pwned), open a dialog or send a request elsewhere. RFC 2606 reserves
# example.invalid, so even a request that got out would reach nobody.
PAYLOADS = [
    "<script>window.pwned = 1</script>",
    '<img src=x onerror="window.pwned = 1">',
    '<svg onload="alert(1)"><animate onbegin="window.pwned=1" attributeName=x dur=1s></svg>',
    "[click](javascript:window.pwned=1)",
    "[click](JaVaScRiPt&colon;alert(1)) [tab](java\tscript:alert(1))",
    "![pixel](https://example.invalid/pixel.png)",
    "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIj48L3N2Zz4=)",
    "[data](data:text/html,<script>window.pwned=1</script>)",
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe><iframe src="https://example.invalid/"></iframe>',
    "<style>@import url(https://example.invalid/x.css); * { background: url(https://example.invalid/b.png) }</style>",
    '<p style="background:url(https://example.invalid/c.png)">styled</p>',
    '<form action="https://example.invalid/"><input name=key autofocus onfocus="window.pwned=1"><button>Go</button></form>',
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.pwned=1&gt;">',
    '<details open ontoggle="window.pwned=1"><summary>x</summary></details><base href="https://example.invalid/">',
    '<link rel=stylesheet href="https://example.invalid/l.css"><meta http-equiv=refresh content="0;url=https://example.invalid/">',
    '```html"><img src=x onerror=window.pwned=1>\n</code></pre><script>window.pwned=1</script>\n```',
    "$\\href{javascript:window.pwned=1}{x} \\includegraphics{https://example.invalid/k.png} \\html@mathml{<img src=x onerror=alert(1)>}{y}$",
    '| a |\n|---|\n| <video poster="https://example.invalid/v.png" src=x onerror="window.pwned=1"> |',
    '<a href="https://example.invalid/" ping="https://example.invalid/ping" onclick="window.pwned=1">plain link</a>',
    '<div id=app name=querySelector class="dialog toast"><template shadowrootmode=open><script>window.pwned=1</script></template></div>',
    "https://example.invalid/auto <https://example.invalid/angle> \u202e\u0000\ufeff",
    '<object data="javascript:alert(1)"></object><embed src="https://example.invalid/e.swf"><audio src="https://example.invalid/a.mp3" autoplay>',
    '<code><b style="background:url(https://example.invalid/raw.png)" onmouseover=window.pwned=1 x < y</code>',
]

MARKDOWN = """## A tour

A paragraph with **strong**, *soft* and `inline code`, a [link](https://example.invalid/page), and the formula $e^{i\\pi} + 1 = 0$.

1. first
2. second
   - nested

```python
def greet(name: str) -> str:
    # a comment
    return f"Hello, {name}!"
```

| quantity | value | unit |
|---|---|---|
| speed of light | 299,792,458 | m/s |
| standard gravity | 9.80665 | m/s² |

> Quoted words.

$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$

- [x] done
- [ ] open
"""

CHINESE = "你好，世界！\n\n这是第二段。"
SLOW = " ".join(f"word{number}" for number in range(2000))


def script(messages: list[dict[str, Any]]) -> tuple[str, str, float]:
    """Kind (text, tool, error, cut), text and seconds a token for a conversation."""
    last = messages[-1]
    text = str(last.get("content") or "")
    if last["role"] == "tool":
        return "text", f"The tool said: {text}", 0.0
    if found := re.search(r"payload (\d+)", text):
        return "text", PAYLOADS[int(found[1])], 0.0
    for word, answer in {
        "slow": ("text", SLOW, 0.03),
        "markdown": ("text", MARKDOWN, 0.0),
        "think": ("text", "<think>Let me see.</think>The answer is **2**.", 0.0),
        "chinese": ("text", CHINESE, 0.0),
        "weather": ("tool", "", 0.0),
        "both": ("tools", "", 0.0),
        "break": ("error", "Half an answ", 0.0),
        "cut": ("cut", "As far as the limit", 0.0),
        "refuse": ("refuse", "", 0.0),
    }.items():
        if word in text.lower():
            return answer
    return "text", f"You said: {text}", 0.0


def pieces(text: str) -> list[bytes]:
    """Tokens of the stub: words with their blank, but Chinese cut inside characters, as byte-level tokenizers do."""
    found = []
    for piece in re.findall(r"\n+| ?[A-Za-z0-9]+| ?[^\sA-Za-z0-9]|[ \t]", text):
        data = piece.encode()
        found += [data[:2], data[2:]] if len(data) == 3 and piece in "世界" else [data]
    return found


def entry(data: bytes, probability: float) -> dict[str, Any]:
    """One token as the API shows it."""
    number = int.from_bytes(data[-2:], "big")
    return {"token": data.decode(errors="replace"), "bytes": list(data), "logprob": math.log(probability), "id": number}


def scored(data: bytes, position: int) -> dict[str, Any]:
    """A token with its alternatives; probabilities run through all bands."""
    probability = [0.97, 0.62, 0.31, 0.11, 0.02][position % 5]
    rest = (1 - probability) / 8
    others = [(b" other", rest), (b" thing", rest / 2), (b"\n", rest / 3), (b"\xe5\xad", rest / 4)]
    ranked = sorted([(data, probability), *others], key=lambda pair: -pair[1])
    return {**entry(data, probability), "top_logprobs": [entry(*pair) for pair in ranked]}
