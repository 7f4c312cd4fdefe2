"""One run on many processes: who they are, how a network is spread over them, and how they pass a batch through it."""
