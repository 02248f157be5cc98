"""Figures, in one style (``style.py``).

Every function returns a matplotlib ``Figure``, and writes it to ``path`` as a PNG if one is given. No window is opened and no
global state of pyplot is touched; matplotlib is imported on the first figure.
"""

from .bits import bits
from .distillation import label_study, reliability_diagram
from .precision import underflow
from .pruning import sensitivity
from .trade_off import pareto
from .training import confusion_matrix, training_curves
