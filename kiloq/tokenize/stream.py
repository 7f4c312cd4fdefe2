"""Token ids to text as they come: complete characters only.

A token may end in the middle of a UTF-8 character. The decoder keeps such a start back until the character is whole,
so U+FFFD never stands for a character that is still arriving; bytes that can no longer become one follow the errors
policy at once. All pieces together, with the flush, are exactly the text that `Tokenizer.decode` gives for all ids.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """One text in the making. `push` each id, `flush` at the end."""

    def __init__(self, bytes_of: Callable[[int], bytes], errors: str = "replace") -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, "" if none."""
        return self._decoder.decode(self._bytes_of(token_id))

    def flush(self) -> str:
        """What an unfinished character at the end stands for under the errors policy; the decoder is new again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
