# SPDX-License-Identifier: AGPL-3.0-or-later
"""/access/domains: the realms that users belong to."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import AllOf, Perm, World
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum, Flag, Format, Int, ListOf, Pattern, Text
from orrery.api.parameters import DeleteList, Digest, NoParams, Params

ALLOCATE = Perm("/access/realm", ("Realm.Allocate",))

Word = Annotated[str, Text(max_length=256)]
Switch = Annotated[bool, Flag()]


class RealmParams(Params):
    """One realm."""

    realm: Annotated[str, Format("pve-realm", max_length=32, doc="Name of the realm.")]


class RealmSettings(RealmParams):
    """Settings of realms of all types. What a type does not have, or is not supported yet, is refused by name."""

    comment: Annotated[str, Text(max_length=4096, doc="A note.")] | None = None
    default: Annotated[bool, Flag(doc="Whether pages offer this realm first.")] | None = None
    tfa: Annotated[str, Text(max_length=128, doc="Second factor that all users need.")] | None = None
    # Directories
    base_dn: Word | None = Field(default=None, alias="base_dn")
    bind_dn: Word | None = Field(default=None, alias="bind_dn")
    capath: Annotated[str, Text()] | None = None
    case_sensitive: Switch | None = None
    cert: Annotated[str, Text()] | None = None
    certkey: Annotated[str, Text()] | None = None
    check_connection: Switch | None = None
    domain: Annotated[str, Pattern(r"\S+", max_length=256)] | None = None
    filter: Annotated[str, Text(max_length=2048)] | None = None
    group_classes: Annotated[list[str], ListOf(Format("ldap-simple-attr"))] | None = Field(
        default=None, alias="group_classes"
    )
    group_dn: Word | None = Field(default=None, alias="group_dn")
    group_filter: Annotated[str, Text(max_length=2048)] | None = Field(default=None, alias="group_filter")
    group_name_attr: Annotated[str, Format("ldap-simple-attr", max_length=256)] | None = Field(
        default=None, alias="group_name_attr"
    )
    mode: Annotated[str, Enum("ldap", "ldaps", "ldap+starttls")] | None = None
    password: Annotated[str, Text(max_length=1024)] | None = None
    port: Annotated[int, Int(minimum=1, maximum=65535)] | None = None
    secure: Switch | None = None
    server1: Annotated[str, Format("address", max_length=256)] | None = None
    server2: Annotated[str, Format("address", max_length=256)] | None = None
    sslversion: Annotated[str, Enum("tlsv1", "tlsv1_1", "tlsv1_2", "tlsv1_3")] | None = None
    sync_defaults_options: Annotated[str, Text(max_length=1024)] | None = None
    sync_attributes: Annotated[str, Pattern(r"\w+=[^,]+(,\s*\w+=[^,]+)*", max_length=1024)] | None = Field(
        default=None, alias="sync_attributes"
    )
    user_attr: Annotated[str, Pattern(r"\S{2,}", max_length=256)] | None = Field(default=None, alias="user_attr")
    user_classes: Annotated[list[str], ListOf(Format("ldap-simple-attr"))] | None = Field(
        default=None, alias="user_classes"
    )
    verify: Switch | None = None
    # OpenID Connect
    acr_values: Annotated[str, Pattern(r"[^\x00-\x1F\x7F <>#\"]*")] | None = None
    autocreate: Switch | None = None
    client_id: Word | None = None
    client_key: Word | None = None
    groups_autocreate: Switch | None = None
    groups_claim: Annotated[str, Pattern(r"[A-Za-z0-9.\-_]+", max_length=256)] | None = None
    groups_overwrite: Switch | None = None
    issuer_url: Word | None = None
    prompt: Annotated[str, Pattern(r"\S+")] | None = None
    query_userinfo: Switch | None = None
    scopes: Annotated[str, Text()] | None = None

    def settings(self) -> dict[str, Any]:
        """What was sent, by its name on the wire."""
        known = type(self).model_fields
        beside = {"realm", "type", "delete", "digest"}
        return {
            str(known[name].alias): int(value) if isinstance(value := getattr(self, name), bool) else value
            for name in sorted(self.model_fields_set - beside)
        }


class CreateRealm(RealmSettings):
    type: Annotated[str, Enum("ad", "ldap", "openid", "pam", "pve", doc="Kind of realm.")]
    username_claim: Annotated[str, Text()] | None = None


class UpdateRealm(RealmSettings):
    delete: DeleteList = Field(default=[])
    digest: Digest | None = None


class SyncRealm(RealmParams):
    dry_run: Switch = False
    enable_new: Switch = True
    full: Switch | None = None
    purge: Switch | None = None
    remove_vanished: (
        Annotated[str, Pattern(r"(?:(?:(?:acl|properties|entry);)*(?:acl|properties|entry))|none")] | None
    ) = None
    scope: Annotated[str, Enum("users", "groups", "both")] | None = None


@endpoint("GET", "/access/domains", params=NoParams, permission=World(), returns=list[dict[str, Any]])
def list_realms(call: Call, p: NoParams) -> list[dict[str, Any]]:
    """Realms, for whoever wants to log in."""
    return call.services.directory.domains.list()


@endpoint("POST", "/access/domains", params=CreateRealm, permission=ALLOCATE)
def create_realm(call: Call, p: CreateRealm) -> None:
    """Make a realm; no type that could be made is supported yet."""
    call.services.directory.domains.create(p.realm, p.type)


@endpoint(
    "GET",
    "/access/domains/{realm}",
    params=RealmParams,
    permission=Perm("/access/realm", ("Realm.Allocate", "Sys.Audit"), any=True),
    returns=dict[str, Any],
)
def read_realm(call: Call, p: RealmParams) -> dict[str, Any]:
    """Settings of a realm."""
    return call.services.directory.domains.read(p.realm)


@endpoint("PUT", "/access/domains/{realm}", params=UpdateRealm, permission=ALLOCATE)
def update_realm(call: Call, p: UpdateRealm) -> None:
    """Change a realm's settings."""
    call.services.directory.domains.update(p.realm, p.settings(), delete=p.delete, digest=p.digest)


@endpoint("DELETE", "/access/domains/{realm}", params=RealmParams, permission=ALLOCATE)
def delete_realm(call: Call, p: RealmParams) -> None:
    """Remove a realm."""
    call.services.directory.domains.delete(p.realm)


@endpoint(
    "POST",
    "/access/domains/{realm}/sync",
    params=SyncRealm,
    permission=AllOf(
        (Perm("/access/realm/{realm}", ("Realm.AllocateUser",)), Perm("/access/groups", ("User.Modify",)))
    ),
    returns=str,
    task=True,
)
def sync_realm(call: Call, p: SyncRealm) -> None:
    """Take over users and groups of a directory; no realm has one yet."""
    call.services.directory.domains.sync(p.realm)
