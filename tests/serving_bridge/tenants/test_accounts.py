"""Tenants, keys, limits and prices on both engines: what is stored, what is refused, and how long a key lives."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from serving_bridge.database import DatabaseError
from serving_bridge.tenants import (
    BadKey,
    Limits,
    NotAllowed,
    Price,
    Scopes,
    TenantError,
    Unavailable,
    check_scopes,
    read_money,
    read_price,
    show_money,
)
from serving_bridge.tenants.api_keys import new_key
from tests.support.tenant_worlds import SECRET, Deployment, bearer, deployment

__all__ = ["deployment"]  # a fixture


def test_a_caller_is_what_its_tenant_and_key_say(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme", priority="paid", weight=3, consent=True, retention_days=30)
    accounts.set_limits("acme", {"requests_per_minute": 60, "month_nanos": read_money("2.5")})
    made = accounts.create_key("acme", label="laptop", scopes=Scopes(models=("demo",)))
    caller = deployment.directory().authenticate(bearer(made.key))
    assert (caller.tenant, caller.key_id, caller.priority, caller.weight) == ("acme", made.info.key_id, "paid", 3)
    assert (caller.consent, caller.retention_days) == (True, 30)
    assert caller.limits == Limits(requests_per_minute=60, month_nanos=2_500_000_000)
    assert caller.cache_salt == SECRET.cache_salt("acme", 0)
    assert accounts.keys("acme") == [made.info]


def test_consent_and_retention_are_off_by_default(deployment: Deployment) -> None:
    tenant = deployment.accounts().add("acme")
    assert (tenant.consent, tenant.retention_days) == (False, 0)
    assert deployment.accounts().show("acme") == tenant


def test_the_key_is_nowhere_in_the_database(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    key = accounts.create_key("acme").key

    def everything(session) -> str:
        return repr(session.execute("SELECT * FROM api_keys"))

    stored = deployment.database().read(everything)
    assert key not in stored
    assert key[8:30] not in stored


def test_every_bad_key_gets_the_same_words(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    keys = [accounts.create_key("acme", expires_s=deployment.wall() + end) for end in (10, 1000, 1000)]
    accounts.revoke_key(keys[1].info.key_id)
    directory = deployment.directory()
    deployment.wall.now_s += 10
    good, expired, revoked = keys[2].key, keys[0].key, keys[1].key
    headers = [
        *({}, {"authorization": ""}, {"authorization": good}, {"authorization": f"Basic {good}"}),
        *map(bearer, ("", "x" * 10_000, "\ud800", good[:-1], good + "0", good[:-1] + "!", new_key(), expired, revoked)),
    ]
    refusals = []
    for given in headers:
        with pytest.raises(BadKey) as refused:
            directory.authenticate(given)
        refusals.append((str(refused.value), refused.value.status, refused.value.code, refused.value.retry_after_s))
    assert len(set(refusals)) == 1
    assert refusals[0][1] == 401
    assert directory.authenticate(bearer(good)).tenant == "acme"
    assert directory.authenticate({"authorization": f"BEARER {good}"}).tenant == "acme"


def test_a_revoked_key_dies_with_the_next_refresh(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    made = accounts.create_key("acme")
    directory = deployment.directory()
    accounts.revoke_key(made.info.key_id)
    assert directory.authenticate(bearer(made.key))
    directory.refresh()
    with pytest.raises(BadKey):
        directory.authenticate(bearer(made.key))


def test_without_the_database_no_key_lives_beyond_the_bound(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    made = accounts.create_key("acme")
    directory = deployment.directory(max_stale_s=60)
    accounts.revoke_key(made.info.key_id)  # which the gateway, cut off, never learns
    deployment.clock.now_s += 60
    assert directory.authenticate(bearer(made.key))
    deployment.clock.now_s += 0.1
    deployment.wall.now_s -= 3600  # a clock that jumps back makes nothing younger
    for key in (made.key, new_key(), ""):
        with pytest.raises(Unavailable) as refused:
            directory.authenticate(bearer(key))
        assert refused.value.status == 503


def test_the_age_counts_from_the_start_of_the_read(deployment: Deployment) -> None:
    directory = deployment.directory(max_stale_s=60)
    real = directory._db.read

    def slow(work):
        found = real(work)
        deployment.clock.now_s += 5
        return found

    directory._db.read = slow  # type: ignore[method-assign]
    directory.refresh()
    assert directory.age_s == 5


def test_a_failed_refresh_leaves_the_copy(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    made = accounts.create_key("acme")
    directory = deployment.directory()

    def cut(work):
        raise DatabaseError("cut off")

    directory._db.read = cut  # type: ignore[method-assign]
    deployment.clock.now_s += 1
    with pytest.raises(DatabaseError):
        directory.refresh()
    assert directory.authenticate(bearer(made.key))
    assert directory.age_s == 1


def test_rotation_overlaps_and_never_prolongs(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    scopes = Scopes(routes=("/v1/chat/completions",))
    old = accounts.create_key("acme", label="app", scopes=scopes, expires_s=deployment.wall() + 50)
    new = accounts.rotate_key(old.info.key_id, overlap_s=100)
    assert (new.info.label, new.info.scopes, new.info.expires_s) == ("app", scopes, None)
    directory = deployment.directory()
    assert directory.authenticate(bearer(old.key)).scopes == directory.authenticate(bearer(new.key)).scopes == scopes
    deployment.wall.now_s += 50
    with pytest.raises(BadKey):
        directory.authenticate(bearer(old.key))
    assert directory.authenticate(bearer(new.key))
    third = accounts.rotate_key(new.info.key_id, overlap_s=100)
    states = [(key.key_id, key.state(deployment.wall()), key.replaced_by) for key in accounts.keys("acme")]
    assert sorted(states) == sorted(
        [
            (old.info.key_id, "expired", new.info.key_id),
            (new.info.key_id, "active", third.info.key_id),
            (third.info.key_id, "active", None),
        ]
    )
    with pytest.raises(TenantError, match=f"replaced by {third.info.key_id}"):
        accounts.rotate_key(new.info.key_id, overlap_s=100)
    with pytest.raises(TenantError, match="is expired"):
        accounts.rotate_key(old.info.key_id, overlap_s=100)


def test_a_suspended_tenant_is_told_so(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    made = accounts.create_key("acme")
    accounts.change("acme", suspended=True)
    with pytest.raises(NotAllowed, match="suspended"):
        deployment.directory().authenticate(bearer(made.key))


def test_a_new_salt_is_another_one(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    made = accounts.create_key("acme")
    directory = deployment.directory()
    before = directory.authenticate(bearer(made.key)).cache_salt
    accounts.rotate_salt("acme")
    directory.refresh()
    assert directory.authenticate(bearer(made.key)).cache_salt not in ("", before)


def test_scopes_refuse_what_they_do_not_cover(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme", priority="paid")
    made = accounts.create_key("acme", scopes=Scopes(("demo",), ("/v1/models",), ("free",)))
    caller = deployment.directory().authenticate(bearer(made.key))
    check_scopes(caller, model="demo", route="/v1/models", priority="free")
    for asked, words in (
        ({"model": "other"}, "model"),
        ({"route": "/v1/completions"}, "route"),
        ({"priority": None}, "class"),
    ):
        with pytest.raises(NotAllowed, match=words) as refused:
            check_scopes(caller, **({"model": "demo", "route": "/v1/models", "priority": "free"} | asked))
        assert refused.value.status == 403
    check_scopes(replace(caller, scopes=Scopes()), model="any", route="/any")


def test_scopes_that_cannot_be_read_allow_nothing(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    made = accounts.create_key("acme")
    deployment.database().write(lambda session: session.execute("UPDATE api_keys SET scopes = '{broken'"))
    caller = deployment.directory().authenticate(bearer(made.key))
    with pytest.raises(NotAllowed):
        check_scopes(caller, model="demo", route="/v1/models")


def test_limits_change_one_by_one(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    accounts.set_limits("acme", {"requests_per_minute": 60, "concurrency": 4})
    accounts.set_limits("acme", {"concurrency": None, "tokens_per_minute": 100})
    assert accounts.show("acme").limits == Limits(requests_per_minute=60, tokens_per_minute=100)
    assert accounts.limits(None) == Limits()
    accounts.set_limits(None, {"concurrency": 256})
    directory = deployment.directory()
    assert directory.deployment == Limits(concurrency=256)


def test_what_makes_no_sense_is_refused(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.add("acme")
    key = accounts.create_key("acme")
    mistakes = [
        (lambda: accounts.add("acme"), "exists"),
        *((lambda name=name: accounts.add(name), "expected at most 64") for name in ("", "a/b", "a" * 65, "\x1b[31m")),
        (lambda: accounts.add("other", weight=0), "weight is 0"),
        (lambda: accounts.add("other", retention_days=-1), "retention is -1"),
        (lambda: accounts.add("other", priority="gold"), "class gold"),
        (lambda: accounts.show("nobody"), "does not exist"),
        (lambda: accounts.create_key("nobody"), "does not exist"),
        (lambda: accounts.create_key("acme", expires_s=deployment.wall()), "expired already"),
        (lambda: accounts.create_key("acme", label="\n"), "printable"),
        (lambda: accounts.rotate_key("key_0", overlap_s=1), "does not exist"),
        (lambda: accounts.rotate_key(key.info.key_id, overlap_s=-1), "0 or more"),
        (lambda: accounts.rotate_key(key.info.key_id, overlap_s=float("nan")), "0 or more"),
        (lambda: accounts.revoke_key("key_0"), "does not exist"),
        (lambda: accounts.set_limits("acme", {"concurrency": 0}), "concurrency is 0"),
        (lambda: accounts.set_limits("acme", {"request_burst": 5}), "without requests_per_minute"),
        (lambda: accounts.set_limits("nobody", {"concurrency": 5}), "does not exist"),
        (lambda: accounts.usage("2026-13"), "expected one such as"),
    ]
    before = accounts.tenants()
    for act, words in mistakes:
        with pytest.raises(TenantError, match=words):
            act()
    assert accounts.tenants() == before
    assert accounts.keys("acme") == [key.info]


@pytest.mark.parametrize("text", ["", "x", "-1", "0.0000000001", "nan", "inf", "1e9", "1000001"])
def test_prices_and_amounts_are_exact_or_refused(text: str) -> None:
    with pytest.raises(TenantError):
        read_price(text)
    if text not in ("1e9", "1000001"):
        with pytest.raises(TenantError):
            read_money(text)


def test_money_has_no_rounding_but_to_a_billionth() -> None:
    price = Price(read_price("0.15"), read_price("0.6"))
    assert price.nanos(1000, 10) == 156_000
    assert Price(Decimal("0.0375"), Decimal(0)).nanos(1, 0) == 38  # 37.5, half to even
    assert Price(Decimal("0.0375"), Decimal(0)).nanos(2, 0) == 75
    assert sum(price.nanos(7, 3) for _ in range(1000)) == 1000 * price.nanos(7, 3)
    assert [show_money(nanos) for nanos in (0, 1, 2_500_000_000, 10_000_000)] == ["0.00", "0.000000001", "2.50", "0.01"]


def test_prices_reach_the_gateways(deployment: Deployment) -> None:
    accounts = deployment.accounts()
    accounts.set_price("demo", Price(Decimal("0.15"), Decimal("0.60")))
    accounts.set_price("demo", Price(Decimal("0.25"), Decimal("0.60")))
    assert deployment.directory().prices == accounts.prices() == {"demo": Price(Decimal("0.25"), Decimal("0.60"))}
