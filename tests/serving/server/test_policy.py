from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.runtime.errors import UsageError
from mlcore.serving.serve import serve
from mlcore.serving.server.policy import TrafficSplit, parse_policy, parse_traffic, position


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("latest:2", [9, 5]), ("latest", [9]), ("latest:9", [9, 5, 3]), ("all", [9, 5, 3]), ("specific:3,5", [5, 3]),
     ("specific:4,9", [9])],
)  # fmt: skip
def test_policy_chooses(text, chosen):
    assert parse_policy(text).choose([3, 9, 5]) == chosen


@pytest.mark.parametrize("text", ["", "newest", "latest:0", "latest:x", "specific:", "specific:0", "all:3"])
def test_unknown_policy_is_refused(text):
    with pytest.raises(UsageError, match=r"--version-policy=.*expected latest:N, all, or specific"):
        parse_policy(text)


@pytest.mark.parametrize("texts", [("2:90", "3:10"), ("2:90,3:10",), ("2=90", "3=10")])
def test_traffic_forms(texts):
    assert parse_traffic(texts) == TrafficSplit(((2, 90.0), (3, 10.0)))


@pytest.mark.parametrize("texts", [("2",), ("x:1",), ("2:-1",), ("0:1",), ("2:nan",), ("2:1", "2:3"), ("2:0",)])
def test_wrong_traffic_is_refused(texts):
    with pytest.raises(UsageError, match="--traffic="):
        parse_traffic(texts)


def test_no_traffic_is_no_split():
    assert parse_traffic(()) is None


def test_shares_are_those_of_the_weights():
    split = TrafficSplit(((2, 90.0), (3, 10.0)))
    counts = Counter(split.choose(f"request-{number}", (2, 3)) for number in range(20_000))
    assert counts[2] + counts[3] == 20_000
    assert 0.09 < counts[3] / 20_000 < 0.11


@given(st.text(), st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_an_id_always_gets_the_same_version_and_one_that_is_loaded(request_id, weights):
    split = TrafficSplit(tuple(enumerate(weights, 1)))
    loaded = {version for version, _ in split.weights}
    chosen = split.choose(request_id, loaded)
    assert chosen in loaded
    assert chosen == split.choose(request_id, sorted(loaded, reverse=True))


@given(st.text())
def test_more_weight_for_the_canary_moves_no_request_away_from_it(request_id):
    small, large = TrafficSplit(((2, 90.0), (3, 10.0))), TrafficSplit(((2, 50.0), (3, 50.0)))
    if small.choose(request_id, (2, 3)) == 3:
        assert large.choose(request_id, (2, 3)) == 3


def test_share_of_a_version_that_is_not_loaded_goes_to_the_others():
    split = TrafficSplit(((2, 50.0), (3, 50.0)))
    assert {split.choose(str(number), (2,)) for number in range(100)} == {2}
    assert split.choose("x", (7,)) is None


@given(st.text())
def test_position_is_a_share(request_id):
    assert 0 <= position(request_id) < 1


def test_one_port_is_not_taken_for_two_protocols(tmp_path):
    with pytest.raises(UsageError, match="--grpc-port=8080, --tfs-port=8500: expected three different"):
        serve(model_name="m", models_dir=tmp_path, grpc_port=8080)
