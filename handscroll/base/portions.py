"""How much is computed at a time: who computes reads these sizes here, and so does the planner. Imports no torch.

The planner counts what a portion takes. It imports no torch, and most of what computes lies above it.
"""

EDGE = 64  # chunks of a training step are multiples of so many tokens
# Tokens of a prompt in a forward, by device; a GPU has room for more tokens, and needs them for full use.
PREFILL = {"cpu": 1024, "cuda": 8192}
MLP_TILE = 512  # of these, tokens that the MLP reads at a time on a CPU: 1,024 took 60 MiB more (Qwen 0.5B)
# Bytes of one chunk of float32 logits in a loss: small enough for a laptop's memory, large enough for fast products. A
# GPU has more memory, and needs more rows per product to be busy.
LOGITS = {"cpu": 32 << 20, "cuda": 256 << 20}
# Keys of a call of fused attention on a GPU: it makes the gradients of its keys for every query head, also for shared
# kv heads.
RUN = 32_768
QUERIES = 512  # tokens of a query tile that needs a mask tensor
KEYS = 512  # tokens of the key blocks that a mask is asked about: the fewest keys of a mask with numbers for every head
WIDEST = 8192  # most keys under one mask tensor: 512 x 8192 float32 are 16 MiB a row
