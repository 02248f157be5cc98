"""What combines the pillars. Deep Compression: read ``sharing``, ``huffman``, ``gaps``, ``compression``, then ``stages``.
Choosing what runs: ``choose``. Bits for a budget: ``plans``, ``knapsack``,
``search``, then ``budget``.
"""

from .budget import fit_budget, sensitivity
from .choose import Chosen, choose
from .compression import HuffmanDense, compress, decompress, load_compressed, save_compressed
from .plans import Choice, Front, Plan, Point
from .search import Sensitivity
from .sharing import SharedDense, k_means, share_weights
from .stages import compression_report
