"""The images of a store: added, found, listed, held, removed."""

from __future__ import annotations

import os
import time

import pytest
from made_images import MadeImage
from stored import dated, layer, made, put, tree

import containerkit as ck
from containerkit.images.digest import Digest
from containerkit.images.manifest import Index
from containerkit.store import Store

pytestmark = pytest.mark.both


class TestFinding:
    def test_an_image_is_found_by_name_id_and_the_beginning_of_its_id(self, store: Store) -> None:
        image = put(store, made("a"), "debian:12")
        asked = ("debian:12", "docker.io/library/debian:12", image.id, image.id.hex, image.id.short, image)
        assert [store.images.get(one) for one in asked] == [image] * len(asked)
        assert image.names == ["docker.io/library/debian:12"]

    def test_it_is_found_by_the_digest_of_its_manifest_or_index_whatever_the_tag_says(self, store: Store) -> None:
        new = made("a")
        index = Index.make((new.manifest.descriptor,))
        image = put(store, new, "debian:12", index=index)
        for digest in (new.manifest.digest, index.digest):
            assert store.images.get(f"debian@{digest}") == image
            assert store.images.get(f"debian:other@{digest}") == image
            with pytest.raises(ck.ImageNotFound):
                store.images.get(f"other@{digest}")

    def test_a_name_goes_before_the_beginning_of_an_id(self, store: Store) -> None:
        first = put(store, made("a"))
        second = put(store, made("b"), f"{first.id.short}:latest")
        assert store.images.get(first.id.short) == second

    def test_the_beginning_of_two_ids_is_refused_and_both_are_named(self, store: Store) -> None:
        images = [put(store, made(f"{number}")) for number in range(17)]  # of 16 first digits, one comes twice
        firsts = [image.id.hex[0] for image in images]
        first = next(digit for digit in firsts if firsts.count(digit) > 1)
        with pytest.raises(ck.InvalidValue, match="several images"):
            store.images.get(first)

    @pytest.mark.parametrize("name", ["nothing", "sha256:" + "0" * 64, "0" * 64, "../../etc", "", "sha256:", "a b"])
    def test_what_is_not_there_is_not_found(self, store: Store, name: str) -> None:
        put(store, made("a"), "debian:12")
        with pytest.raises(ck.ImageNotFound):
            store.images.get(name)
        assert name not in store.images

    def test_what_it_says_of_itself_comes_back_byte_for_byte(self, store: Store, path: os.PathLike[str]) -> None:
        new = made("a", "b", Labels={"k": "v"})
        put(store, new, "x")
        with Store(path) as other:
            image = other.images.get("x")
            assert (image.config, image.manifest) == (new.config, new.manifest)
            assert image.history == new.config.history


class TestNames:
    def test_a_name_that_moves_leaves_the_other_image_without_one(self, store: Store) -> None:
        old, new = put(store, made("a"), "x"), put(store, made("b"), "x")
        assert store.images.get("x") == new
        assert store.images.list(dangling=True) == [old]

    def test_an_image_that_comes_in_cannot_take_a_name_that_it_must_not_take(self, store: Store) -> None:
        old = put(store, made("a"), "x")
        with pytest.raises(ck.Exists, match="another image"):
            put(store, made("b"), "x", replace=False)
        assert store.images.list() == [old] == [store.images.get("x")]

    def test_tag_and_untag(self, store: Store) -> None:
        image = put(store, made("a"), "x")
        image.tag("localhost:5000/y:1")
        store.images.untag("x")
        assert image.names == ["localhost:5000/y:1"]
        store.images.untag("localhost:5000/y:1")
        assert store.images.list(dangling=True) == [image]
        with pytest.raises(ck.ImageNotFound):
            store.images.untag("x")

    def test_a_digest_cannot_be_given_as_a_name(self, store: Store) -> None:
        with pytest.raises(ck.InvalidValue, match="digest"):
            put(store, made("a")).tag("x@sha256:" + "0" * 64)


class TestListing:
    def test_filters(self, store: Store) -> None:
        def at(year: int, name: str, **config: object) -> MadeImage:
            return dated(MadeImage([layer(name)], **config), f"{year}-01-01T00:00:00Z")

        old = put(store, at(2000, "a", Labels={"k": "1"}), "debian:11")
        new = put(store, at(2020, "b", Labels={"k": "2", "l": ""}), "debian:12", "host.example/tools/x:1")
        bare = put(store, at(2010, "c"))
        images = store.images
        assert images.list() == [new, bare, old]
        assert images.list(dangling=True) == [bare]
        assert images.list(dangling=False) == [new, old]
        assert images.list("debian") == [new, old]
        assert images.list("debian:1*") == [new, old]
        assert images.list("debian:11") == [old]
        assert images.list("host.example/*") == [new]
        assert images.list("nothing*") == []
        assert images.list(label="k") == [new, old]
        assert images.list(label="k=1") == [old]
        assert images.list(label=("k=2", "l")) == [new]
        assert images.list(before="debian:12") == [bare, old]
        assert images.list(since=old) == [new, bare]
        assert images.list(until=new.created) == [bare, old]


class TestHolding:
    def test_it_shows_the_layers_the_topmost_first(self, store: Store) -> None:
        image = put(store, made("a", "b"), "x")
        with image.hold() as held:
            assert [os.listdir(f"{one}/d") for one in held.root.lower] == [["b"], ["a"]]

    def test_a_layer_that_an_image_has_twice_is_stacked_once(self, store: Store) -> None:
        image = put(store, made("a", "b", "a"), "x")
        with image.hold() as held:
            assert [os.listdir(f"{one}/d") for one in held.root.lower] == [["a"], ["b"]]

    def test_an_image_without_layers_is_an_empty_tree(self, store: Store) -> None:
        image = put(store, MadeImage([]), "x")
        with image.hold() as held:
            assert [os.listdir(one) for one in held.root.lower] == [[]]

    @pytest.mark.parametrize("layers", [[], ["a"]])
    def test_its_root_can_be_entered_whatever_the_umask_was(self, path: os.PathLike[str], layers: list[str]) -> None:
        before = os.umask(0o077)
        try:
            with Store(path) as store, put(store, made(*layers), "x").hold() as held:
                assert [os.stat(one).st_mode & 0o777 for one in held.root.lower] == [0o755]
        finally:
            os.umask(before)

    def test_nobody_removes_it_meanwhile(self, store: Store) -> None:
        image = put(store, made("a"), "x")
        with image.hold() as first, image.hold():
            for remove in (image.remove, lambda: image.remove(force=True), lambda: store.images.remove("x")):
                with pytest.raises(ck.InUse, match="in use"):
                    remove()
            assert store.images.prune(all=True).deleted == ()
            assert tree(first.root) == ["a"]
        assert image.remove().deleted == (image.id,)

    def test_one_that_was_removed_cannot_be_held(self, store: Store) -> None:
        image = put(store, made("a"), "x")
        image.remove()
        with pytest.raises(ck.ImageNotFound, match="removed"):
            image.hold()
        put(store, made("a"), "x")
        with pytest.raises(ck.ImageNotFound, match="removed"):
            image.hold()  # another one, of the same bytes

    def test_a_program_runs_in_it(self, store: Store, busybox_root: os.PathLike[str]) -> None:
        import subprocess

        data = subprocess.run(["tar", "-C", busybox_root, "-c", "."], check=True, capture_output=True).stdout
        image = put(store, MadeImage([data, layer("file", "hello")]), "busybox")
        with image.hold() as held:
            assert ck.run(["/bin/cat", "/d/file"], rootfs=held.root).stdout == "hello"


class TestRemoving:
    def test_with_the_last_name_go_the_image_and_what_only_it_has(self, store: Store) -> None:
        one, other = made("shared", "own"), made("shared", "another")
        put(store, one, "x", "y"), put(store, other, "z")
        assert store.images.remove("x").untagged == ("docker.io/library/x:latest",)
        removed = store.images.remove("y")
        assert removed.deleted == (one.config.id,)
        assert removed.size == len("content") + one.manifest.layers[1].size
        assert [store.layers.has(layer) for layer in one.config.diff_ids] == [True, False]
        assert [store.blobs.has(part.digest) for part in one.manifest.layers] == [True, False]
        assert len(os.listdir(f"{store.path}/layers")) == 2
        store.trash.wait()
        assert os.listdir(f"{store.path}/trash") == []

    def test_by_id_names_in_several_repositories_must_be_forced(self, store: Store) -> None:
        image = put(store, made("a"), "x:1", "x:2", "y:1")
        with pytest.raises(ck.InUse, match="2 repositories"):
            image.remove()
        assert len(image.names) == 3
        assert len(image.remove(force=True).untagged) == 3

    def test_by_id_names_in_one_repository_go_together(self, store: Store) -> None:
        assert len(put(store, made("a"), "x:1", "x:2").remove().untagged) == 2

    def test_what_a_running_operation_has_found_stays(self, store: Store) -> None:
        new = made("a")
        image = put(store, new, "x")
        with store.lease() as lease:
            assert store.layers.has(new.config.diff_ids[0], lease)
            assert store.blobs.has(new.manifest.layers[0].digest, lease)
            assert image.remove().size == 0
            again = store.images.add(new.manifest, new.config, new.config.diff_ids, names=["x"], lease=lease)
        store.collect()
        with again.hold() as held:
            assert tree(held.root) == ["a"]


class TestPruning:
    def test_by_default_images_without_a_name(self, store: Store) -> None:
        bare, named = put(store, made("a")), put(store, made("b"), "x")
        assert store.images.prune().deleted == (bare.id,)
        assert store.images.list() == [named]

    def test_all_takes_what_nothing_holds(self, store: Store) -> None:
        held, named = put(store, made("a"), "a"), put(store, made("b"), "b")
        with held.hold():
            assert store.images.prune(all=True).deleted == (named.id,)
        assert store.images.list() == [held]

    def test_a_dry_run_says_exactly_what_would_go_and_changes_nothing(self, store: Store) -> None:
        put(store, made("shared", "a")), put(store, made("shared", "b"), "x"), put(store, made("c"))
        before = store.images.list()
        for everything in (False, True):
            told = store.images.prune(all=everything, dry_run=True)
            assert store.images.list() == before
            assert told.deleted
        told = store.images.prune(dry_run=True)
        assert store.images.prune() == told
        told = store.images.prune(all=True, dry_run=True)
        assert store.images.prune(all=True) == told
        assert store.images.list() == []

    def test_labels_and_times_spare_the_others(self, store: Store) -> None:
        image = put(store, made("a", Labels={"k": "v"}))
        assert store.images.prune(label="other").deleted == ()
        assert store.images.prune(until=0).deleted == ()
        assert store.images.prune(label="k=v", until=time.time()).deleted == (image.id,)


class TestTelling:
    def test_inspect_has_what_docker_has(self, store: Store) -> None:
        new = made("a", Cmd=["sh", "-c", "true"], Env=["A=b"], WorkingDir="/x", User="u", Labels={"k": "v"})
        found = put(store, new, "debian:12").inspect()
        assert found["Config"]["Cmd"] == ["sh", "-c", "true"]
        assert found["Config"]["Labels"] == {"k": "v"}
        assert found["RepoTags"] == ["debian:12"]
        assert found["RepoDigests"] == [f"debian@{new.manifest.digest}"]
        assert found["Id"] == str(new.config.id)
        assert found["RootFS"] == {"Type": "layers", "Layers": [str(new.config.diff_ids[0])]}

    def test_disk_usage_counts_what_is_shared_once(self, store: Store) -> None:
        put(store, made("shared", "a"), "x")
        other = made("shared", "b")
        put(store, other, "y")
        with store.images.get("x").hold():
            usage = store.disk_usage()
        one = len("content")
        assert usage.layers == 3 * one
        assert {(image.size, image.shared, image.unique) for image in usage.images} == {(2 * one, one, one)}
        assert sorted(image.in_use for image in usage.images) == [False, True]
        assert usage.reclaimable == one + other.manifest.layers[1].size


class TestAdding:
    def test_an_image_whose_layers_are_not_there_is_refused(self, store: Store) -> None:
        new = made("a")
        with store.lease() as lease, pytest.raises(ck.StoreError, match="not in the store"):
            store.images.add(new.manifest, new.config, new.config.diff_ids, lease=lease)
        assert store.images.list() == []

    def test_a_configuration_that_the_manifest_does_not_mean_is_refused(self, store: Store) -> None:
        with pytest.raises(ck.InvalidValue, match="configuration"):
            store.images.add(made("a").manifest, made("b").config, [])

    def test_the_same_image_twice_is_one(self, store: Store) -> None:
        assert put(store, made("a"), "x") == put(store, made("a"), "y")
        assert [len(image.names) for image in store.images.list()] == [2]

    def test_two_manifests_of_one_image_keep_their_names_and_blobs(self, store: Store) -> None:
        packed, plain = made("a"), made("a", compressed=False)
        put(store, packed, "packed"), put(store, plain, "plain")
        assert len(store.images.list()) == 1
        assert store.images.get("plain").manifest == plain.manifest
        assert store.images.get("packed").manifest == packed.manifest
        assert all(store.blobs.has(Digest(part.digest)) for one in (packed, plain) for part in one.manifest.layers)
