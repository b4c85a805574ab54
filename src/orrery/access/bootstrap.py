# SPDX-License-Identifier: AGPL-3.0-or-later
"""The access state that a new node begins with."""

from orrery.access.realms.local import LocalRealm, shadow_key
from orrery.access.records import ACL, REALMS, USERS
from orrery.model.identity import ROOT, UserId
from orrery.store.base import Store
from orrery.store.documents import Transaction, atomically

ADMIN = UserId("admin", "pve")

BUILT_IN_REALMS = {
    "pam": {"type": "pam", "comment": "Linux PAM standard authentication"},
    "pve": {"type": "pve", "comment": "Orrery authentication server", "default": 1},
}


def initialize(store: Store, admin_password: str, *, realm: LocalRealm | None = None) -> None:
    """Makes the realms, root@pam, and admin@pve with this password and the role Administrator on everything.

    What is there already stays, except for the password, so that an interrupted initialization can be repeated.
    Raises `Failure` for an unusable password.
    """
    shadow = (realm or LocalRealm(store)).hashed(admin_password)
    user = {"enable": 1, "expire": 0}
    grant = {"path": "/", "type": "user", "ugid": str(ADMIN), "roleid": "Administrator", "propagate": 1}
    documents = {
        **{REALMS + name: document for name, document in BUILT_IN_REALMS.items()},
        USERS + str(ROOT): user,
        USERS + str(ADMIN): user,
        ACL: [grant],
    }

    def begin(transaction: Transaction) -> None:
        for key, document in documents.items():
            if transaction.read(key) is None:
                transaction.write(key, document)
        transaction.write(shadow_key(ADMIN), shadow)

    atomically(store, begin)
