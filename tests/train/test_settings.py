import pytest

from m27.train.settings import SettingError, TrainConfig, change


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
        ("optim.lrr", "1", "'lr'"),
        ("optm.lr", "1", "'optim'"),
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
