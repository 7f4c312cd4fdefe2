"""What schemathesis is told about the data it makes: most requests name the model that is served and hold a conversation.

Without that nearly all are refused for the same two fields, whose rules the description cannot tell, and nothing else
is tried. The rest stays as it was made, right or wrong.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis

CONVERSATION = [{"role": "user", "content": "say:hello 世界"}]


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Which ones: by the body itself, so that the same seed makes the same requests."""
    size = len(str(body))
    if isinstance(body, dict) and size % 10:
        body = body | {"model": os.environ["KILOQ_MODEL"]}
        if "messages" in body and size % 3:
            body["messages"] = CONVERSATION
        if isinstance(body.get("input"), dict) and size % 3:
            body["input"] = {"messages": CONVERSATION}
    return body
