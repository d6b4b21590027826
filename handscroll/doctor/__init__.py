"""The doctor: finds what is wrong in a checkpoint or a runtime, says how it shows and how to mend it (docs/doctor.md).

The folder and the public function `handscroll.doctor(model, tokenizer)` have the same name, so the folder is callable,
as `handscroll.extend` is.
"""

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        from handscroll.doctor.examine import doctor

        return doctor(*args, **settings)


sys.modules[__name__].__class__ = _Verb
