"""The one way up the house: what lives in ``lab/`` is imported when it is first used.

A method that only one lesson studies is found under the name of its package, ``deploy.share_weights``, and costs nothing
where it is not used. Nothing needs to be read before this file.
"""

from importlib import import_module


def import_lab(name):
    """The module ``lab/<name>.py``."""
    return import_module(f"minidistill.lab.{name}")


def names_from_lab(package, **homes):
    """``__getattr__`` and ``__dir__`` (PEP 562) of a package that shows names of ``lab`` as its own.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    **homes : str
        Names that users find in the package, separated by spaces, by the file of ``lab`` that defines them.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def find(name):
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_lab(home_of[name]), name)

    return find, lambda: sorted({*vars(import_module(package)), *home_of})
