"""Opening what the configuration describes as a tier, for a monitor or a server that adds one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from swapfs.config.backing import FileTierConfig
from swapfs.config.far import FarConfig
from swapfs.config.model import Config
from swapfs.config.tiers import TierConfig
from swapfs.errors import OperationError
from swapfs.host import engine_memory
from swapfs.host.sha256 import sha256
from swapfs.region.layout import Region
from swapfs.tiers.base import Tier
from swapfs.tiers.file import FileTier, Known
from swapfs.tiers.seal import ChecksumSeal, Seal
from swapfs.tiers.sector_tier import SectorTier

if TYPE_CHECKING:
    from swapfs.tiers.valkey import ValkeyTier

    Medium = FileTier | ValkeyTier


def open_file(
    file: FileTierConfig, region: Region, fd: int | None = None, known: Known | None = None
) -> FileTier:
    """Return the file tier at the place *file*.

    :param fd: of another process that had it open; *known* then is what that had found out
    :raises SwapfsError: it cannot be opened
    """
    seal = _seal(file, region)
    return FileTier(file.path, file.size_bytes, file.direct_io, seal=seal, fd=fd, known=known)


def open_tier(config: Config, tier: TierConfig, region: Region, fd: int | None = None) -> Medium:
    """Return what *tier* is kept on.

    :param fd: of another process that had it open, and whose region this is
    :raises SwapfsError: it cannot be opened, or is not fit for pages
    """
    if tier.far is None:
        return open_file(tier.file, region, fd)
    return _open_far(config, tier.file, tier.far, region, new=fd is None)


def take_over(
    config: Config, tier: TierConfig, region: Region, fd: int, known: Known | None
) -> Medium:
    """Return what *tier* is kept on, which another process has just opened as *fd*: ours now.

    :raises SwapfsError: it cannot be opened
    """
    if tier.far is None:
        return open_file(tier.file, region, fd, known)
    try:
        return open_tier(config, tier, region, fd)
    finally:
        os.close(fd)  # far memory has one of its own


def _open_far(
    config: Config, file: FileTierConfig, far: FarConfig, region: Region, *, new: bool
) -> ValkeyTier:
    # As for the cipher: the client is an extra, and large.
    try:
        from swapfs.tiers.engine import ANSWER_S, Place
        from swapfs.tiers.valkey import ValkeyTier
    except ImportError as error:
        raise OperationError(f"far memory needs pip install 'swapfs[valkey]' ({error})") from error
    place = Place(
        socket=None if far.nodes else file.path,
        nodes=far.nodes,
        cluster=far.cluster,
        tls=far.tls,
        ca_file=far.ca_file,
        user=far.user,
        password_file=far.password_file,
    )
    of_instance = sha256(region.blob_key).hex()[:12]
    prefix = f"swapfs:{config.name}:"
    tier = ValkeyTier(place, file.size_bytes, f"{prefix}{of_instance}:", _seal(file, region))
    if new:
        tier.check(prefix)
        if place.socket is not None and not config.unsafe:
            _require_out_of_swap(place.socket, ANSWER_S)
    return tier


def _require_out_of_swap(path: Path, timeout_s: float) -> None:
    pid = engine_memory.peer_of(path, timeout_s)
    if not engine_memory.is_kept_out_of_swap(pid):
        raise OperationError(
            f"{path}: the engine (process {pid}) may itself be swapped out, to where only it can "
            "bring it back from: give its unit MemorySwapMax=0, or take the risk with --unsafe"
        )


def tier_on(medium: Medium) -> Tier:
    """Return the tier that a server has on *medium*."""
    return SectorTier(medium) if isinstance(medium, FileTier) else medium


def _seal(file: FileTierConfig, region: Region) -> Seal:
    return _cipher(bytes(region.blob_key)) if file.encryption else ChecksumSeal()


def _cipher(key: bytes) -> Seal:
    # Not imported above: 5 MiB of locked memory that is only here for instances that encrypt. A
    # server has it from us, by fork; it reads no library from a disk while it serves.
    from swapfs.tiers.aead import AeadSeal

    return AeadSeal(key)
