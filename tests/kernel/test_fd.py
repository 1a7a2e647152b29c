"""One owner for one descriptor."""

from __future__ import annotations

import os
import pickle
import warnings

import pytest

from containerkit.errors import ClosedHandle
from containerkit.kernel.fd import Fd


def opened() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def is_open(number: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


def test_closes_the_descriptor_at_the_end_of_a_with_block() -> None:
    with Fd(opened()) as handle:
        number = handle.fileno()
        assert is_open(number)
    assert not is_open(number)


def test_a_second_close_leaves_the_new_owner_of_the_number_alone() -> None:
    handle = Fd(opened())
    number = handle.fileno()
    handle.close()
    with Fd(opened()) as other:
        assert other.fileno() == number
        handle.close()
        assert is_open(number)


def test_a_closed_handle_tells_no_number() -> None:
    handle = Fd(opened())
    handle.close()
    with pytest.raises(ClosedHandle):
        handle.fileno()


def test_detach_gives_the_descriptor_away() -> None:
    handle = Fd(opened())
    number = handle.detach()
    assert handle.closed
    assert is_open(number)
    os.close(number)


def test_a_forgotten_handle_is_closed_with_a_warning() -> None:
    handle = Fd(opened())
    number = handle.fileno()
    with pytest.warns(ResourceWarning, match=f"unclosed <Fd fd={number}>"):
        del handle
    assert not is_open(number)


def test_a_closed_handle_is_forgotten_in_silence() -> None:
    handle = Fd(opened())
    handle.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del handle


def test_cannot_be_pickled() -> None:
    with Fd(opened()) as handle, pytest.raises(TypeError, match="kernel handle"):
        pickle.dumps(handle)
