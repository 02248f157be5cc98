"""What combines the pillars. Choosing what runs: read ``choose``. Deep Compression and bits for a budget of bytes are in
``lab/``.
"""

from ..lazy import names_from_lab
from .choose import Chosen, choose

__getattr__, __dir__ = names_from_lab(
    __name__,
    sharing="SharedDense k_means share_weights",
    compression="HuffmanDense compress decompress load_compressed save_compressed",
    stages="compression_report",
    plans="Choice Front Plan Point",
    search="Sensitivity",
    budget="fit_budget sensitivity",
)
