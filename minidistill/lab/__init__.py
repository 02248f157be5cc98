"""The laboratory: methods that one lesson studies, and that the engine does not need. Nothing here is imported before its
first use (``lazy.py``); users find the names in the packages that the methods belong to.

- Deep Compression (``deploy.share_weights``): ``sharing``, ``huffman``, ``gaps``, ``compression``, then ``stages``.
- Bits for a budget of bytes (``deploy.fit_budget``): ``plans``, ``knapsack``, ``search``, ``budget``, then ``plot_bits``.
- 16-bit arithmetic (``fit(..., precision="float16")``): ``round16``, ``precision``, ``underflow``, then ``plot_underflow``.
- Lottery tickets (``prune.lottery_tickets``): ``tickets``.
"""
