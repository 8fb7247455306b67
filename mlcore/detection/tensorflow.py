"""TensorFlow for detection, with what official.vision needs of it and without what it rarely uses."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any, ClassVar

from mlcore.cluster import tensorflow as cluster_tensorflow
from mlcore.runtime.extras import require

# Imported by official.vision at its top, used by code that no detection task runs; together about a second of
# start-up, and tensorflow_datasets wants a dozen packages more.
_RARELY_USED = ("tensorflow_datasets", "matplotlib.pyplot")


class _LateModule(ModuleType):
    """A module that is imported when something in it is used.

    `importlib.util.LazyLoader` is not enough: it loads at any access, and `inspect.getmodule`, which TensorFlow calls,
    looks at `__file__` of every module that there is.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            _LateFinder.names.discard(self.__name__)
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _LateFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes `import x` bind a late module for the names that it knows."""

    names: ClassVar[set[str]] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in self.names else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _LateModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: that is the point."""


def _import_late(names: tuple[str, ...]) -> None:
    if not any(isinstance(finder, _LateFinder) for finder in sys.meta_path):
        _LateFinder.names.update(name for name in names if name not in sys.modules)
        sys.meta_path.insert(0, _LateFinder())


def import_tensorflow() -> Any:
    """TensorFlow, with tf_keras as its Keras and without its chatter on stderr.

    Raises:
        UsageError: TensorFlow or tf-models-official is not installed; the message has the command.
    """
    _import_late(_RARELY_USED)
    tensorflow = cluster_tensorflow.import_tensorflow(extra="detection")
    # official.vision hands its decoders all levels of the backbone, also those that they do not use.
    warnings.filterwarnings("ignore", message="Input dict contained keys", module="tf_keras")
    for package in ("tf_keras", "official", "pycocotools"):
        require(package, extra="detection")
    return tensorflow
