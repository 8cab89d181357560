from typing import Final

from typing_extensions import Buffer

KEY_BYTES: Final[int]

def aead(key: Buffer, /) -> object: ...
