# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changing passwords."""

from collections.abc import Mapping

from orrery.access.login import Login
from orrery.access.realms.base import Realm
from orrery.access.records import require_realm, require_user, user_id
from orrery.errors import Forbidden, NotSupported, ParameterError, Unauthenticated
from orrery.model.identity import ROOT, Identity
from orrery.store.base import Store
from orrery.store.documents import Transaction


class Passwords:
    """Changes passwords in whatever realm keeps them."""

    def __init__(self, store: Store, realms: Mapping[str, Realm], login: Login) -> None:
        self._store = store
        self._realms = realms
        self._login = login

    def change(
        self, caller: Identity, userid: str, password: str, *, confirmation: str | None = None, origin: str
    ) -> None:
        """Sets a user's password. All but root@pam prove themselves by their own current password.

        Everybody may change their own; who may change others' is for the endpoint's rule to say, but the passwords
        of root@pam and of the host's other accounts are for root@pam alone (and for their owners).
        Raises `NotFound`, `Forbidden`, `ParameterError`, `NotSupported`, `Failure`.
        """
        user = user_id(userid)
        transaction = Transaction(self._store)
        require_user(transaction, user)
        kind = require_realm(transaction, user.realm)["type"]
        if not caller.is_root:
            if caller.user != user and (user == ROOT or kind == "pam"):
                raise Forbidden("Permission check failed")
            self._confirm(caller, confirmation, origin)
        realm = self._realms.get(user.realm)
        if realm is None:
            raise NotSupported(f"passwords of the realm '{user.realm}' cannot be changed here")
        realm.set_password(user, password)

    def _confirm(self, caller: Identity, confirmation: str | None, origin: str) -> None:
        name = "confirmation-password"
        if confirmation is None:
            raise ParameterError({name: "give your own current password to confirm the change"})
        try:
            # A ticket would prove nothing beyond the session that asks.
            self._login.authenticate(str(caller.user), confirmation, origin, tickets=False)
        except Unauthenticated as error:
            raise ParameterError({name: "this is not your current password"}) from error
