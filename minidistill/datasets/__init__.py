"""Data sets: one class, the digits that ship with the package, and readers of the usual files.

Read `dataset.py` first, then `digits.py`; the others (`idx.py`, `tables.py`, `download.py`, `ratings.py`,
`augment.py`) stand beside each other. Given up for simplicity: everything fits into memory.
"""

from .augment import shift
from .dataset import Batch, Dataset
from .digits import load_digits
from .download import data_home, fetch
from .idx import load_fashion_mnist, load_mnist, read_idx
from .ratings import MadeRatings, make_ratings
from .tables import Ratings, load_csv, load_movielens, load_npz
