# SPDX-License-Identifier: AGPL-3.0-or-later
"""Groups of users."""

from typing import Any

from orrery.access.permissions import Permissions
from orrery.access.records import GROUPS, drop_acl, plain_name, require_group
from orrery.errors import AlreadyExists, NotFound
from orrery.model.identity import Identity
from orrery.store.base import Store
from orrery.store.documents import Transaction, atomically, read_document, read_documents

SEE_GROUP = ("User.Modify", "Group.Allocate", "Sys.Audit")


class Groups:
    """Groups and their members."""

    def __init__(self, store: Store, permissions: Permissions) -> None:
        self._store = store
        self._permissions = permissions

    def list(self, caller: Identity) -> list[dict[str, Any]]:
        """The groups that the caller may see; users as a comma list."""
        return [
            {"groupid": group, **_comment(document), "users": ",".join(document["users"])}
            for group, document in read_documents(self._store, GROUPS).items()
            if self._permissions.allowed(caller, f"/access/groups/{group}", SEE_GROUP, any=True)
        ]

    def read(self, group: str) -> dict[str, Any]:
        """One group. Raises `NotFound`."""
        document = read_document(self._store, GROUPS + plain_name(group, "groupid"))
        if document is None:
            raise NotFound(f"group '{group}' does not exist")
        return {**_comment(document), "members": document["users"]}

    def create(self, group: str, comment: str | None = None) -> None:
        """Makes an empty group. Raises `AlreadyExists`."""
        key = GROUPS + plain_name(group, "groupid")

        def create(transaction: Transaction) -> None:
            if transaction.read(key) is not None:
                raise AlreadyExists(f"create group failed: group '{group}' already exists")
            transaction.write(key, {"comment": comment or "", "users": []})

        atomically(self._store, create)

    def update(self, group: str, comment: str | None = None) -> None:
        """Sets the comment if one is given. Raises `NotFound`."""

        def update(transaction: Transaction) -> None:
            document = require_group(transaction, group)
            if comment is not None:
                transaction.write(GROUPS + group, {**document, "comment": comment})

        atomically(self._store, update)

    def delete(self, group: str) -> None:
        """Removes a group and its permissions; its members lose what they had by it. Raises `NotFound`."""

        def delete(transaction: Transaction) -> None:
            require_group(transaction, group)
            transaction.remove(GROUPS + group)
            drop_acl(transaction, lambda entry: entry["type"] == "group" and entry["ugid"] == group)

        atomically(self._store, delete)


def _comment(document: dict[str, Any]) -> dict[str, str]:
    return {"comment": document["comment"]} if document.get("comment") else {}
