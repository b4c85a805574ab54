# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files from outside: uploads, downloads from web servers, and what a web server tells of a file."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from orrery.access.rules import AllOf, AnyOf, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum, Pattern, Text
from orrery.api.parameters import Boolean, NodeParams, Params, StorageParams
from orrery.api.upload import Destination, Upload, receive_upload
from orrery.drivers.storage.base import StorageDriver
from orrery.drivers.storage.usage import require_room
from orrery.errors import OrreryError, ParameterError
from orrery.model.volume import upload_name
from orrery.operations.volume import PublishUpload
from orrery.operations.volume_download import CHECKSUMS, COMPRESSIONS, DownloadUrl, hasher, proxy_of

STORAGE: Final = "/nodes/{node}/storage/{storage}"
TEMPLATES: Final = Perm("/storage/{storage}", ("Datastore.AllocateTemplate",))
NETWORK: Final = AnyOf((Perm("/", ("Sys.Audit", "Sys.Modify")), Perm("/nodes/{node}", ("Sys.AccessNetwork",))))

_KIND = Enum("iso", "vztmpl", "import", doc="What the file is.")
Content = Annotated[str, _KIND]
FileName = Annotated[str, Text(max_length=255, doc="Name of the file on the storage.")]
Checksum = Annotated[str, Text(max_length=128, requires="checksum-algorithm", doc="What the file's checksum must be.")]
Algorithm = Annotated[str, Enum(*CHECKSUMS, requires="checksum", doc="Kind of the checksum.")]
Url = Annotated[str, Pattern(r"https?://.*", max_length=4096, doc="Address of the file.")]


class UploadForm(StorageParams):
    """An upload: a multipart form whose last part is the file, by the name `filename`."""

    content: Content | None = Field(default=None, description="Comes before the file; required.")
    filename: FileName | None = Field(default=None, description="The file itself, the last part; required.")
    checksum: Checksum | None = None
    checksum_algorithm: Algorithm | None = None
    tmpfilename: Annotated[str, Text(doc="Only for use within a node; refused.")] | None = None


class UploadFields(Params):
    """The fields before the file."""

    content: Content
    filename: FileName
    checksum: Checksum | None = None
    checksum_algorithm: Algorithm | None = None


class Download(StorageParams):
    """A download."""

    url: Url
    content: Content
    filename: FileName
    checksum: Checksum | None = None
    checksum_algorithm: Algorithm | None = None
    compression: Annotated[str, Enum(*COMPRESSIONS, doc="How the file is packed; it is unpacked.")] | None = None
    verify_certificates: Boolean = Field(default=True, description="Refuse servers that nobody vouches for.")


class QueryUrl(NodeParams):
    """A file on a web server."""

    url: Url
    verify_certificates: Boolean = Field(default=True, description="Refuse servers that nobody vouches for.")


def volume_name(content: str, filename: str) -> str:
    """The name of a volume for a file's name. Raises ParameterError."""
    try:
        return upload_name(content, filename)
    except ValueError as error:
        text = str(error)
        known = "wrong file extension"  # the whole text that clients know
        raise ParameterError({"filename": known if text.startswith(known) else text}) from error


@endpoint(
    "POST",
    STORAGE + "/upload",
    params=UploadForm,
    permission=TEMPLATES,
    returns=str,
    task=True,
    proxy="node",
    upload=True,
)
async def upload(call: Call, p: UploadForm) -> str:
    """Upload a file. A file of the same name is replaced when the upload is whole and verified."""
    if p.tmpfilename is not None:
        raise ParameterError({"tmpfilename": "is not taken from outside"})
    if p.filename is not None or call.request is None:
        raise ParameterError({"filename": "must be the file, as the last part of the body"})
    reception = _Reception(call, p)
    received = await receive_upload(call.request, reception.begin)
    return await asyncio.shield(asyncio.to_thread(reception.publish, received))


class _Reception:
    """One upload on its way: what its fields said, and where it goes. Its methods run in threads."""

    def __init__(self, call: Call, p: UploadForm) -> None:
        self.call = call
        self.sent = {"content": p.content, "checksum": p.checksum, "checksum-algorithm": p.checksum_algorithm}
        self.storage = p.storage
        self.announced = int(call.request.headers.get("content-length", 0)) if call.request else 0
        self.volume: str
        self.fields: UploadFields
        self.driver: StorageDriver

    def begin(self, fields: Mapping[str, str], filename: str) -> Destination:
        """Judges what came before the file, and makes a place for it."""
        if "tmpfilename" in fields:
            raise ParameterError({"tmpfilename": "is not taken from outside"})
        self.fields = UploadFields.from_wire({**fields, **_given(self.sent), "filename": filename})
        self.volume = volume_name(self.fields.content, filename)
        self.call.audit(f"volume={self.storage}:{self.volume}")
        driver = self.call.services.context.storages.content_allowed(self.storage, self.fields.content)
        self.driver = driver
        driver.activate()
        require_room(driver, self.announced)
        staged = driver.staging(self.volume)
        algorithm = self.fields.checksum_algorithm
        return Destination(
            path=staged,
            digest=hasher(algorithm) if algorithm else None,
            discard=lambda: driver.discard(staged),
            watch=lambda: require_room(driver, 0),
        )

    def publish(self, received: Upload) -> str:
        """Starts the task that gives the upload its name; no task, no file."""
        operation = PublishUpload(
            storage=self.storage,
            volume=self.volume,
            staged=str(received.path),
            size=received.size,
            checksum=self.fields.checksum,
            algorithm=self.fields.checksum_algorithm,
            computed=received.computed,
        )
        try:
            return str(self.call.start(operation))
        except OrreryError:
            self.driver.discard(received.path)
            raise


def _given(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


@endpoint(
    "POST",
    STORAGE + "/download-url",
    params=Download,
    permission=AllOf((TEMPLATES, NETWORK)),
    returns=str,
    task=True,
    proxy="node",
)
def download(call: Call, p: Download) -> Any:
    """Fetch a file from a web server into the storage."""
    if p.compression is not None and p.content == "vztmpl":
        raise ParameterError({"compression": "templates stay packed; only media and images are unpacked"})
    operation = DownloadUrl(
        storage=p.storage,
        volume=volume_name(p.content, p.filename),
        url=p.url,
        checksum=p.checksum,
        algorithm=p.checksum_algorithm,
        compression=p.compression,
        verify_certificates=p.verify_certificates,
    )
    return call.start(operation)


@endpoint(
    "GET",
    "/nodes/{node}/query-url-metadata",
    params=QueryUrl,
    permission=NETWORK,
    returns=dict[str, Any],
    proxy="node",
    waits=True,
)
def query_url(call: Call, p: QueryUrl) -> dict[str, Any]:
    """Name, size and type of a file on a web server, as the server tells them."""
    from orrery.drivers.storage import fetch  # the HTTP client's memory is for those who use it

    found = fetch.metadata(p.url, verify=p.verify_certificates, proxy=proxy_of(call.services.store))
    told = {"filename": found.filename, "size": found.size, "mimetype": found.mimetype}
    return {name: value for name, value in told.items() if value is not None}
