"""What answers cost: by the token at an API, by the hour on a device. The table is a file that anyone can edit.

Every price carries its date, as exactly as is known, and where it stands; a page that shows a cost shows both.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

HOURS = 730.0  # of a month
SHIPPED = Path(__file__).with_name("prices.json")


class PriceError(ValueError):
    """A price table that cannot be read; the message names the file and the entry."""


@dataclass(frozen=True)
class Api:
    """Prices per million tokens."""

    name: str
    input_per_million: float
    output_per_million: float
    date: str
    source: str = ""
    licence: str = "unknown"

    def request(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The price of one request."""
        return (prompt_tokens * self.input_per_million + completion_tokens * self.output_per_million) / 1e6


@dataclass(frozen=True)
class Device:
    """The price of an hour, used or not."""

    name: str
    per_hour: float
    date: str
    source: str = ""

    def month(self, requests: float, per_second: float) -> float:
        """The price of a month of as many devices as carry so many requests, each `per_second` of them."""
        most = per_second * 3600 * HOURS
        return self.per_hour * HOURS * max(1, math.ceil(requests / most - 1e-9))


@dataclass(frozen=True)
class Prices:
    """A price table."""

    currency: str
    apis: dict[str, Api]
    devices: dict[str, Device]

    def api(self, name: str) -> Api | None:
        """The entry of a model, also of a dated version of it ("gpt-4o-2024-08-06"); None where there is none."""
        plain = name.rpartition("/")[2]
        fits = [key for key in self.apis if plain == key or plain.startswith(key + "-2")]
        return self.apis[max(fits, key=len)] if fits else None


def read(path: Path = SHIPPED) -> Prices:
    """A price table. Raises PriceError, and OSError where there is no such file."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        apis = {name: Api(name, **entry) for name, entry in data.get("apis", {}).items()}
        devices = {name: Device(name, **entry) for name, entry in data.get("devices", {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise PriceError(f"{path}: {' '.join(str(error).split())}") from None
    entries: list[Api | Device] = [*apis.values(), *devices.values()]
    for entry in entries:
        numbers = [v for k, v in vars(entry).items() if k.startswith(("input", "output", "per_"))]
        if any(not isinstance(v, (int, float)) or isinstance(v, bool) or not 0 <= v < 1e9 for v in numbers):
            raise PriceError(f"{path}: {entry.name}: a price is a number from 0 on")
        try:
            date.fromisoformat(entry.date + {4: "-01-01", 7: "-01", 10: ""}[len(entry.date)])
        except (ValueError, TypeError, KeyError):
            why = "date must be as 2026-01-31, 2026-01 or 2026"
            raise PriceError(f"{path}: {entry.name}: {why}, not {entry.date!r}") from None
        if not isinstance(entry.source, str) or not entry.source.strip():
            raise PriceError(f"{path}: {entry.name}: source must say where the price stands")
    return Prices(str(data.get("currency", "USD")), apis, devices)


def break_even(api_request: float, device: Device, per_second: float) -> float | None:
    """Requests a month from which a device first costs less than an API at so much a request; None where it never
    does: at full load its request costs as much or more."""
    fixed = device.per_hour * HOURS
    if api_request <= 0 or fixed / (per_second * 3600 * HOURS) >= api_request:
        return None
    return fixed / api_request
