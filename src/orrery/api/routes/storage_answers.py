# SPDX-License-Identifier: AGPL-3.0-or-later
"""/nodes/{node}/storage/{storage}/answer-disk: media with answers for installers. Not part of the compatible API."""

from typing import Annotated

from pydantic import Field

from orrery.access.rules import Perm
from orrery.access.shadow import hashed
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum, Format, ListOf, Text
from orrery.api.parameters import StorageParams
from orrery.drivers.storage import iso9660
from orrery.errors import ParameterError
from orrery.model import answers
from orrery.model.answers import FIRMWARES, SYSTEMS, Answers, Firmware, System
from orrery.model.cloudinit import LONGEST_KEYS, check_ssh_keys, ssh_keys
from orrery.model.volume import upload_name
from orrery.system import files


class AnswerDisk(StorageParams):
    """What the installer is told."""

    filename: Annotated[str, Text(max_length=255, doc="Name of the medium on the storage, such as web1.iso.")]
    system: Annotated[System, Enum(*SYSTEMS, doc="Whose installer.")]
    hostname: Annotated[str, Text(max_length=63, doc="Name of the new system.")]
    user: Annotated[str, Text(max_length=32, doc="Name of its first user, who may do everything.")]
    password: Annotated[
        str, Text(max_length=255, doc="The user's password; for Linux it may be a crypt hash, and becomes one.")
    ]
    domain: Annotated[str, Text(max_length=253, doc="Its domain (Linux).")] = ""
    sshkeys: Annotated[
        str, Text(format="urlencoded", max_length=LONGEST_KEYS, doc="Public keys of the user, percent-encoded (Linux).")
    ] = ""
    packages: Annotated[list[str], ListOf(Format("pve-configid"), doc="Packages to install besides (Linux).")] = Field(
        default=[]
    )
    locale: Annotated[str, Text(max_length=40, doc="Language, such as it_IT.UTF-8 or it-IT.")] = ""
    keyboard: Annotated[str, Text(max_length=40, doc="Layout of the keyboard, such as it or it-IT.")] = ""
    timezone: Annotated[str, Text(max_length=64, doc="Time zone as the system calls it.")] = ""
    edition: Annotated[str, Text(max_length=80, doc="Which of the editions on the medium (Windows).")] = ""
    product_key: Annotated[str, Text(max_length=40, doc="Product key (Windows).")] = ""
    firmware: Annotated[Firmware, Enum(*FIRMWARES, doc="What the machine boots by (Windows).")] = "bios"


@endpoint(
    "POST",
    "/nodes/{node}/storage/{storage}/answer-disk",
    params=AnswerDisk,
    permission=Perm("/storage/{storage}", ("Datastore.AllocateTemplate",)),
    returns=str,
    proxy="node",
    waits=True,
)
def make_answer_disk(call: Call, p: AnswerDisk) -> str:
    """Make a medium with answers for an installer, so that a system installs itself; its volume id."""
    given = Answers(
        system=p.system,
        hostname=p.hostname,
        user=p.user,
        password=p.password if p.system == "windows" or not p.password else hashed(p.password),
        domain=p.domain,
        keys=_keys(p.sshkeys),
        packages=tuple(p.packages),
        locale=p.locale,
        keyboard=p.keyboard,
        timezone=p.timezone,
        edition=p.edition,
        product_key=p.product_key,
        firmware=p.firmware,
    )
    names = {"keys": "sshkeys", "product_key": "product-key"}
    if wrong := answers.faults(given):
        raise ParameterError({names.get(name, name): text for name, text in wrong.items()})
    made = answers.medium(given)
    return _place(call, p, iso9660.image(made.label, made.files))


def _keys(text: str) -> tuple[str, ...]:
    try:
        check_ssh_keys(text)
    except ValueError as error:
        raise ParameterError({"sshkeys": str(error)}) from error
    return tuple(ssh_keys(text))


def _place(call: Call, p: AnswerDisk, image: bytes) -> str:
    driver = call.services.context.storages.content_allowed(p.storage, "iso")
    try:
        name = upload_name("iso", p.filename)
    except ValueError as error:
        raise ParameterError({"filename": str(error)}) from error
    driver.activate()
    staged = driver.staging(name)
    try:
        staged.write_bytes(image)
        driver.publish(staged, name)
    except OSError as error:
        raise files.failure(error, f"unable to write '{p.storage}:{name}'") from error
    finally:
        driver.discard(staged)
    return f"{p.storage}:{name}"
