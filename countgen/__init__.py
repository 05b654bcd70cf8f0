"""Generate exactly N objects with Diffusers models, and know that the number is right.

Everything a user needs is an attribute of this package. Names are looked up when they are first
used, so that ``import countgen`` itself stays fast and loads neither torch nor diffusers.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

from countgen._siblings import check_siblings as _check_siblings

_check_siblings()

__version__ = "0.1.0.dev0"

# Public name -> the module that defines it. The one place to add a name to.
_EXPORTS = {
    "CountGuidedPipeline": "countgen.pipeline",
    "CountPipelineOutput": "countgen.pipeline",
    "CountPrompt": "countgen.prompts",
    "CountTarget": "critics.targets",
    "Method": "countgen.guidance.methods",
    "load_critic": "countgen.presets",
    "load_generator": "countgen.presets",
    "parse_prompt": "countgen.prompts",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> _Any:
    if name in _EXPORTS:
        value = getattr(_import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    from difflib import get_close_matches

    nearest = get_close_matches(name, __all__, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else f" It has: {', '.join(__all__)}."
    raise AttributeError(f"countgen has no attribute {name!r}.{hint}", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
