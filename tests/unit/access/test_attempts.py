# SPDX-License-Identifier: AGPL-3.0-or-later
import threading

import pytest

from orrery.access.attempts import Attempts, Limits, network

LIMITS = Limits(address_failures=3, address_seconds=10, user_failures=5, user_seconds=10, parallel=2, remembered=50)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def attempts(clock):
    return Attempts(LIMITS, clock)


def may_try(attempts, origin, user):
    with attempts.trying(origin, user) as admitted:
        return admitted


def test_an_address_has_a_budget_that_grows_back(attempts, clock):
    for number in range(3):
        assert may_try(attempts, "192.0.2.1", f"u{number}")
        attempts.failed("192.0.2.1", f"u{number}")
    assert not may_try(attempts, "192.0.2.1", "u9")
    assert may_try(attempts, "192.0.2.2", "u9")
    clock.now += 9
    assert not may_try(attempts, "192.0.2.1", "u9")
    clock.now += 1
    assert may_try(attempts, "192.0.2.1", "u9")


def test_a_user_has_a_budget_over_all_addresses(attempts, clock):
    for number in range(5):
        attempts.failed(f"192.0.2.{number}", "anna@pve")
    assert not may_try(attempts, "192.0.2.99", "anna@pve")
    assert may_try(attempts, "192.0.2.99", "bert@pve")


def test_strangers_do_not_lock_a_user_out_at_home(attempts):
    attempts.succeeded("192.0.2.1", "anna@pve")
    for number in range(10):
        attempts.failed(f"198.51.100.{number}", "anna@pve")
    for number in range(5):
        attempts.failed("192.0.2.1", f"u{number}")
    assert may_try(attempts, "192.0.2.1", "anna@pve")
    assert not may_try(attempts, "192.0.2.1", "bert@pve")
    for _ in range(5):
        attempts.failed("192.0.2.1", "anna@pve")
    assert not may_try(attempts, "192.0.2.1", "anna@pve")


def test_home_is_forgotten(attempts, clock):
    attempts.succeeded("192.0.2.1", "anna@pve")
    clock.now += LIMITS.familiar_seconds
    for number in range(5):
        attempts.failed(f"198.51.100.{number}", "anna@pve")
    assert not may_try(attempts, "192.0.2.1", "anna@pve")


def test_few_tries_run_at_once(attempts):
    with attempts.trying("192.0.2.1", "a") as first, attempts.trying("192.0.2.1", "b") as second:
        assert (first, second) == (True, True)
        assert not may_try(attempts, "192.0.2.1", "c")
        assert may_try(attempts, "192.0.2.2", "c")
    assert may_try(attempts, "192.0.2.1", "c")


def test_memory_is_bounded(attempts):
    for number in range(500):
        origin = f"10.0.{number >> 8}.{number & 255}"
        with attempts.trying(origin, f"u{number}"):
            attempts.failed(origin, f"u{number}")
            attempts.succeeded(origin, f"s{number}")
    sizes = [len(budget._used) for budget in (attempts._addresses, attempts._users, attempts._homes)]
    assert max(*sizes, len(attempts._familiar)) <= 50
    assert not attempts._running


def test_threads_leave_nothing_running(attempts):
    def work(number):
        for _ in range(200):
            with attempts.trying("192.0.2.1", f"u{number}"):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not attempts._running


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("local", "local"),
        ("x" * 1000, "x" * 100),
    ],
)
def test_what_counts_as_one_address(origin, expected):
    assert network(origin) == expected
