"""Money in exact numbers: prices as decimals, sums as whole billionths of the currency's unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

from learner_jax.contracts import quoted
from serving_bridge.tenants.errors import TenantError
from serving_bridge.tenants.records import MAX_COUNT

NANOS = 10**9
#: billionths a token, for a price a million tokens
_NANOS_PER_TOKEN = Decimal(NANOS // 10**6)
_MAX_PRICE = Decimal(1000_000)


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, in the currency's unit."""

    prompt: Decimal
    completion: Decimal

    def nanos(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The cost of an answer, exact but for one rounding to a billionth, half to even."""
        exact = (self.prompt * prompt_tokens + self.completion * completion_tokens) * _NANOS_PER_TOKEN
        return int(exact.to_integral_value(ROUND_HALF_EVEN))


FREE = Price(Decimal(0), Decimal(0))
#: Stands for every model that the price table does not name.
ANY_MODEL = "*"


def price_of(prices: Mapping[str, Price], model: str) -> Price:
    """The price of a model's tokens: its own, else that of "*", else nothing."""
    return prices.get(model) or prices.get(ANY_MODEL, FREE)


def read_price(text: str) -> Decimal:
    """A price a million tokens, e.g. "0.15". Raises `TenantError`."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(-1)
    if not value.is_finite() or not 0 <= value <= _MAX_PRICE or value.normalize().as_tuple().exponent < -9:  # type: ignore[operator]
        raise TenantError(
            f"price {quoted(text)}: expected a decimal number of 0 to {_MAX_PRICE} a million tokens, at most 9 places"
        )
    return value


def read_money(text: str) -> int:
    """An amount in the currency's unit, e.g. "25.50", as billionths. Raises `TenantError`."""
    try:
        nanos = Decimal(text) * NANOS
        whole = int(nanos) if nanos.is_finite() and nanos == nanos.to_integral_value() else -1
    except InvalidOperation:
        whole = -1
    if not 0 < whole <= MAX_COUNT:
        raise TenantError(
            f"amount {quoted(text)}: expected a decimal number above 0 and up to {MAX_COUNT // NANOS}, at most 9 places"
        )
    return whole


def show_money(nanos: int) -> str:
    """Billionths as an amount, without zeros at its end but for two places."""
    whole, rest = divmod(abs(nanos), NANOS)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}{whole}.{places}"
