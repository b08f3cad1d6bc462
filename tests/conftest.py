"""What all tests share. Nothing of cfgdistill is imported here: the shape checks come first."""

import os
import shutil
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"

# A shell ignores Ctrl-C in jobs in the background, nohup SIGHUP; what is started inherits that.
for name, normal in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, normal)

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
QUIET += ["--disable-component-update", "--no-first-run"]

# Minutes, in this order.
LONG = ["test_sharding.py", "test_processes.py", "test_faults.py", "test_course.py"]
HANGS = 1800  # seconds; limits end what hangs, so that no machine is too slow for them


def pytest_itemcollected(item):
    """One worker for a file, so that what its tests share is made once; and a limit for all."""
    if not any(item.iter_markers("xdist_group")):
        item.add_marker(pytest.mark.xdist_group(item.path.stem))
    if item.config.pluginmanager.hasplugin("timeout") and not any(item.iter_markers("timeout")):
        item.add_marker(pytest.mark.timeout(HANGS))


def pytest_collection_modifyitems(items):
    """Long files last: what fails in a second should not be heard of after ten minutes.

    With workers they are first, so that all have work until the end.
    """
    sign = -1 if "PYTEST_XDIST_WORKER" in os.environ else 1
    rank = {name: sign * place for place, name in enumerate(LONG, 1)}
    items.sort(key=lambda item: rank.get(item.path.name, 0))


@pytest.fixture(scope="module")
def browser():
    """A Chromium that is there; without one, what needs it is skipped."""
    api = pytest.importorskip("playwright.sync_api")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    if not any(found):
        pytest.skip("There is no Chromium: apt install chromium.")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=next(filter(None, found)), args=QUIET)
        yield browser
        browser.close()
