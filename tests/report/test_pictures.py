"""The browser that draws."""

import time

import pytest

from skymask.errors import InputError
from skymask.report.pictures import renderer


@pytest.mark.parametrize("program", ["nowhere/chromium", "/bin/false"])
def test_a_browser_that_is_not_there_or_does_not_start_is_an_error_at_once(monkeypatch, program):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    monkeypatch.setenv("BROWSER_PATH", program)
    begin = time.monotonic()
    with pytest.raises(InputError, match="need a Chrome or Chromium that starts"), renderer():
        raise AssertionError("it started")
    assert time.monotonic() - begin < 30
