"""Whatever is done to containers in whatever order, each is what a small model says of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from made_containers import busybox_image

import containerkit as ck
from containerkit.containers.container import Container
from containerkit.images.image import Image
from containerkit.store import Store

pytestmark = [pytest.mark.both, pytest.mark.timeout(300)]

NAMES = st.sampled_from(["one", "two", "three", "four"])
CODES = st.none() | st.integers(0, 3)
PICKS = st.integers(0, 3)
SCRIPT = 'case "$1" in stay) trap "exit 7" TERM; while :; do sleep 600 & wait $!; done;; *) exit "$1";; esac'


class Model:
    """What a container should be."""

    def __init__(self, container: Container, stays: bool, code: int) -> None:
        self.container, self.stays, self.code = container, stays, code
        self.status = "created"
        self.exit_code: int | None = None


on_one = precondition(lambda self: self.models)


class Machine(RuleBasedStateMachine):
    """Each rule does one thing, and compares what happened with the model."""

    def __init__(self, store: Store, image: Image) -> None:
        super().__init__()
        self.store, self.image = store, image
        self.models: dict[str, Model] = {}

    def model(self, pick: int) -> Model:
        """One of those that there are."""
        name = sorted(self.models)[pick % len(self.models)]
        assert self.store.containers.get(name) == self.models[name].container
        return self.models[name]

    @initialize(codes=st.tuples(CODES, CODES, CODES))
    def some(self, codes: tuple[int | None, int | None, int | None]) -> None:
        for name, code in zip(("one", "two", "three"), codes, strict=True):
            self.create(name, code)

    @rule(name=NAMES, code=CODES)
    def create(self, name: str, code: int | None) -> None:
        args = ["sh", "-c", SCRIPT, "sh", "stay" if code is None else str(code)]
        if name in self.models:
            with pytest.raises(ck.NameTaken):
                self.store.containers.create(self.image, args, name=name)
            return
        made = self.store.containers.create(self.image, args, name=name, stop_timeout=0.05)
        self.models[name] = Model(made, code is None, code or 0)

    @on_one
    @rule(pick=PICKS)
    def start(self, pick: int) -> None:
        model = self.model(pick)
        model.container.start()
        self._started(model)

    def _started(self, model: Model) -> None:
        if model.stays:
            model.status, model.exit_code = "running", None
        else:
            assert model.container.wait() == model.code
            model.status, model.exit_code = "exited", model.code

    @on_one
    @rule(pick=PICKS)
    def stop(self, pick: int) -> None:
        model = self.model(pick)
        model.container.stop()
        self._ended(model, {7, 137})

    @on_one
    @rule(pick=PICKS)
    def restart(self, pick: int) -> None:
        model = self.model(pick)
        model.container.restart()
        self._started(model)

    @on_one
    @rule(pick=PICKS)
    def kill(self, pick: int) -> None:
        model = self.model(pick)
        if model.status == "running":
            model.container.kill()
            self._ended(model, {137})
        else:
            with pytest.raises(ck.WrongState):
                model.container.kill()

    def _ended(self, model: Model, codes: set[int]) -> None:
        if model.status == "running":
            model.status = "exited"
            model.exit_code = model.container.wait()
            assert model.exit_code in codes

    @on_one
    @rule(pick=PICKS)
    def wait(self, pick: int) -> None:
        model = self.model(pick)
        if model.status == "running":
            with pytest.raises(ck.TimeoutExpired):
                model.container.wait(timeout=0.001)
        elif model.status == "exited":
            assert model.container.wait() == model.exit_code
        else:
            with pytest.raises(ck.WrongState):
                model.container.wait()

    @on_one
    @rule(pick=PICKS, force=st.booleans())
    def remove(self, pick: int, force: bool) -> None:
        model = self.model(pick)
        if model.status == "running" and not force:
            with pytest.raises(ck.WrongState):
                model.container.remove()
            return
        del self.models[model.container.name]
        model.container.remove(force=force)
        with pytest.raises(ck.ContainerNotFound):
            model.container.start()

    @on_one
    @rule(pick=PICKS, other=NAMES)
    def rename(self, pick: int, other: str) -> None:
        model = self.model(pick)
        name = model.container.name
        if other in self.models and other != name:
            with pytest.raises(ck.NameTaken):
                model.container.rename(other)
            return
        model.container.rename(other)
        self.models[other] = self.models.pop(name)

    @rule()
    def prune(self) -> None:
        removed = self.store.containers.prune().containers
        idle = {name: model for name, model in self.models.items() if model.status != "running"}
        assert set(removed) == {model.container.id for model in idle.values()}
        for name in idle:
            del self.models[name]

    @rule()
    def collect(self) -> None:
        assert self.store.collect().leftovers == 0

    @on_one
    @rule()
    def the_image_stays(self) -> None:
        with pytest.raises(ck.InUse):
            self.store.images.remove(self.image.id, force=True)

    @invariant()
    def each_is_what_the_model_says(self) -> None:
        assert {one.id for one in self.store.containers.list()} == {
            model.container.id for model in self.models.values() if model.status == "running"
        }
        assert {one.name for one in self.store.containers.list(all=True)} == set(self.models)
        for model in self.models.values():
            found = model.container.status
            assert (found.status, found.running) == (model.status, model.status == "running")
            if model.status == "exited":
                assert found.exit_code == model.exit_code

    def teardown(self) -> None:
        for model in self.models.values():
            model.container.remove(force=True)
        assert os.listdir(Path(self.store.path) / "containers") == []


def test_every_order_of_acts_gives_what_the_model_says(store: Store) -> None:
    image = busybox_image(store)
    run_state_machine_as_test(
        lambda: Machine(store, image),
        settings=settings(
            max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
