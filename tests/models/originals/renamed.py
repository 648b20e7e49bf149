"""A network under the names of older files, which its library reads by renaming them."""

from collections.abc import Callable, Mapping
from typing import Any


class Renamed:
    """Looks like the module, but its state has the names of the files.

    `publish` makes them of the module's state (and adds buffers); `read` is the library's own way
    back, so that what it does not know or misses is an error of strict loading.
    """

    def __init__(
        self,
        module: Any,
        publish: Callable[[Mapping[str, Any]], dict[str, Any]],
        read: Callable[[Mapping[str, Any], Any], Mapping[str, Any]],
    ):
        self.module, self._publish, self._read = module, publish, read

    def __call__(self, x: Any) -> Any:
        return self.module(x)

    def eval(self) -> "Renamed":
        self.module.eval()
        return self

    def state_dict(self) -> dict[str, Any]:
        return self._publish(self.module.state_dict())

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        assert state.keys() == self.state_dict().keys()
        self.module.load_state_dict(self._read(state, self.module), strict=strict)
