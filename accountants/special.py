"""SciPy's special functions, loaded when the first of them is called: half of the time of `import accountants` otherwise."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    from scipy import special

    function = getattr(special, name)
    globals()[name] = function
    return function
