from __future__ import annotations

from importlib.metadata import distribution

import blockdrop


def test_distribution_has_the_version_of_the_module_and_says_that_the_method_is_not_written_yet():
    installed = distribution("blockdrop")
    assert installed.version == blockdrop.__version__
    assert "not written yet" in installed.metadata["Summary"]
    assert "not written yet" in blockdrop.__doc__


def test_nothing_pretends_to_work():
    assert not distribution("blockdrop").entry_points
    assert [name for name in vars(blockdrop) if not name.startswith("_")] == []
