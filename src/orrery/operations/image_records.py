# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is known of the images on the storages, and the catalogue with it."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from orrery.drivers.images import simplestreams
from orrery.drivers.storage.base import StorageDriver, VolumeInfo
from orrery.errors import Failure, NotFound, OrreryError, ParameterError
from orrery.model.container import validate_options
from orrery.model.images import CATALOGUE, CONTENT, KINDS, RECORDS, ImageEntry, ImageRecord, Kind, Reference, find_entry
from orrery.model.volume import VolumeId, parse_volname
from orrery.operations.context import NodeContext
from orrery.operations.image_workshop import Web
from orrery.store.base import Store
from orrery.store.documents import decode_document, encode_document


@dataclass(frozen=True, slots=True)
class Present:
    """An image that is on a storage. `record` is None for one that nobody fetched by the catalogue."""

    volid: str
    size: int
    ctime: int
    record: ImageRecord | None


def read_record(store: Store, volid: str, size: int) -> ImageRecord | None:
    """What is known of a volume of this size; None when nothing is, or when it is another file by now."""
    entry = store.get(RECORDS + volid)
    record = ImageRecord.parse(decode_document(entry.key, entry.value)) if entry is not None else None
    return record if record is not None and record.size == size else None


def write_record(store: Store, volid: str, record: ImageRecord) -> None:
    """Says where a volume comes from."""
    store.put(RECORDS + volid, encode_document(record.document()))


def forget_record(store: Store, volid: str) -> None:
    """Forgets a volume that is gone."""
    store.delete(RECORDS + volid)


def present(ctx: NodeContext, kinds: Iterable[Kind] = KINDS) -> list[Present]:
    """The images on the storages of this node; a storage that does not answer has none."""
    wanted = {CONTENT[kind] for kind in kinds}
    found = []
    for name in ctx.storages.names():
        try:
            driver = ctx.storages.get(name)
            infos = driver.list(wanted)
        except OrreryError:
            continue
        found += [_present(ctx, driver, info) for info in infos]
    return found


def _present(ctx: NodeContext, driver: StorageDriver, info: VolumeInfo) -> Present:
    try:
        # A disk image's own size is another than that of its file.
        size = os.lstat(driver.path(info.volid.partition(":")[2])).st_size
    except (OSError, OrreryError):
        return Present(info.volid, info.size, info.ctime, None)
    return Present(info.volid, size, info.ctime, read_record(ctx.store, info.volid, size))


def entries(ctx: NodeContext) -> list[ImageEntry]:
    """The catalogue with what the image servers add; asks them, so it may wait. Raises Failure."""
    web = Web(ctx.store)
    found = list(CATALOGUE)
    for server in web.sources.servers:
        known = {(entry.alias, entry.kind) for entry in found}
        found += [entry for entry in simplestreams.entries(web, server) if (entry.alias, entry.kind) not in known]
    return found


def entry_named(ctx: NodeContext, name: str, kind: Kind) -> ImageEntry | None:
    """The entry of a name; image servers are asked only when the built-in catalogue has none. Raises Failure."""
    found = find_entry(name, kind)
    if found is None and Web(ctx.store).sources.servers:
        found = find_entry(name, kind, entries(ctx))
    return found


def required_entry(ctx: NodeContext, name: str, kind: Kind) -> ImageEntry:
    """As `entry_named`. Raises NotFound, saying what there is for the other kind."""
    found = entry_named(ctx, name, kind)
    if found is not None:
        return found
    other: Kind = "machine" if kind == "container" else "container"
    hint = f"; there is one for a {other}" if find_entry(name, other) else "; `orrery image list` shows what there is"
    raise NotFound(f"the catalogue has no image '{name}' for a {kind}{hint}")


def oci_options(ctx: NodeContext, volid: str) -> dict[str, str]:
    """Options `entrypoint` and `env` of a container that is made from an OCI image; empty for other templates.

    An image's user and working directory have no option of their own: `entrypoint` begins as root in `/`. Raises
    Failure for what an image says that no container can be told.
    """
    driver, name = ctx.storages.volume(volid)
    record = read_record(ctx.store, volid, driver.info(name).size)
    if record is None or not record.oci:
        return {}
    run = record.oci
    words = [*run.get("entrypoint", []), *run.get("cmd", [])]
    options = {}
    if words:
        options["entrypoint"] = shlex.join(str(word) for word in words)
    # The option separates by NUL, as the environment of a process does.
    if env := [str(word) for word in run.get("env", []) if "=" in str(word)]:
        options["env"] = "\0".join(env)
    try:
        return validate_options(options)
    except ParameterError as error:
        reasons = "; ".join(f"{key}: {text}" for key, text in sorted(error.errors.items()))
        raise Failure(f"the image '{volid}' says how to run it, but no container can be run so: {reasons}") from error


def parsed_reference(text: str) -> Reference:
    """The image in a registry that a text names. Raises Failure."""
    try:
        return Reference.parse(text)
    except ValueError as error:
        raise Failure(str(error)) from error


def image_volume(volid: str) -> tuple[VolumeId, Kind]:
    """A volume id and the kind of guest that is made from it. Raises Failure for a volume that is no image."""
    try:
        parsed = VolumeId.parse(volid)
        content = parse_volname(parsed.name).content
    except ValueError as error:
        raise Failure(f"unable to parse volume ID '{volid}': {error}") from error
    for kind in KINDS:
        if content == CONTENT[kind]:
            return parsed, kind
    raise Failure(f"volume '{volid}' is neither a container template nor a machine's image")
