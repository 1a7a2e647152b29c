"""An image into the store, from wherever: its blobs are received and its layers unpacked, at the same time.

Of each blob that is missing one thread receives into the store's partial file, which another sends on to where the
layer is unpacked as it grows (sendfile(2): the bytes are not copied again). So receiving, decompressing and writing
files overlap, also for one big layer, and the slowest of them alone decides how long it takes.

What is unpacked is not verified yet, and so whoever unpacks must not trust it, verified or not. A layer is kept only
when its blob has the digest that the manifest says and its content the digest that the configuration says.

When one part fails all others are stopped and waited for. What was received so far stays as partial files, which the
next attempt continues; of unpacked layers only whole ones stay.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import ContentMismatch, InvalidLayer, InvalidValue
from .arrival import Arrival, Stopped
from .config import chain_ids
from .digest import Digest
from .progress import Phase, Reporter

if TYPE_CHECKING:
    from ..layers.apply import Applied
    from ..layers.compression import Readable
    from .archive import Source
    from .config import ImageConfig
    from .manifest import Manifest

__all__ = ["Apply", "Blobs", "Ingest", "Layers", "Staged", "Transfer"]

PARALLEL = 4
_PIECE = 1 << 20


class Ingest(Protocol):
    """A blob that is being received; ``present``: somebody else has received it by now."""

    @property
    def present(self) -> bool: ...
    @property
    def offset(self) -> int: ...
    def fileno(self) -> int: ...
    def write(self, data: bytes, /) -> object: ...
    def commit(self) -> object: ...
    def abort(self, keep: bool) -> object: ...


class Blobs(Protocol):
    """What is used here of the store's blobs."""

    def has(self, digest: Digest, lease: Any, /) -> bool: ...
    def open(self, digest: Digest, /) -> int: ...
    def ingest(self, digest: Digest, size: int | None, lease: Any, /) -> Ingest: ...


class Staged(Protocol):
    """A directory in which a layer is being unpacked."""

    @property
    def fd(self) -> int: ...
    def keep(self, key: Digest, diff_id: Digest, applied: Applied, /) -> object: ...
    def close(self) -> object: ...


class Layers(Protocol):
    """What is used here of the store's unpacked layers. ``below`` are keys of layers, the lowest first.

    ``stage()`` gives an empty directory for a layer by itself; with ``below`` its ``fd`` is a tree of those layers, and
    what changes in it becomes the layer. ``stacks`` says that this driver needs that always.
    """

    @property
    def stacks(self) -> bool: ...
    def has(self, key: Digest, lease: Any, /) -> bool: ...
    def unpacking(self, diff_id: Digest, /) -> AbstractContextManager[Any]: ...
    def stage(self, lease: Any, /, below: Sequence[Digest] | None = None) -> Staged: ...
    def exist(self, paths: Sequence[bytes], below: Sequence[Digest], /) -> bool: ...


Apply = Callable[[int, int, bool, Callable[[int], None]], "Applied"]
"""Unpacks a layer: (source, target, onto, progress), both descriptors."""


class Transfer:
    """What the parts of one image have in common while it comes in. ``parallel`` layers come at a time."""

    def __init__(
        self, blobs: Blobs, layers: Layers, apply: Apply, lease: Any, reporter: Reporter, *, parallel: int = PARALLEL
    ) -> None:
        if not 1 <= parallel <= 64:
            raise InvalidValue(f"parallel={parallel} must be 1 to 64 layers at a time")
        self._blobs, self._layers, self._apply, self._lease = blobs, layers, apply, lease
        self._parallel, self._reporter = parallel, reporter
        self._stop = threading.Event()

    def take(self, manifest: Manifest, config: ImageConfig, source: Source) -> tuple[Digest, ...]:
        """Bring the layers in; the keys of the unpacked ones, the lowest first.

        Raises ContentMismatch for what is not what its digest says, InvalidLayer, and what the source raises.
        """
        if len(manifest.layers) != len(config.diff_ids):
            raise InvalidValue(
                f"the manifest has {len(manifest.layers)} layers, the image's configuration {len(config.diff_ids)}"
            )
        arrivals = {part.digest: Arrival(part, self.check) for part in manifest.layers}
        layers = [
            _Layer(arrivals[part.digest], diff_id, chain_id)
            for part, diff_id, chain_id in zip(
                manifest.layers, config.diff_ids, chain_ids(config.diff_ids), strict=True
            )
        ]
        try:
            with self._threads("receive") as receive, self._threads("unpack") as unpack:
                for arrival in arrivals.values():
                    self._expect(arrival, source, receive)
                alone = [] if self._layers.stacks else self._start(layers, unpack)
                self._all([*(arrival.received for arrival in arrivals.values()), *alone])
                return self._settle(layers)
        finally:
            for arrival in arrivals.values():
                arrival.close()
            for layer in layers:
                layer.close()

    # ---- threads -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _threads(self, name: str) -> Iterator[ThreadPoolExecutor]:
        """Some threads, which have all ended when the block is left, however it is left."""
        pool = ThreadPoolExecutor(self._parallel, thread_name_prefix=f"ck-{name}")
        try:
            yield pool
        except BaseException:
            self._stop.set()
            raise
        finally:
            pool.shutdown(wait=True)  # what has not begun runs, too, and ends at its first check

    def check(self) -> None:
        """Raise when another part has failed."""
        if self._stop.is_set():
            raise Stopped

    def _all(self, futures: Sequence[Future[Any]]) -> None:
        """Wait for all. Of several errors the one that tells most is raised, and first the others are stopped."""
        wait(futures, return_when=FIRST_EXCEPTION)
        if not any(future.done() and future.exception() for future in futures):
            return
        self._stop.set()
        wait(futures)
        errors = [error for future in futures if (error := future.exception())]
        raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])

    # ---- blobs -------------------------------------------------------------------------------------------------------

    def _expect(self, arrival: Arrival, source: Source, pool: ThreadPoolExecutor) -> None:
        descriptor = arrival.descriptor
        if self._blobs.has(descriptor.digest, self._lease):
            arrival.end(None)
            return
        self._reporter.tell(descriptor.digest, "waiting", 0, descriptor.size)
        pool.submit(self._receive, arrival, source)

    def _receive(self, arrival: Arrival, source: Source) -> None:
        try:
            self.check()
            self._write(arrival, source)
        except BaseException as error:  # raised by whoever waits for it
            self._stop.set()
            arrival.end(error)
        else:
            arrival.end(None)

    def _write(self, arrival: Arrival, source: Source) -> None:
        descriptor = arrival.descriptor
        ingest = self._blobs.ingest(descriptor.digest, descriptor.size, self._lease)
        if ingest.present:
            return
        try:
            at = ingest.offset
            arrival.begin(ingest.fileno(), at)
            if at < descriptor.size:
                with _closed(source.content(descriptor, at)) as stream:
                    while piece := stream.read(_PIECE):
                        self.check()
                        ingest.write(piece)
                        at += len(piece)
                        arrival.advance(at)
                        self._reporter.tell(descriptor.digest, "downloading", at, descriptor.size)
            self._reporter.tell(descriptor.digest, "verifying", at, descriptor.size)
            ingest.commit()
        except BaseException as error:
            ingest.abort(keep=not isinstance(error, ContentMismatch))
            raise

    # ---- layers ------------------------------------------------------------------------------------------------------

    def _start(self, layers: Sequence[_Layer], pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Unpack each layer that is not there by itself; one that an image has twice, once."""
        missing = {
            layer.diff_id: layer
            for layer in reversed(layers)
            if not any(self._layers.has(key, self._lease) for key in (layer.diff_id, layer.chain_id))
        }
        return [pool.submit(self._guarded, layer) for layer in reversed(missing.values())]

    def _guarded(self, layer: _Layer) -> None:
        self.check()
        try:
            self._alone(layer)
        except BaseException:
            self._stop.set()
            raise

    def _alone(self, layer: _Layer) -> None:
        """Unpack a layer by itself; what cannot be understood without those below it is thrown away again."""
        with self._layers.unpacking(layer.diff_id):
            if self._layers.has(layer.diff_id, self._lease):
                return  # another program has just unpacked it
            staged = self._layers.stage(self._lease)
            try:
                applied = self._unpack(layer, staged.fd, onto=False)
                if applied.dependent is None:
                    layer.alone = _Alone(staged, applied)
            finally:
                if layer.alone is None:
                    staged.close()
            if layer.alone is not None and not applied.whiteouts:
                self._keep_alone(layer)  # at once, for whoever waits for it

    def _keep_alone(self, layer: _Layer) -> None:
        alone = layer.alone
        if alone is not None:
            alone.staged.keep(layer.diff_id, layer.diff_id, alone.applied)
            layer.close()
            layer.received = True

    def _unpack(self, layer: _Layer, target: int, *, onto: bool) -> Applied:
        descriptor = layer.arrival.descriptor

        def progress(size: int) -> None:
            self.check()
            self._reporter.tell(descriptor.digest, "unpacking", size)

        try:
            with self._content(layer.arrival) as source:
                applied = self._apply(source, target, onto, progress)
        except InvalidLayer:
            layer.arrival.wait()  # a layer whose blob broke off looks damaged: what happened to the blob is the reason
            raise
        layer.arrival.wait()
        if applied.diff_id != layer.diff_id:
            raise ContentMismatch(
                f"the layer {descriptor.digest} holds {applied.diff_id}: the image's configuration says {layer.diff_id}"
            )
        return applied

    @contextmanager
    def _content(self, arrival: Arrival) -> Iterator[int]:
        """A descriptor from which the blob can be read: the store's file, or a pipe while that grows."""
        if arrival.growing():
            with arrival.followed() as fd:
                yield fd
            return
        arrival.wait()
        fd = self._blobs.open(arrival.descriptor.digest)
        try:
            yield fd
        finally:
            os.close(fd)

    def _settle(self, layers: Sequence[_Layer]) -> tuple[Digest, ...]:
        """Keep the layers, from the lowest on; what needs others below it is unpacked upon them."""
        keys: list[Digest] = []
        for layer in layers:
            self.check()
            keys.append(self._kept(layer, keys))
            size = layer.arrival.descriptor.size
            self._reporter.tell(layer.arrival.descriptor.digest, layer.outcome, size, size)
        return tuple(keys)

    def _kept(self, layer: _Layer, below: Sequence[Digest]) -> Digest:
        alone = layer.alone
        if alone is not None and self._layers.exist(alone.applied.whiteouts, below):
            self._keep_alone(layer)
        for key in (layer.chain_id, layer.diff_id):
            if layer.alone is None and self._layers.has(key, self._lease):
                layer.outcome = "done" if layer.received else "exists"
                return key
        layer.close()
        staged = self._layers.stage(self._lease, below=below)
        try:
            staged.keep(layer.chain_id, layer.diff_id, self._unpack(layer, staged.fd, onto=True))
        finally:
            staged.close()
        return layer.chain_id


class _Alone(NamedTuple):
    """A layer that was unpacked by itself, and is not kept yet."""

    staged: Staged
    applied: Applied


class _Layer:
    def __init__(self, arrival: Arrival, diff_id: Digest, chain_id: Digest) -> None:
        self.arrival, self.diff_id, self.chain_id = arrival, diff_id, chain_id
        self.alone: _Alone | None = None
        self.received = False  # by this transfer
        self.outcome: Phase = "done"

    def close(self) -> None:
        alone, self.alone = self.alone, None
        if alone is not None:
            alone.staged.close()


@contextmanager
def _closed(stream: Readable) -> Iterator[Readable]:
    try:
        yield stream
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()
