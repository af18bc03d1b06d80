"""settings.py: changes by dotted name, and every setting as it is typed."""

import dataclasses
from collections.abc import Mapping

import pytest

from m27.train.settings import SettingError, TrainConfig, change, named, spelled


def test_settings_change_by_dotted_name_and_type():
    config = TrainConfig("x", data=change(TrainConfig("x").data, {"tasks.draw": "2"}))
    changed = change(
        config,
        {
            "optim.lr": "3e-4", "compile": "false", "steps": "7", "minutes": "none",
            "path": "plain", "lora.targets": "q_proj,v_proj", "data.tasks.speak": "0.5",
        },
    )  # fmt: skip
    assert (changed.optim.lr, changed.compile, changed.steps) == (3e-4, False, 7)
    assert (changed.minutes, changed.path) == (None, "plain")
    assert changed.lora.targets == ("q_proj", "v_proj")
    assert changed.data.tasks == {"draw": 2.0, "speak": 0.5}
    assert config.steps is None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("optim.lrr", "1", "'optim.lr'"),
        ("optm.lr", "1", "'optim.lr'"),
        ("steps", "many", "int"),
        ("path", "fuzed", "'fused'"),
        ("seed.x", "1", "below int"),
        ("compile", "perhaps", "bool"),
    ],
)
def test_unknown_or_wrong_settings_name_the_nearest(name, value, says):
    with pytest.raises(SettingError, match=says) as caught:
        change(TrainConfig("x"), {name: value})
    assert name in str(caught.value)


def test_a_setting_that_stands_elsewhere_is_named_with_its_place():
    with pytest.raises(SettingError, match=r"did you mean 'data\.accumulate'"):
        change(TrainConfig("x"), {"accumulate": "2"})


def test_what_belongs_together_is_replaced_at_once_and_mappings_are_read_whole():
    @dataclasses.dataclass(frozen=True)
    class Pair:
        low: int = 1
        high: int = 2

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low > high")

    @dataclasses.dataclass(frozen=True)
    class Outer:
        pair: Pair = Pair()
        shares: Mapping[str, float] | None = None

    out = change(Outer(), {"pair.low": "7", "pair.high": "9", "shares": "a=1,b=0.5", "shares.c": "3"})
    assert out == Outer(Pair(7, 9), {"a": 1.0, "b": 0.5, "c": 3.0})
    with pytest.raises(SettingError, match=r"pair.low"):
        change(Outer(), {"pair": "7"})


def test_every_setting_has_a_name_and_can_be_typed_as_it_is_shown():
    config = change(TrainConfig("x"), {"data.tasks": "a=1,b=2", "steps": "5", "optim.lr": "3e-4"})
    names = dict(named(config))
    assert names["optim.lr"] == 3e-4
    again = change(TrainConfig("y"), {name: spelled(value) for name, value in names.items()})
    lora = dataclasses.replace(config.lora, targets=tuple(config.lora.targets))
    assert again == dataclasses.replace(config, lora=lora)
