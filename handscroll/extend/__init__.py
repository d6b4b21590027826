"""Extension methods, bake-off and tuning.

The folder and the public function `handscroll.extend(lm, to=...)` have the same name. Any import from this folder makes
Python bind the folder to that name, so the folder itself must be callable.
"""

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        from handscroll.extend.extend import extend

        return extend(*args, **settings)


sys.modules[__name__].__class__ = _Verb
