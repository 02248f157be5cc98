"""int8 where there is nothing but AVX2: run by ``perf/int8.py`` in a process with Numba and OpenBLAS held to a Haswell.

Alone: ``NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma OPENBLAS_CORETYPE=Haswell python -m perf.int8_haswell``.
"""

from minidistill.kernels import cpu
from perf.harness import measure, report, threads
from perf.int8 import SPIN, product_sides


def main():
    with threads(2):
        rows = [measure(f"{m} x {k} x {n}", product_sides(m, k, n, floats=True), {"float32 BLAS": 1}, settle=SPIN)
                for m, k, n in ((256, 784, 300), (256, 1024, 1024), (1, 1024, 1024))]  # fmt: skip
    return report("int8_haswell", f"int8 by {cpu.kinds()[0]}", rows)


if __name__ == "__main__":
    print(main())
