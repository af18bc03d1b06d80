"""What the settings of a run demand of each other, of the rows and of the base they are given.

Each piece says in one line what does not go together; the loop asks before any weight is taken up.
"""

from __future__ import annotations

from m27.model.decoder import Decoder
from m27.train.qlora import BaseError, bits_of, hold
from m27.train.rows import FreeRows, FrozenRows, Rows
from m27.train.settings import SettingError, TrainConfig


def see(config: TrainConfig, rows: Rows) -> None:
    """Raise SettingError for a run of no length, for rows of another kind, and for objectives that lack theirs."""
    if config.steps is None and config.minutes is None:
        raise SettingError("a run needs `steps` or `minutes`")
    free, frozen = isinstance(rows, FreeRows), isinstance(rows, FrozenRows)
    if (config.rows == "free") != free or (config.rows == "frozen") != frozen:
        raise SettingError(f"rows={config.rows} and the rows given ({type(rows).__name__}) disagree")
    data = config.data
    if config.rows == "free" and (config.body != "full" or data.kl_tasks):
        raise SettingError("rows=free trains every weight: it wants body=full and no data.kl_tasks")
    if config.objective == "preference":
        if data.drop_prompt or data.kl_tasks or config.z_loss:
            raise SettingError("objective=preference: it knows no data.drop_prompt, data.kl_tasks and z_loss")
        if config.rows == "free":
            raise SettingError("objective=preference: it wants rows=maps or rows=frozen")


def hold_base(config: TrainConfig, decoder: Decoder) -> None:
    """Bring the body into the bits that it is to be held in, if any. Raises SettingError."""
    bits, held = config.base_bits, bits_of(decoder)
    if bits is None and held is not None:
        raise SettingError(f"the base is held in {held} bits: set base_bits={held}")
    if bits is None:
        return
    if config.body == "full" or config.path not in ("auto", "plain"):
        raise SettingError("base_bits: it wants body=adapters or body=frozen, and path=plain")
    try:
        hold(decoder, bits, config.compile)
    except BaseError as error:
        raise SettingError(str(error)) from None
