"""int8 where there are no 8-bit instructions: run by ``perf/int8.py`` in processes in which Numba and OpenBLAS are held back.

Alone: ``NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma OPENBLAS_CORETYPE=Haswell python -m perf.int8_older AVX2``.
"""

import sys

from minidistill.kernels import cpu
from perf.harness import measure, report, threads
from perf.int8 import SPIN, product_sides

SHAPES = (1, 1024, 1024), (32, 784, 300), (256, 784, 300), (256, 1024, 1024)


def main(name):
    with threads(2):
        rows = [measure(f"{m} x {k} x {n}", product_sides(m, k, n, floats=True), {"float32 BLAS": 1}, settle=SPIN)
                for m, k, n in SHAPES]  # fmt: skip
    return report(f"int8_{name.replace(' ', '_')}", f"int8 held to {name}: {cpu.kinds()[0]}", rows)


if __name__ == "__main__":
    print(main(sys.argv[1]))
