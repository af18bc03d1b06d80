"""Shares of tasks that are bounded by what there is of them."""

from __future__ import annotations

import pytest

from m27.train.settings import DataConfig, TrainConfig
from recipes.stages import bounded


def test_no_task_is_gone_through_more_often_than_allowed() -> None:
    config = TrainConfig(
        "x", steps=1, data=DataConfig(tasks={"few": 0.5, "some": 0.3, "many": 0.2})
    )
    held = {"few": 1_000, "some": 40_000, "many": 10_000_000}
    tasks = bounded(config, held, 1_000_000, 5).data.tasks or {}
    assert tasks["few"] == pytest.approx(0.005) and tasks["some"] == pytest.approx(0.2)
    assert sum(tasks.values()) == pytest.approx(1) and list(tasks) == ["few", "some", "many"]


def test_nothing_changes_where_nothing_is_known_or_all_is_short() -> None:
    config = TrainConfig("x", steps=1, data=DataConfig(tasks={"a": 0.5, "b": 0.5}))
    assert bounded(config, {"a": 10, "b": 10}, 0, 5) == config
    assert bounded(config, {"a": 10, "b": 10}, 1_000, 5) == config
    assert bounded(config, {"a": 900, "b": 900}, 1_000, 5).data.tasks == {"a": 0.5, "b": 0.5}
