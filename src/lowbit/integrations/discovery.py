"""Being known to a library as soon as it is used, without importing it before.

Importing transformers takes seconds, which `import lowbit` and `lowbit --help` should not. So a finder waits on
`sys.meta_path` for one module, lets it be imported as ever and then imports the module of ours that registers.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def import_after(name: str, follower: str) -> None:
    """Import module `follower` right after module `name`; at once where that is imported already."""
    if name in sys.modules:
        import_module(follower)
    else:
        sys.meta_path.insert(0, _Follower(name, follower))


class _Follower(MetaPathFinder):
    def __init__(self, name: str, follower: str) -> None:
        self._name, self._follower = name, follower

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == self._name else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_both(module: ModuleType) -> None:
            execute(module)
            import_module(self._follower)

        spec.loader.exec_module = execute_both  # type: ignore[method-assign]  # the loader is made for this one import
        return spec
