"""Text to ids and back: byte-level BPE, control tokens, ChatML and other chat templates, vocabulary files, expansion.

Start at `tokenizer.py`; `bpe.py` is the algorithm, `chatml.py` the conversation.
"""
