# SPDX-License-Identifier: AGPL-3.0-or-later
"""Small optical media made in memory: ISO 9660 with Joliet and Rock Ridge, so that every system sees the same names.

For what guests are told about themselves: cloud-init media, answers to installers. Nothing of it is written anywhere
on the way, since it holds secrets.
"""

import io
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from orrery.errors import Failure

LONGEST_NAME: Final = 64
"""Characters of a name; Joliet has no room for more."""

_LONGEST_LABEL: Final = 32
_LONGEST_JOLIET_LABEL: Final = 16
_SYSTEM: Final = "LINUX"
_DEEPEST: Final = 7


def image(label: str, files: Mapping[str, bytes]) -> bytes:
    """An ISO 9660 image with the given files by their paths (`openstack/latest/user_data`).

    The label is kept as it is written, in both directories, since guests look for it by that. Raises `Failure` for
    labels and paths that cannot be.
    """
    # Not at the top: three MiB that the daemon and most tasks never need.
    import pycdlib
    from pycdlib.pycdlibexception import PyCdlibException

    _check_label(label)
    disc = pycdlib.PyCdlib()
    try:
        # Level 4 has names as they are, in small letters and with hyphens, for systems that read neither extension.
        disc.new(interchange_level=4, sys_ident=_SYSTEM, vol_ident=label, joliet=3, rock_ridge="1.09")
        made: set[PurePosixPath] = set()
        for name in sorted(files):
            path = _checked(name)
            for folder in reversed(path.parents):
                if folder.parts and folder not in made:
                    disc.add_directory(f"/{folder}", rr_name=folder.name, joliet_path=f"/{folder}")
                    made.add(folder)
            content = files[name]
            place = f"/{path}"
            disc.add_fp(
                io.BytesIO(content), len(content), place, rr_name=path.name, joliet_path=place, file_mode=0o100400
            )
        written = io.BytesIO()
        disc.write_fp(written)
    except PyCdlibException as error:
        raise Failure(f"the medium '{label}' cannot be made: {error}") from error
    finally:
        disc.close()
    return written.getvalue()


def _check_label(label: str) -> None:
    plain = label.isascii() and all(character.isalnum() or character in "-_" for character in label)
    if not plain or not 0 < len(label) <= _LONGEST_JOLIET_LABEL <= _LONGEST_LABEL:
        raise Failure(f"'{label}' cannot be a medium's label: up to {_LONGEST_JOLIET_LABEL} letters, digits, '-', '_'")


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    fits = all(0 < len(part) <= LONGEST_NAME and part.isascii() and part.isprintable() for part in path.parts)
    if not fits or name != str(path) or path.is_absolute() or ".." in path.parts or not 0 < len(path.parts) <= _DEEPEST:
        raise Failure(f"'{name}' cannot be the path of a file on a medium")
    return path
