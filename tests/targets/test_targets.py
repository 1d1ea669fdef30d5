"""Every target's file is whole, and one that is not known is refused with the list."""

from __future__ import annotations

import pytest

from runnel import targets
from runnel.errors import InputError, InternalError


@pytest.mark.parametrize("name", targets.names())
def test_every_target_loads(name: str) -> None:
    assert targets.load(name).name == name


@pytest.mark.parametrize("name", ["moon", "", "../host", "host.toml"])
def test_an_unknown_target_lists_the_known(name: str) -> None:
    with pytest.raises(InputError, match="known are: .*host"):
        targets.load(name)


def test_a_target_with_a_wrong_key_is_our_fault() -> None:
    with pytest.raises(InternalError, match="exactly the keys arch, cpu"):
        targets.parse("x", {"colour": "red"})
