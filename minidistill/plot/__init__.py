"""Figures, in one style (``style.py``).

Every function returns a matplotlib ``Figure``, and writes it to ``path`` as a PNG if one is given. No window is opened and no
global state of pyplot is touched; matplotlib is imported on the first figure.
"""

from .bits import bits
from .distillation import heat_map, label_study, reliability_diagram, softened_probabilities
from .graph import tape
from .precision import underflow
from .pruning import crossover, sensitivity, sparsity_pattern
from .trade_off import pareto
from .training import confusion_matrix, training_curves
from .weights import quantization_grid, weight_histogram
