# SPDX-License-Identifier: AGPL-3.0-or-later
"""Storage `dir`: volumes are files in folders, laid out as Proxmox lays them out.

    images/VMID/vm-VMID-disk-N.qcow2   template/iso   template/cache   dump   snippets   import
    images/VMID/subvol-VMID-disk-N.subvol: a folder, the tree of a container without a size

Every new file grows as a staged file (`staging`) and gets its name in one step, so that a crash leaves nothing half
made: what a dead process left is removed when the storage is activated. Symbolic links are never followed out of the
storage, and a volume that is itself a link does not count as one.
"""

import contextlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from orrery.drivers.storage import attributes, image, staging, trees
from orrery.drivers.storage.base import Feature, Progress, Usage, VolumeInfo
from orrery.drivers.storage.header import ImageHeader, read_header
from orrery.drivers.storage.layout import Layout, PlainLayout
from orrery.drivers.storage.options import DirectoryOptions
from orrery.errors import AlreadyExists, Failure, NoSpace, NotFound, NotSupported, OrreryError, ParameterError
from orrery.model.volume import SUBVOL, VMID, ParsedVolume, parse_volname, volume_stem
from orrery.system import files

_FILES: Final = ("iso", "vztmpl", "backup", "snippets", "import")
_FOLDER_MODE: Final = 0o700  # guests get open files, the front gets nothing: only root needs to look in
_IMPORT_MODE: Final = 0o644
_PUBLISH_ATTEMPTS: Final = 100
_MAX_IMAGES_PER_GUEST: Final = 10_000
_GUESTS: Final = frozenset({"images", "rootdir"})


class DirectoryStorage:
    """See `base.StorageDriver`. `node` tells staged files of this node from those of others on a shared folder."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        node: str,
        layout: Layout = PlainLayout(),  # noqa: B008
    ) -> None:
        self.name = name
        self.node = node
        self._layout = layout
        self.kind = layout.kind
        self.options = DirectoryOptions.parse(options)
        self.contents = self.options.contents
        self.formats = self.options.formats
        self.container_formats = layout.container_formats
        self.sized_folders = layout.sized_folders
        self.features = frozenset({Feature.UPLOAD, *({Feature.SHARED} if self.options.shared else ())})

    # --- the storage as a whole

    def activate(self) -> None:
        """Makes missing folders and removes what dead processes left half made. Raises Failure."""
        options = self.options
        if options.mountpoint is not None and not options.mountpoint.is_mount():
            raise Failure(
                f"storage '{self.name}' is not usable: '{options.mountpoint}' is configured as a mount point, "
                "but nothing is mounted there; mount it, or change 'is_mountpoint'"
            )
        try:
            if options.create_base:
                options.path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            if not options.path.is_dir():
                raise Failure(f"storage '{self.name}' is not usable: the folder '{options.path}' does not exist")
            self._layout.activate(options.path)
            for folder in self._folders():
                if options.create_folders:
                    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
                if staging.sweep(folder, self.node) and folder == self._folder("images"):
                    _remove_empty_guests(folder)
        except OSError as error:
            raise files.failure(error, f"storage '{self.name}' is not usable") from error

    def usage(self) -> Usage:
        """Space of the file system that the storage lies on. Raises Failure when it is not there."""
        if self.options.mountpoint is not None and not self.options.mountpoint.is_mount():
            raise Failure(f"storage '{self.name}' is not mounted")
        space = files.space(self.options.path)
        return Usage(space.total, space.used, space.available)

    # --- finding volumes

    def list(self, contents: Collection[str], vmid: int | None = None) -> list[VolumeInfo]:
        """Volumes of the content types that are asked for and enabled, sorted by name; damaged ones too."""
        wanted = {*contents} & self.contents
        found: list[VolumeInfo] = []
        if wanted & _GUESTS:
            found.extend(self._images(vmid))
        for content in _FILES:
            if content in wanted:
                found.extend(self._files(content, vmid))
        return sorted(found, key=lambda info: info.volid)

    def info(self, volume: str) -> VolumeInfo:
        """One volume. Raises NotFound, Failure for a name that is none."""
        parsed = self._parse(volume)
        path = self._path(parsed)
        info = self._describe(parsed, path, self._stat(parsed, path), _Sizes(self._layout, self._folder("images")))
        if info is None:
            raise self._missing(parsed)
        return info

    def path(self, volume: str) -> Path:
        """Where the volume lies or would lie; never outside of the storage."""
        return self._path(self._parse(volume))

    def next_name(self, vmid: int, image_format: str, stem: str = "disk") -> str:
        """The lowest free `VMID/vm-VMID-STEM-N.FORMAT`; N counts across formats, since clients see it without."""
        if image_format not in (*self.formats, SUBVOL):
            raise NotSupported(f"storage '{self.name}' does not support images of format '{image_format}'")
        taken = {volume_stem(name) for name in _names(self._folder("images") / str(vmid))}
        kind = "subvol" if image_format == SUBVOL else "vm"
        for number in range(_MAX_IMAGES_PER_GUEST):
            if f"{vmid}-{stem}-{number}" not in taken:
                return self._parse(f"{vmid}/{kind}-{vmid}-{stem}-{number}.{image_format}").name
        raise Failure(f"guest {vmid} has {_MAX_IMAGES_PER_GUEST} volumes on storage '{self.name}'; no name is free")

    # --- changing images

    def allocate(self, volume: str, size: int) -> None:
        """Makes an empty image of `size` bytes (rounded up to whole blocks), or a folder, whose size must be 0."""
        parsed = self._parse(volume)
        if parsed.content == "images" and parsed.format == SUBVOL:
            with self._making(parsed, size):
                return
        parsed = self._image(volume)
        size = _whole_blocks(size)
        with self._making(parsed) as staged:
            image.create(staged, parsed.format, size, self.options.preallocation)

    def copy_in(
        self,
        source: Path,
        source_format: str,
        volume: str,
        progress: Progress | None = None,
        *,
        trusted: bool = False,
        rate: int | None = None,
    ) -> None:
        """Makes the image from the file `source`. Unless `trusted`, a source that refers to other files is refused."""
        parsed = self._image(volume)
        if source_format == SUBVOL:
            raise NotSupported(f"a folder cannot become the image '{volume}'; only its files can be copied")
        if not trusted:
            image.refuse_untrusted(source, source_format)
        with self._making(parsed) as staged:
            image.convert(
                source,
                source_format,
                staged,
                parsed.format,
                preallocation=self.options.preallocation,
                trusted=trusted,
                rate=self.options.rate if rate is None else rate,
                progress=progress,
            )

    def resize(self, volume: str, size: int) -> None:
        """Grows an image that nobody has open. The same size is no error."""
        parsed = self._parse(volume)
        if parsed.content == "images" and parsed.format == SUBVOL:
            self._resize_tree(parsed, size)
            return
        parsed = self._image(volume)
        path = self._path(parsed)
        self._stat(parsed, path)
        now = read_header(path, parsed.format).virtual_size
        size = _whole_blocks(size)
        if size < now:
            raise Failure(f"unable to shrink '{self._volid(volume)}' from {now} to {size} bytes: images can only grow")
        try:
            if size > now:
                image.grow(path, parsed.format, size, self.options.preallocation)
        except NoSpace as error:
            raise self._full(error) from error

    def _resize_tree(self, parsed: ParsedVolume, size: int) -> None:
        now = self.info(parsed.name).size
        if size == now and self.sized_folders:
            return
        if self.sized_folders and (size < now or now == 0):
            kind = f"from {now} to {size} bytes: sizes can only grow" if now else "which has no limit"
            raise Failure(f"unable to shrink '{self._volid(parsed.name)}' {kind}")
        self._layout.resize_tree(self._path(parsed), size)

    def free(self, volume: str) -> None:
        """Removes a volume and what belongs to it. Raises Failure for protected ones and bases that are in use."""
        parsed = self._parse(volume)
        path = self._place_of(parsed)
        if parsed.content == "backup" and attributes.is_protected(path):
            raise Failure(f"volume '{self._volid(volume)}' is protected; remove its protection first")
        if parsed.is_base and (clones := self._clones_of(parsed)):
            raise Failure(f"base volume '{self._volid(volume)}' is still in use by '{clones[0]}'")
        try:
            folder = parsed.format == SUBVOL or path != self._path(parsed)
            if folder and path.is_dir() and not path.is_symlink():
                trees.refuse_mounts(path)
                with contextlib.suppress(NotFound):
                    trees.remove(staging.set_aside(path, self._folder("images"), self.node))
            else:
                path.unlink(missing_ok=True)
            if parsed.content == "backup":
                attributes.remove_all(path, parsed.format)
            with contextlib.suppress(FileNotFoundError):
                files.sync_dir(path.parent)
            if parsed.content == "images":
                _remove_empty(path.parent)
            # Whoever undoes a task that was killed calls this: what it had begun goes too.
            staging.sweep(self._folder(parsed.content), self.node)
        except OSError as error:
            raise files.failure(error, f"unable to remove volume '{self._volid(volume)}'") from error

    # --- files that come from outside

    def staging(self, volume: str) -> Path:
        """An empty private file on the volume's file system; it belongs to this process until `adopt`ed."""
        parsed = self._parse(volume)
        folder = self._folder(parsed.content)
        self._require_folder(folder)
        return staging.create(folder, self.node)

    def adopt(self, staged: Path) -> Path:
        """Takes over a staged file that another process made; its new path."""
        return staging.adopt(self._staged(staged))

    def discard(self, staged: Path) -> None:
        """Removes a staged file; absent is fine."""
        staging.discard(self._staged(staged))

    def publish(self, staged: Path, volume: str, *, replace: bool = False) -> None:
        """Gives a staged file its name, durably."""
        parsed = self._parse(volume)
        if parsed.content == "import":
            # Readers of images that nobody vouches for run as nobody; the folders above keep everybody else out.
            self._staged(staged).chmod(_IMPORT_MODE)
        self._place(self._staged(staged), parsed, replace=replace)

    def set_attributes(self, volume: str, *, notes: str | None = None, protected: bool | None = None) -> None:
        """Notes and protection of backups."""
        parsed = self._parse(volume)
        if parsed.content != "backup":
            raise NotSupported(f"storage '{self.name}' keeps notes and protection for backups only")
        path = self._path(parsed)
        self._stat(parsed, path)
        try:
            if notes is not None:
                attributes.write_notes(path, notes)
            if protected is not None:
                attributes.protect(path, protected)
        except OSError as error:
            raise files.failure(error, f"unable to change '{self._volid(volume)}'") from error

    # --- names and paths

    def _volid(self, volume: str) -> str:
        return f"{self.name}:{volume}"

    def _parse(self, volume: str) -> ParsedVolume:
        try:
            return parse_volname(volume)
        except ValueError as error:
            raise Failure(f"unable to parse volume '{self.name}:{volume}': {error}") from error

    def _image(self, volume: str) -> ParsedVolume:
        parsed = self._parse(volume)
        if parsed.content != "images":
            raise Failure(f"volume '{self._volid(volume)}' is not a disk image")
        if parsed.format not in self.formats or parsed.base is not None:
            raise NotSupported(f"storage '{self.name}' cannot make '{volume}'; formats are {', '.join(self.formats)}")
        return parsed

    def _folder(self, content: str) -> Path:
        return self.options.path / self.options.folders[content]

    def _folders(self) -> Iterator[Path]:
        """The folders of the enabled content types; container volumes lie among the images."""
        for content in sorted({"images" if content == "rootdir" else content for content in self.contents}):
            yield self._inside(self.options.folders[content])

    def _inside(self, relative: str) -> Path:
        try:
            return files.inside(self.options.path, relative)
        except ParameterError as error:
            raise Failure(f"storage '{self.name}': {error.errors.get('path', error)}") from error

    def _place_of(self, parsed: ParsedVolume) -> Path:
        """What bears the volume's name on disk; see `layout`."""
        path = self._path_of(parsed)
        return path.with_name(self._layout.place_name(path.name)) if parsed.content == "images" else path

    def _path(self, parsed: ParsedVolume) -> Path:
        path = self._place_of(parsed)
        return self._layout.file(path, parsed.leaf) if parsed.content == "images" else path

    def _path_of(self, parsed: ParsedVolume) -> Path:
        if parsed.content == "import" and parsed.base is not None:
            raise NotSupported(f"'{parsed.name}': disks within OVA archives are not supported yet; unpack the archive")
        return self._inside(parsed.relative_path(self.options.folders))

    def _staged(self, staged: Path) -> Path:
        """Proves that a path, which may come from a journal, is a staged file of this storage."""
        folders = {self._folder(content) for content in self.options.folders}
        if staged.parent not in folders or staging.StagedName.parse(staged.name) is None:
            raise Failure(f"'{staged}' is not a staged file of storage '{self.name}'")
        self._inside(str(staged.parent.relative_to(self.options.path)))
        return staged

    def _missing(self, parsed: ParsedVolume) -> NotFound:
        return NotFound(f"volume '{self._volid(parsed.name)}' does not exist")

    def _full(self, error: NoSpace) -> NoSpace:
        return NoSpace(f"not enough space on storage '{self.name}': {error.message}")

    def _stat(self, parsed: ParsedVolume, path: Path) -> os.stat_result:
        try:
            state = path.lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._missing(parsed) from error
        except OSError as error:
            raise files.failure(error, f"unable to look at '{self._volid(parsed.name)}'") from error
        if not _is_volume(parsed, state) or self._place_of(parsed).is_symlink():
            raise self._missing(parsed)
        return state

    # --- listing

    def _images(self, vmid: int | None) -> Iterator[VolumeInfo]:
        top = self._folder("images")
        sizes = _Sizes(self._layout, top)
        for guest in [str(vmid)] if vmid is not None else _names(top):
            if not VMID.fullmatch(guest) or (top / guest).is_symlink():
                continue
            for name in _names(top / guest):
                leaf, place = self._layout.leaf(name), top / guest / name
                file = self._layout.file(place, leaf)
                if file != place and place.is_symlink():
                    continue
                if (info := self._listed(f"{guest}/{leaf}", file, sizes)) is not None:
                    yield info

    def _files(self, content: str, vmid: int | None) -> Iterator[VolumeInfo]:
        folder = self._folder(content)
        for leaf in _names(folder):
            info = self._listed(f"{content}/{leaf}", folder / leaf)
            if info is not None and (vmid is None or info.vmid == vmid):
                yield info

    def _listed(self, name: str, path: Path, sizes: "_Sizes | None" = None) -> VolumeInfo | None:
        """None for what is no volume: foreign files, links, and files that vanish while we look."""
        try:
            parsed = parse_volname(name)
            return self._describe(parsed, path, path.lstat(), sizes)
        except (ValueError, OSError):
            return None

    def _describe(
        self, parsed: ParsedVolume, path: Path, state: os.stat_result, sizes: "_Sizes | None" = None
    ) -> VolumeInfo | None:
        if not _is_volume(parsed, state):
            return None
        name, parent, size, used = parsed.name, None, state.st_size, state.st_blocks * 512
        if parsed.format == SUBVOL:
            size, used = sizes.of(path) if sizes is not None else (0, 0)
        if parsed.format in ("qcow2", "vmdk"):
            header = _header_or_none(path, parsed.format)
            size = header.virtual_size if header else size
            parent = _parent(parsed, header)
            if parent is not None and parsed.base is None:
                name = f"{parent}/{name}"
        backup = parsed.content == "backup"
        return VolumeInfo(
            volid=self._volid(name),
            content=parsed.content,
            format=parsed.format,
            size=size,
            used=used,
            ctime=int(state.st_ctime),
            vmid=parsed.vmid,
            parent=parent and self._volid(parent),
            notes=attributes.read_notes(path) if backup else None,
            protected=backup and attributes.is_protected(path),
        )

    def _clones_of(self, base: ParsedVolume) -> Sequence[str]:
        own = f"{base.vmid}/{base.leaf}"
        return [info.volid for info in self._images(None) if info.parent == self._volid(own)]

    # --- making

    def _require_folder(self, folder: Path) -> None:
        try:
            self._inside(str(folder.relative_to(self.options.path)))
            if self.options.create_folders:
                folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise files.failure(error, f"unable to make the folder '{folder}'") from error

    @contextlib.contextmanager
    def _making(self, parsed: ParsedVolume, size: int = 0) -> Iterator[Path]:
        """A staged file or folder that becomes the volume when the block ends well, and vanishes otherwise."""
        target = self._place_of(parsed)
        if os.path.lexists(target):
            raise AlreadyExists(f"volume '{self._volid(parsed.name)}' already exists")
        self._require_folder(self._folder("images"))
        staged = staging.new_path(self._folder("images"), self.node)
        try:
            self._layout.create(staged, parsed.format, size)
            file = self._layout.file(staged, parsed.leaf)
            yield file
            if file != staged:
                staging.flush(file)
            self._place(staged, parsed)
        except BaseException as error:
            with contextlib.suppress(OSError):
                staging.discard(staged)
            if isinstance(error, NoSpace):
                raise self._full(error) from error
            if isinstance(error, OSError):
                raise files.failure(error, f"unable to make volume '{self._volid(parsed.name)}'") from error
            raise

    def _place(self, staged: Path, parsed: ParsedVolume, *, replace: bool = False) -> None:
        target = self._place_of(parsed)
        for attempt in range(_PUBLISH_ATTEMPTS):
            self._require_target(parsed, target)
            try:
                staging.place(staged, target, replace=replace)
            except NotFound:
                # Whoever frees the guest's last image removes its folder, perhaps just now.
                if attempt + 1 == _PUBLISH_ATTEMPTS or not staged.exists():
                    raise
            except AlreadyExists as error:
                raise AlreadyExists(f"volume '{self._volid(parsed.name)}' already exists") from error
            except OrreryError:
                if parsed.content == "images":
                    _remove_empty(target.parent)
                raise
            else:
                return

    def _require_target(self, parsed: ParsedVolume, target: Path) -> None:
        if parsed.content != "images":
            return
        try:
            # Not `exist_ok`: that looks again whether it is a folder, when somebody may have removed it again.
            with contextlib.suppress(FileExistsError):
                target.parent.mkdir(mode=_FOLDER_MODE)
        except OSError as error:
            raise files.failure(error, f"unable to make the folder '{target.parent}'") from error


class _Sizes:
    """Limits and uses of folders, asked for once, and only when there is a folder."""

    def __init__(self, layout: Layout, top: Path) -> None:
        self._layout = layout
        self._top = top
        self._known: Mapping[int, tuple[int, int]] | None = None

    def of(self, tree: Path) -> tuple[int, int]:
        """Raises OSError when the folder is gone."""
        if self._known is None:
            self._known = self._layout.sizes(self._top)
        return self._known.get(self._layout.tree_id(tree), (0, 0))


def _is_volume(parsed: ParsedVolume, state: os.stat_result) -> bool:
    """Whether a file is of the kind that its name says; a link never is."""
    return stat.S_ISDIR(state.st_mode) if parsed.format == SUBVOL else stat.S_ISREG(state.st_mode)


def _whole_blocks(size: int) -> int:
    if size <= 0:
        raise Failure(f"an image cannot have a size of {size} bytes")
    return image.whole_blocks(size)


def _names(folder: Path) -> list[str]:
    """Names in a folder, staged and other hidden files left out; none when the folder is absent."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise files.failure(error, f"unable to list '{folder}'") from error


def _header_or_none(path: Path, image_format: str) -> ImageHeader | None:
    try:
        return read_header(path, image_format)
    except (OSError, Failure):
        return None


def _parent(parsed: ParsedVolume, header: ImageHeader | None) -> str | None:
    """The base volume of a linked clone, which its image names relative to itself (`../100/base-100-disk-0.qcow2`)."""
    if header is None or header.backing is None:
        return None
    up, _, name = header.backing.partition("/")
    with contextlib.suppress(ValueError):
        if up == ".." and parse_volname(name).is_base:
            return name
    return None


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove_empty_guests(images: Path) -> None:
    """A process that died between making a guest's folder and filling it left the folder empty."""
    for name in _names(images):
        if VMID.fullmatch(name):
            _remove_empty(images / name)
