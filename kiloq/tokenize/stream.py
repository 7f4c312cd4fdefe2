"""Token ids to text as they come: complete characters only.

A token may end in the middle of a UTF-8 character. The decoder keeps such a start back until the character is whole,
so U+FFFD never stands for a character that is still arriving; bytes that can no longer become one follow the errors
policy at once. The space that SentencePiece puts before a text is left out. All pieces together, with the flush, are exactly the text that `Tokenizer.decode` gives for all ids.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """One text in the making. `push` each id, `flush` at the end."""

    def __init__(self, bytes_of: Callable[[int], bytes], errors: str = "replace", drop_space: bool = False) -> None:
        self._bytes_of = bytes_of
        self._drop_space = self._drops_next = drop_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, "" if none."""
        data = self._bytes_of(token_id)
        if self._drops_next and data:
            data, self._drops_next = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What an unfinished character at the end stands for under the errors policy; the decoder is new again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._drops_next = self._drop_space
        return rest
