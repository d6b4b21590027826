"""Extension methods, bake-off and tuning.

The folder is named after its verb and so is the public function, `handscroll.extend(lm, to=...)`. Importing
anything in here makes Python bind the folder to that name, so the folder itself answers the call.
"""

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        from handscroll.extend.extend import extend

        return extend(*args, **settings)


sys.modules[__name__].__class__ = _Verb
