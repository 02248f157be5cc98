"""Figures, in one style (``style.py``).

Every function returns a matplotlib ``Figure``, and writes it to ``path`` as a PNG if one is given. No window is opened and no
global state of pyplot is touched; matplotlib is imported on the first figure.
"""

from ..lazy import names_from_lab
from .distillation import label_study, reliability_diagram
from .pruning import sensitivity
from .trade_off import pareto
from .training import confusion_matrix, training_curves

__getattr__, __dir__ = names_from_lab(__name__, plot_bits="bits", plot_underflow="underflow")
