from hypothesis import given
from hypothesis import strategies as st

from openvla_bridge.replicas import Speed, split_by_speed, split_evenly


def test_shares_follow_the_speeds():
    assert split_by_speed(12, [1.0, 2.0, 3.0]) == [2, 4, 6]
    assert split_by_speed(12, [None, None]) == [6, 6]
    assert split_by_speed(9, [4.0, None, 2.0]) == [4, 3, 2]  # one not measured counts as the mean


@given(st.integers(0, 500), st.lists(st.floats(0.01, 1e4), min_size=1, max_size=5))
def test_no_frame_is_lost_and_none_is_off_by_more_than_one(total, speeds):
    shares = split_by_speed(total, speeds)
    assert sum(shares) == total
    assert all(abs(share - total * speed / sum(speeds)) < 1.0 for share, speed in zip(shares, speeds, strict=True))


@given(st.integers(1, 500), st.integers(1, 40))
def test_requests_are_few_and_even(total, largest):
    sizes = split_evenly(total, largest)
    assert sum(sizes) == total and len(sizes) == -(-total // largest)
    assert max(sizes) <= largest and max(sizes) - min(sizes) <= 1


def test_the_first_request_is_warm_up():
    speed = Speed()
    speed.measured(10, 5.0)
    assert speed.frames_per_second is None
    speed.measured(10, 1.0)
    speed.measured(10, 0.5)
    assert speed.frames_per_second == 15.0  # the mean of 10 and 20
