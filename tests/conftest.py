"""What all tests share. Nothing of cfgdistill is imported here: the shape checks come first."""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's way with jobs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Notebooks last: what fails in a second should not be heard of after ten minutes."""
    items.sort(key=lambda item: item.path.name == "test_course.py")


@pytest.fixture(scope="session")
def course_out(tmp_path_factory):
    """One `out` for all notebooks, so that 03 and 04 find the teacher that 02 trained."""
    return tmp_path_factory.mktemp("out")
