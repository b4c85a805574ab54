# SPDX-License-Identifier: AGPL-3.0-or-later
"""Options that prepare a machine from inside: judging them, and hashing the password before anything keeps it."""

from collections.abc import Iterable, Mapping

from orrery.access.shadow import hashed
from orrery.api.call import Call
from orrery.api.guestconfig import refuse_faults
from orrery.api.guestrights import parsed_volume
from orrery.api.volumerights import require_read
from orrery.errors import OrreryError, ParameterError
from orrery.model import cloudinit
from orrery.model.machine_properties import CLOUD_INIT_FILES
from orrery.model.volume import VolumeId

PASSWORD = "cipassword"


def judged_secrets(
    call: Call, options: Mapping[str, str], after: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The options that a request sets, and apart from them those that nobody may see, the password as a hash.

    `after`: all options as they will be. Raises `ParameterError` for what cannot be told to a guest, `Forbidden` for
    files that the caller may not read.
    """
    refuse_faults({key: fault for key, fault in cloudinit.faults(after).items() if key in options})
    require_snippets(call, options.get("cicustom", ""))
    plain = {key: text for key, text in options.items() if key != PASSWORD}
    return plain, {PASSWORD: _hashed(options[PASSWORD])} if PASSWORD in options else {}


def require_snippets(call: Call, text: str, sections: Iterable[str] | None = None) -> None:
    """Raises `Forbidden` unless the caller may read the files of `cicustom` (those of some sections only)."""
    for section, volume in CLOUD_INIT_FILES.parse(text).items():
        if sections is None or section in sections:
            found = VolumeId.parse(str(volume))
            require_read(call, found.storage, parsed_volume("cicustom", found))


def _hashed(password: str) -> str:
    if not password:
        return password
    try:
        return hashed(password)
    except OrreryError as error:
        raise ParameterError({PASSWORD: error.message}) from error
