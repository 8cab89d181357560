"""Opening what the configuration describes as a tier, for a monitor or a server that adds one."""

from __future__ import annotations

from swapfs.config.backing import FileTierConfig
from swapfs.region.layout import Region
from swapfs.tiers.file import FileTier, Known
from swapfs.tiers.seal import ChecksumSeal, Seal


def open_file(
    file: FileTierConfig, region: Region, fd: int | None = None, known: Known | None = None
) -> FileTier:
    """Return the file tier at the place *file*.

    :param fd: of another process that had it open; *known* then is what that had found out
    :raises SwapfsError: it cannot be opened
    """
    seal = _cipher(bytes(region.blob_key)) if file.encryption else ChecksumSeal()
    return FileTier(file.path, file.size_bytes, file.direct_io, seal=seal, fd=fd, known=known)


def _cipher(key: bytes) -> Seal:
    # Not imported above: 14 MiB of locked memory that is only here for instances that encrypt. A
    # server has it from us, by fork; it reads no library from a disk while it serves.
    from swapfs.tiers.aead import AeadSeal

    return AeadSeal(key)
