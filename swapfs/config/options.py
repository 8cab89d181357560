"""Every option of an instance, once: the table.

Made from it: the keys of the TOML file, the options of ``up``, ``mount`` and ``check-config``,
what ``check-config`` prints, the defaults of ``Config``, the reference in docs/configuration.md
and deploy/swapfs.toml.example (``reference.py``). A new option is a row in the module of its
section, and a field of ``Config``. ``option.py`` says what is in a row.
"""

from __future__ import annotations

from typing import Any, Final

from swapfs.config.options_instance import INSTANCE, MONITORING
from swapfs.config.options_placement import PLACEMENT
from swapfs.config.options_room import ROOM

OPTIONS: Final = (*ROOM, *PLACEMENT, *MONITORING, *INSTANCE)
"""Every option, in the order in which it is shown and fitted."""
BY_KEY: Final = {option.key: option for option in OPTIONS}

DEFAULTS: Final[dict[str, Any]] = {option.key: option.default for option in OPTIONS}
"""As the fields of ``Config`` have them."""
