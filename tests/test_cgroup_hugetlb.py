"""Limits of huge pages: the one controller that v2 has where v1 has the others."""

from __future__ import annotations

import mmap

import pytest

from containerkit import CgroupUnavailable, Limits, SyscallError
from containerkit.cgroup import Cgroup, Layout

pytestmark = pytest.mark.root

PAGE = 2 << 20


@pytest.fixture(autouse=True)
def huge_pages() -> None:
    found = Layout.current().find("hugetlb")
    if found is None or found.version != 2:
        pytest.skip("the controller hugetlb is not one of v2 here")


def test_a_limit_is_in_the_file_and_is_lifted_again() -> None:
    with Cgroup.create(limits=Limits(hugetlb_max={"2MB": "64M"})) as group:
        directory = group.directory("hugetlb")
        assert directory.read("hugetlb.2MB.max") == str(64 << 20)
        group.update(Limits())
        assert directory.read("hugetlb.2MB.max") == "max"


def test_less_than_a_page_is_rounded_down_by_the_kernel() -> None:
    with Cgroup.create(limits=Limits(hugetlb_max={"2MB": PAGE + mmap.PAGESIZE})) as group:
        assert group.directory("hugetlb").read("hugetlb.2MB.max") == str(PAGE)


def test_what_has_no_field_is_set_by_its_file() -> None:
    limits = Limits(raw={"hugetlb.2MB.rsvd.max": 4 * PAGE})
    with Cgroup.create(limits=limits) as group:
        assert group.directory("hugetlb").read("hugetlb.2MB.rsvd.max") == str(4 * PAGE)


def test_a_size_that_the_machine_has_not_is_refused_by_name() -> None:
    with pytest.raises(CgroupUnavailable, match=r"hugetlb\.3MB\.max"):
        Cgroup.create(limits=Limits(hugetlb_max={"3MB": "64M"}))


def test_a_raw_value_that_the_kernel_refuses_is_told_with_its_file() -> None:
    with pytest.raises(SyscallError, match=r"hugetlb\.2MB\.max"):
        Cgroup.create(limits=Limits(raw={"hugetlb.2MB.max": "many"}))
